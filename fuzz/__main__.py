"""``python -m fuzz [TARGET ...] --seconds N``: both engines on every target, half the time each."""

from __future__ import annotations

import argparse
import importlib.util
import subprocess
import sys
import time

from fuzz.targets import TARGETS

_START_S = 120
"""Importing everything, and the last input."""


def main() -> int:
    """Fuzz; return 1 if anything failed."""
    parser = argparse.ArgumentParser(prog="fuzz", description=__doc__)
    parser.add_argument("targets", nargs="*", help=", ".join(TARGETS))
    parser.add_argument("--seconds", type=float, default=30.0, help="a target (%(default)s)")
    parser.add_argument("--seed", type=int, help="the same inputs again, as far as time allows")
    options = parser.parse_args()
    unknown = sorted(set(options.targets) - set(TARGETS))
    if unknown:
        parser.error(f"{unknown[0]!r} is no target: expected some of {', '.join(TARGETS)}")
    engines = ["hypothesis"]
    if importlib.util.find_spec("atheris") is None:
        print("atheris is not installed: hypothesis takes all the time", flush=True)
    else:
        engines.append("atheris")
    well = [
        _fuzz(name, engines, options.seconds, options.seed) for name in options.targets or TARGETS
    ]
    return 0 if all(well) else 1


def _fuzz(name: str, engines: list[str], seconds: float, seed: int | None) -> bool:
    """Run the engines on a target, print a line, and return whether nothing failed."""
    begun, parts, verdict = time.monotonic(), [], "no failure"
    for engine in engines:
        share = seconds / len(engines)
        command = [sys.executable, "-m", "fuzz.engine", engine, name, str(share)]
        command += [] if seed is None else [str(seed)]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=share + _START_S, check=False
            )
            status, said = done.returncode, done.stdout + done.stderr
        except subprocess.TimeoutExpired:
            status, said = -1, "no end"
        counts = [line.split()[1:] for line in said.splitlines() if line.startswith("COUNT ")]
        tried, refused = map(int, counts[-1]) if counts else (0, 0)
        parts.append(f"{engine} {tried:,} ({refused:,} refused)")
        if status != 0 or not tried:
            verdict = f"FAILED (status {status})"
            print(said, file=sys.stderr)
    spent = time.monotonic() - begun
    print(f"{name:<8} {', '.join(parts)} inputs in {spent:.0f} s: {verdict}", flush=True)
    return verdict == "no failure"


if __name__ == "__main__":
    sys.exit(main())
