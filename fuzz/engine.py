"""Makes inputs for one target, by hypothesis or by atheris, until its time is up.

``python -m fuzz.engine ENGINE TARGET SECONDS [SEED]`` prints the number of inputs; its exit status
is 0 only if none of them failed. One that did is written to ``FUZZ_FINDINGS`` (``fuzz-findings``),
also one that ended the process from outside of Python (``TARGET-current``).
"""

from __future__ import annotations

import hashlib
import os
import platform
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fuzz import guard
from fuzz.targets import CORPUS, TARGETS, Target

_BATCH = 200


class Runner:
    """Feeds a target and counts.

    Args:
        target: What is fed.
        folder: The only place where it may write.
    """

    def __init__(self, target: Target, folder: Path) -> None:
        self.name, self.count, self.refused = target.name, 0, 0
        self._call, self._folder = target.prepare(folder), folder
        self._current = _place(self.name, "current")
        platform.processor()  # some package asks, and Python runs `uname` to answer once
        guard.limit_memory()

    def __call__(self, data: bytes) -> None:
        """Feed one input.

        Raises:
            Failure: If the target fails; the input is written to a file.
        """
        self.count += 1
        self._current.write_bytes(data)  # stays where a hang or a crash ends the process
        try:
            refused = guard.guarded(lambda: self._call(data), self._folder)
        except guard.Failure as failure:
            print(f"{self.name}: FAILED, {failure}; input {_keep(self.name, data)}", flush=True)
            self.report()
            raise
        self.refused += refused is not None

    def report(self) -> None:
        """Print how many inputs there were, and how many of them were refused, at the end."""
        self._current.unlink(missing_ok=True)
        print(f"COUNT {self.count} {self.refused}", flush=True)


def _keep(name: str, data: bytes) -> Path:
    path = _place(name, hashlib.sha256(data).hexdigest()[:12])
    path.write_bytes(data)
    return path


def _place(name: str, which: str) -> Path:
    folder = Path(os.environ["FUZZ_FINDINGS"])
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{name}-{which}"


@contextmanager
def workplace() -> Iterator[Path]:
    """Give a new folder to which everything that has a default place is led."""
    with tempfile.TemporaryDirectory(prefix="fuzz-") as name:
        folder = Path(os.path.realpath(name))
        os.environ |= {
            "CRYSTAL_GYM_CACHE": str(folder / "cache"),
            "CRYSTAL_GYM_DATA": str(folder / "raw"),
            "HOME": str(folder),
            "MINARI_DATASETS_PATH": str(folder / "minari"),
            "MPLCONFIGDIR": str(folder / "matplotlib"),
            "TMPDIR": str(folder),
        }
        tempfile.tempdir = None
        os.chdir(folder)
        yield folder


def replay(runner: Runner) -> None:
    """Feed the saved seeds and every input that once failed."""
    for path in sorted((CORPUS / runner.name).iterdir()):
        runner(path.read_bytes())


def by_hypothesis(runner: Runner, target: Target, seconds: float, first_seed: int) -> None:
    """Feed what the target's strategy makes, and small versions of what fails."""
    from hypothesis import HealthCheck, Phase, given, seed, settings

    end = time.monotonic() + seconds
    batch = first_seed
    while time.monotonic() < end:

        @seed(batch)
        @settings(
            max_examples=_BATCH,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
            phases=[Phase.generate],
        )
        @given(target.inputs)
        def feed(data: bytes) -> None:
            if time.monotonic() < end:
                runner(data)

        feed()
        batch += 1


def by_atheris(runner: Runner, seconds: float, seed: int) -> None:
    """Feed mutations of the seeds, kept where they reach new code; does not return."""
    import atheris

    end = time.monotonic() + seconds
    grown = Path(os.getcwd(), "corpus")  # the first folder named is where libFuzzer writes
    grown.mkdir()

    def feed(data: bytes) -> None:
        if time.monotonic() > end:  # libFuzzer would leave without a word about the number
            runner.report()
            os._exit(0)
        runner(data)

    atheris.Setup(
        [
            "fuzz",
            "-timeout=0",  # its alarm would be ours
            "-rss_limit_mb=0",
            "-max_len=8192",
            "-verbosity=0",
            "-print_final_stats=0",
            f"-seed={seed}",
            f"-artifact_prefix={os.getcwd()}/",
            str(grown),
            str(CORPUS / runner.name),
        ],
        feed,
    )
    atheris.Fuzz()


def main(engine: str, name: str, seconds: float, seed: int | None = None) -> int:
    """Run one engine on one target; return the exit status."""
    findings = Path(os.environ.get("FUZZ_FINDINGS", "fuzz-findings")).absolute()
    os.environ["FUZZ_FINDINGS"] = str(findings)
    if seed is None:
        seed = int.from_bytes(os.urandom(4), "big") or 1  # libFuzzer's 0 is the time
    sys.dont_write_bytecode = True
    target = TARGETS[name]
    with workplace() as folder:
        if engine == "atheris":
            import atheris

            with atheris.instrument_imports(include=list(target.modules)):
                for module in target.modules:
                    __import__(module)
        guard.watch_writes()
        runner = Runner(target, folder)
        if engine == "atheris":
            by_atheris(runner, seconds, seed)
        else:
            try:
                replay(runner)
                by_hypothesis(runner, target, seconds, seed)
            except guard.Failure:
                return 1
            runner.report()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], float(sys.argv[3]), *map(int, sys.argv[4:])))
