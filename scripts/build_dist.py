"""Build the sdist and the wheel, the same bytes from the same sources: ``make dist``.

``SOURCE_DATE_EPOCH`` is the time in the archives, in seconds since 1970; by default that of the
last commit. The wheel of setuptools heeds it, its sdist does not, so that is packed again.
"""

from __future__ import annotations

import gzip
import io
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def build(output: Path) -> list[Path]:
    """Build both into a folder; return their paths, the sdist first."""
    environment = {**os.environ, "SOURCE_DATE_EPOCH": str(_epoch())}
    with tempfile.TemporaryDirectory() as temporary:
        # From a copy: setuptools packs what earlier builds left in build/ and *.egg-info as well.
        source = Path(temporary) / "source"
        shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(*_LEFT_OUT))
        command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", temporary]
        done = subprocess.run([*command, source], env=environment, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"{done.stdout}{done.stderr}\nthe package cannot be built; see above")
        (sdist,) = Path(temporary).glob("*.tar.gz")
        (wheel,) = Path(temporary).glob("*.whl")
        output.mkdir(parents=True, exist_ok=True)
        _pack_again(sdist, output / sdist.name)
        shutil.copyfile(wheel, output / wheel.name)
    return [output / sdist.name, output / wheel.name]


_LEFT_OUT = (".*", "build", "dist", "*.egg-info", "__pycache__", "runs")


def _epoch() -> int:
    if "SOURCE_DATE_EPOCH" in os.environ:
        return int(os.environ["SOURCE_DATE_EPOCH"])
    command = ["git", "log", "-1", "--format=%ct"]
    return int(subprocess.run(command, cwd=ROOT, check=True, capture_output=True).stdout)


def _pack_again(source: Path, target: Path) -> None:
    """Write a tar archive with one time, no owners and sorted names."""
    content = io.BytesIO()
    with tarfile.open(source) as old, tarfile.open(fileobj=content, mode="w") as new:
        for member in sorted(old.getmembers(), key=lambda m: m.name):
            member.mtime, member.uid, member.gid = _epoch(), 0, 0
            member.uname = member.gname = ""
            member.pax_headers = {}
            new.addfile(member, old.extractfile(member) if member.isfile() else None)
    with open(target, "wb") as raw, gzip.GzipFile("", "wb", mtime=_epoch(), fileobj=raw) as file:
        file.write(content.getvalue())


if __name__ == "__main__":
    for path in build(Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "dist")):
        print(path)
