"""Labelling many structures: several workers, one database, resumable at any moment."""

from __future__ import annotations

import multiprocessing
import signal
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, as_completed
from typing import TYPE_CHECKING

from tqdm import tqdm

from crystal_gym.crystal_key import structure_key
from crystal_gym.oracles.base import Properties
from crystal_gym.oracles.cache import CachedOracle
from crystal_gym.oracles.espresso.process import die_with_parent

if TYPE_CHECKING:
    from pymatgen.core import Structure

__all__ = ["label"]


def label(
    structures: Sequence[Structure],
    oracle: CachedOracle,
    *,
    workers: int = 2,
    executor: Executor | None = None,
    progress: bool = False,
) -> list[Properties]:
    """Return the properties of many structures, calculated by several workers.

    Every worker stores what it has finished before it takes the next structure, so an
    interruption, or a killed process, loses only what was being calculated; the next run goes on
    from there. Structures that are the same crystal are calculated once.

    Args:
        structures: Any number.
        oracle: What calculates, with the database that remembers.
        workers: Processes.
        executor: Anything with the :class:`concurrent.futures.Executor` interface (such as a Dask
            client's), instead of processes on this machine.
        progress: Show a progress bar on standard error.

    Returns:
        Properties in the order of ``structures``.
    """
    results: list[Properties | None] = [oracle.known(s) for s in structures]
    same = _same_crystals(structures, [i for i, r in enumerate(results) if r is None])
    statuses = Counter(str(r.status) for r in results if r is not None)
    with tqdm(
        total=len(structures),
        initial=sum(statuses.values()),
        desc="labelling",
        unit="crystal",
        smoothing=0.05,
        disable=not progress,
    ) as bar:
        bar.set_postfix(statuses)
        pool = executor or _pool(workers)
        try:
            futures = {
                pool.submit(_evaluate, oracle, structures[group[0]]): group for group in same
            }
            for future in as_completed(futures):
                for i in futures[future]:
                    results[i] = future.result()
                    statuses[str(future.result().status)] += 1
                bar.update(len(futures[future]))
                bar.set_postfix(statuses, refresh=False)
        except BaseException:
            if executor is None:
                _stop(pool)
            raise
        finally:
            if executor is None:
                pool.shutdown(cancel_futures=True)
    oracle.store.refresh()
    return [r for r in results if r is not None]


def _same_crystals(structures: Sequence[Structure], which: Sequence[int]) -> list[list[int]]:
    """Group positions that hold the same crystal; what is no usable crystal stands alone."""
    groups: dict[object, list[int]] = {}
    for i in which:
        try:
            key: object = structure_key(structures[i])
        except ValueError:
            key = i
        groups.setdefault(key, []).append(i)
    return list(groups.values())


def _evaluate(oracle: CachedOracle, structure: Structure) -> Properties:
    return oracle.evaluate([structure])[0]


def _pool(workers: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(workers, initializer=_start_worker)


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which then stops us
    die_with_parent()


def _stop(pool: Executor) -> None:
    """End the workers of a pool at once; the kernel then ends the calculations they wait for."""
    pool.shutdown(wait=False, cancel_futures=True)
    for worker in multiprocessing.active_children():
        worker.kill()
