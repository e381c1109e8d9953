"""Label without a pause and watch memory, open files and processes.

python benchmarks/reliability/soak_label.py --hours 2           (--minutes 1 for a short one; Linux)

One process labels round after round, each with a database of its own, since the results that a
program holds in memory are its work and no leak: half of each round by workers that live as long as
the soak, half by a pool of the round's own. pw.x is the stand-in of the tests (0.05 s). Between the
rounds nothing runs; what is counted there must stay what it was after the warm-up: resident memory
within 5%, open files and processes to the last one. Exit status 1 where it does not.
"""

import argparse
import contextlib
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from stubbed import Stub, cached_oracle, make_crystals, make_stub

from crystal_gym.crystal_key import cell_key
from crystal_gym.labelling import label
from crystal_gym.oracles import Status

_SECONDS = 0.05  # a calculation
_ROUND = 16  # structures
_WORKERS = 2
_WARM_UP = 0.3  # of the time
_LATTICES = 4096  # that the longest cache holds, which would fill for an hour on a busy machine
# Workers remember the databases of their last eight rounds.
_WARM_UP_ROUNDS = 8
_LEAST_ROUNDS = 5  # after it
_FLAT = 1.05
_TABLE_ROWS = 12


@dataclass(frozen=True)
class Sample:
    """What the labelling processes hold between two rounds."""

    minutes: float
    structures: int
    memory_mb: float
    worker_memory_mb: float
    descriptors: int
    processes: int

    def __str__(self) -> str:
        return (
            f"{self.minutes:8.1f} {self.structures:11,} {self.memory_mb:10.1f} "
            f"{self.worker_memory_mb:12.1f} {self.descriptors:12} {self.processes:10}"
        )


_HEADER = " minutes  structures  memory MB  workers (MB)  descriptors  processes"


def soak(folder: Path, seconds: float) -> Iterator[Sample]:
    """Label until the time is up, and yield what is held after each round."""
    stub = make_stub(folder, _SECONDS)
    fill_cache()
    start, structures = time.monotonic(), 0
    with ProcessPoolExecutor(_WORKERS, initializer=fill_cache) as pool:
        while time.monotonic() - start < seconds:
            label_round(folder, pool, structures)
            structures += _ROUND
            minutes = (time.monotonic() - start) / 60
            yield take_sample(minutes, structures, sorted(pool._processes), stub)


def fill_cache() -> None:
    """Let this process remember as many lattices as it ever will."""
    for n in range(_LATTICES):
        cell_key(np.diag([2.0 + 0.001 * n, 9.0, 9.0]), np.zeros((1, 3)), np.ones(1, dtype=np.int64))


def label_round(folder: Path, pool: ProcessPoolExecutor, first: int) -> None:
    """Label the next structures, half of them by the pool.

    Raises:
        RuntimeError: If one has no result, since then nothing was put to the test.
    """
    crystals = make_crystals(range(first, first + _ROUND))
    oracle = cached_oracle(folder, f"{first}.db")
    found = label(crystals[::2], oracle, executor=pool)
    found += label(crystals[1::2], oracle, workers=_WORKERS)
    stored = len(oracle.store)
    if [p.status for p in found] != [Status.OK] * _ROUND or stored != _ROUND:
        raise RuntimeError(f"{stored} of {_ROUND} results are stored; the last is {found[-1]}")
    Path(oracle.store.address).unlink()


def take_sample(minutes: float, structures: int, workers: list[int], stub: Stub) -> Sample:
    """Count what this process, its workers and its calculations hold."""
    family = {os.getpid(), *workers}
    return Sample(
        minutes,
        structures,
        _resident_mb(os.getpid()),
        sum(map(_resident_mb, workers)),
        sum(len(os.listdir(f"/proc/{process}/fd")) for process in family),
        sum(parent in family for parent in _parents()) + len(stub.processes()),
    )


def _resident_mb(process: int) -> float:
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def _parents() -> Iterator[int]:
    """Yield the parent of every process of the machine, zombies included."""
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):  # it ended meanwhile
            yield int(Path(f"/proc/{name}/stat").read_text().rsplit(")", 1)[1].split()[1])


def verdict(samples: list[Sample], seconds: float) -> tuple[bool, str]:
    """Return whether nothing grew after the warm-up, and that in words.

    Raises:
        RuntimeError: If there were too few rounds to tell.
    """
    after = [s for s in samples[_WARM_UP_ROUNDS:] if 60 * s.minutes >= _WARM_UP * seconds]
    if len(after) < _LEAST_ROUNDS:
        raise RuntimeError(f"{len(samples)} rounds are too few: let it run for longer")
    first = after[0]
    growth = max(s.memory_mb for s in after) / first.memory_mb
    worker_growth = max(s.worker_memory_mb for s in after) / first.worker_memory_mb
    # A worker may still be closing a database when it is looked at; what leaks is there ever after.
    part = max(1, len(after) // 4)
    descriptors, processes = (
        min(getattr(s, name) for s in after[-part:]) - min(getattr(s, name) for s in after[:part])
        for name in ("descriptors", "processes")
    )
    text = (
        f"{samples[-1].structures:,} structures in {samples[-1].minutes:.1f} minutes; since minute "
        f"{first.minutes:.1f}: memory at most {100 * (growth - 1):+.1f}%, of the workers "
        f"{100 * (worker_growth - 1):+.1f}%; leaked descriptors {descriptors}, processes "
        f"{processes}"
    )
    flat = growth <= _FLAT and worker_growth <= _FLAT
    return flat and descriptors <= 0 and processes <= 0, text


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--hours", type=float)
    length.add_argument("--minutes", type=float, default=1.0, help="(%(default)s)")
    options = parser.parse_args()
    seconds = 60 * options.minutes if options.hours is None else 3600 * options.hours
    samples: list[Sample] = []
    rows = 0
    print(_HEADER)
    with tempfile.TemporaryDirectory(prefix="crystal-gym-") as folder:
        for sample in soak(Path(folder), seconds):
            samples.append(sample)
            if 60 * sample.minutes >= rows * seconds / _TABLE_ROWS:
                print(sample, flush=True)
                rows += 1
    well, text = verdict(samples, seconds)
    print(f"{text}: {'flat' if well else 'NOT flat'}")
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())
