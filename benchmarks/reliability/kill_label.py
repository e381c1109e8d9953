"""Kill what labels at random moments, and count what is lost and what is done twice.

python benchmarks/reliability/kill_label.py --kills 50        (needs the extra `cluster`, Linux)

Half of the kills hit a program that labels with a process pool, which is then started again; the
other half hit workers of a Dask scheduler, whose tasks others take over. pw.x is the stand-in of
the tests (0.1 s); processes, signals, database and scheduler are real. Exit status 1 where a result
is lost, stored twice, or calculated again although it was stored.
"""

import argparse
import contextlib
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import astuple, dataclass
from pathlib import Path

from stubbed import Stub, cached_oracle, make_crystals, make_stub, stored_attempts

from crystal_gym.cluster import executor_at
from crystal_gym.labelling import label

_SECONDS = 0.1  # a calculation
_PER_KILL = 25  # structures: enough for work to be left at the last kill
_PAUSE_S = (0.0, 1.5)
_RUNS = 4  # to the end, without kills: a structure that was hit four times is tried again


@dataclass(frozen=True)
class Damage:
    """What kills cost.

    Attributes:
        structures: How many were to be labelled.
        kills: How many processes were killed while they calculated.
        lost: Structures without a final status, and results that were there and are no more.
        duplicated: Structures with more than one final status.
        again: Calculations that began although their result was stored.
        repeated: Calculations that were done, and done again because they were not stored yet.
    """

    structures: int
    kills: int
    lost: int
    duplicated: int
    again: int
    repeated: int

    @property
    def none(self) -> bool:
        return not (self.lost or self.duplicated or self.again)

    def __str__(self) -> str:
        return (
            f"{self.structures} structures, {self.kills} kills: lost {self.lost}, duplicated "
            f"{self.duplicated} (calculations whose result was already stored and were run again: "
            f"{self.again}; done but not yet stored when their process was killed: {self.repeated})"
        )


class Killer:
    """Kills one process after another while calculations run."""

    def __init__(self, stub: Stub, folder: Path, kills: int, seed: int) -> None:
        self.stub, self.database, self.kills = stub, folder / "results.db", kills
        self.random = random.Random(seed)
        self.done = 0
        self.seen: set[str] = set()  # energies that were in the database

    def kill(self, choose: Callable[[], int]) -> None:
        """Wait for a calculation, and a little, and kill the process that is chosen then."""
        _wait_for(self.stub.processes)
        time.sleep(self.random.uniform(*_PAUSE_S))
        self.seen |= {row.energy for row in stored_attempts(self.database)}
        os.kill(choose(), signal.SIGKILL)
        self.done += 1

    def damage(self, structures: int) -> Damage:
        """Compare the database with what was to be done and with the log of the stub."""
        rows = stored_attempts(self.database)
        finals = Counter(row.crystal for row in rows if row.status.is_final)
        stored_at = {row.energy: row.stored_at for row in rows if row.energy}
        begun = self.stub.logged("start")
        return Damage(
            structures,
            self.done,
            structures - len(finals) + len(self.seen - {row.energy for row in rows}),
            sum(count > 1 for count in finals.values()),
            sum(at > stored_at.get(energy, at) for energy, at in begun),
            sum(count - 1 for count in Counter(self.stub.done).values()),
        )


def kill_the_program(folder: Path, kills: int, seed: int) -> Damage:
    """Kill a program that labels with a process pool, again and again."""
    stub, count = make_stub(folder, _SECONDS), _PER_KILL * kills
    killer = Killer(stub, folder, kills, seed)
    fork = multiprocessing.get_context("fork")  # else every start takes the seconds of imports
    while killer.done < kills:
        program = fork.Process(target=_label_all, args=(folder, count))
        program.start()
        killer.kill(lambda pid=program.pid: pid)
        program.join()
        if program.exitcode != -signal.SIGKILL:
            raise RuntimeError(f"the program ended before its kill, {killer.done} of {kills}")
        _wait_for(lambda: not stub.processes())  # the kernel ends what it was calculating
    for _ in range(_RUNS):
        _label_all(folder, count)
    return killer.damage(count)


def kill_workers(folder: Path, kills: int, seed: int) -> Damage:
    """Kill the workers of a Dask scheduler while they calculate."""
    from dask_cluster import Cluster  # of the tests

    stub, count = make_stub(folder, _SECONDS), _PER_KILL * kills
    killer = Killer(stub, folder, kills, seed)

    with contextlib.closing(Cluster(folder / "cluster", allowed_failures=3)) as cluster:

        def a_worker() -> int:
            while True:
                busy = filter(None, map(cluster.worker_of, stub.processes()))
                if workers := list(busy):
                    return killer.random.choice(workers)
                time.sleep(0.01)

        def kill_all() -> None:
            while killer.done < kills:
                killer.kill(a_worker)

        thread = threading.Thread(target=kill_all, daemon=True)
        thread.start()
        for _ in range(_RUNS):
            with executor_at(cluster.address) as executor:
                _label_all(folder, count, executor)
    if thread.is_alive():
        raise RuntimeError(f"all was done after {killer.done} of {kills} kills")
    return killer.damage(count)


def _label_all(folder: Path, count: int, executor: Executor | None = None) -> None:
    label(make_crystals(range(count)), cached_oracle(folder), executor=executor)


def _wait_for(condition: Callable[[], object], limit_s: float = 60.0) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > deadline:
            raise RuntimeError(f"nothing happened within {limit_s:.0f} s")
        time.sleep(0.01)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=50, help="in all (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (%(default)s)")
    options = parser.parse_args()
    halves = options.kills // 2, options.kills - options.kills // 2
    found = []
    for name, check, kills in zip(
        ("process pool", "Dask workers"), (kill_the_program, kill_workers), halves, strict=True
    ):
        with tempfile.TemporaryDirectory(prefix="crystal-gym-") as folder:
            found.append(check(Path(folder), kills, options.seed))
        print(f"{name}: {found[-1]}", flush=True)
    total = Damage(*map(sum, zip(*map(astuple, found), strict=True)))
    print(total)
    return 0 if total.none and total.kills == options.kills else 1


if __name__ == "__main__":
    sys.exit(main())
