"""Let pydoclint look for untrue docstrings: ``make lint``.

A docstring here may leave out what its first line says ("Return the ..."), or an argument whose
name says everything. What it does say must be true: names of arguments and their order. pydoclint
cannot be told so, hence this filter of what it finds.
"""

from __future__ import annotations

import re
import subprocess
import sys

_OMISSIONS = {"DOC101", "DOC201", "DOC402"}


def untrue(report: str) -> list[str]:
    """Return the violations in pydoclint's report that are no omissions, with their files."""
    found, path = [], ""
    for line in report.splitlines():
        violation = re.match(r"\s+(\d+): (DOC\d+): (.*)", line)
        if violation is None:
            path = line.strip() or path
            continue
        number, code, text = violation.groups()
        # What is said and what there is differ: an omission unless it names what is not there.
        omits = code == "DOC103" and "in the docstring but not in" not in text
        if code not in _OMISSIONS and not omits:
            found.append(f"{path}:{number}: {code} {text}")
    return found


def main() -> None:
    """Check the folders named on the command line."""
    command = [sys.executable, "-m", "pydoclint.main", "--quiet", *sys.argv[1:]]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode not in (0, 1) or "Traceback" in done.stderr:
        sys.exit(f"{done.stdout}{done.stderr}\npydoclint did not run")
    found = untrue(done.stdout + done.stderr)
    if found:
        sys.exit("\n".join(found))


if __name__ == "__main__":
    main()
