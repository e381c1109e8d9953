"""Labelling many structures: several workers, one database, resumable at any moment."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import BrokenExecutor, Executor, Future, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import TYPE_CHECKING

from tqdm import tqdm

from crystal_gym.cluster import WorkersDiedError
from crystal_gym.oracles.base import Properties, Status
from crystal_gym.oracles.cache import CachedOracle
from crystal_gym.pools import process_pool

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
    from there. Structures that are the same crystal are calculated once. On a cluster, a structure
    that ends every worker it comes to has the status ``memory_or_signal``; the others go on.

    Args:
        structures: Any number.
        oracle: What calculates, with the database that remembers.
        workers: Processes.
        executor: Anything with the :class:`concurrent.futures.Executor` interface (such as that of
            :func:`crystal_gym.cluster.executor_at`), instead of processes on this machine. Workers
            that reach no common database may each have one: what they send back is stored here as
            well.
        progress: Show a progress bar on standard error.

    Returns:
        Properties in the order of ``structures``.

    Raises:
        ValueError: If ``workers`` is below 1.
        BrokenExecutor: If a worker process was killed, or the cluster is gone. What came back
            until then is stored.
    """
    if workers < 1:
        raise ValueError(f"workers={workers}: expected at least 1")
    oracle.store.refresh()
    results: list[Properties | None] = [oracle.known(s) for s in structures]
    todo = _same_crystals(oracle, structures, [i for i, r in enumerate(results) if r is None])
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
        pool = executor or process_pool(workers)
        futures: dict[Future[Properties], list[int]] = {}
        broken: BrokenExecutor | None = None
        try:
            for group in todo:
                futures[pool.submit(_evaluate, oracle, structures[group[0]])] = group
            for future in as_completed(futures):
                group = futures[future]
                try:
                    properties = _outcome(future)
                except BrokenExecutor as error:  # others may have come back before
                    broken = error
                    continue
                oracle.remember(structures[group[0]], properties)
                for i in group:
                    results[i] = properties
                statuses[str(properties.status)] += len(group)
                bar.set_postfix(statuses, refresh=False)
                bar.update(len(group))
        finally:
            for future in futures:
                future.cancel()  # all are done, unless something went wrong
            if executor is None:
                _stop(pool)
    if isinstance(broken, BrokenProcessPool):
        raise BrokenExecutor(
            "a worker process was killed (out of memory?): what was finished is stored; run again "
            "to go on, with fewer workers where memory was short"
        ) from broken
    if broken is not None:
        raise broken
    return [r for r in results if r is not None]


def _same_crystals(
    oracle: CachedOracle, structures: Sequence[Structure], which: Sequence[int]
) -> list[list[int]]:
    """Group positions that hold the same crystal; what is no usable crystal stands alone."""
    groups: dict[str | int, list[int]] = {}
    for i in which:
        groups.setdefault(oracle.crystal(structures[i]) or i, []).append(i)
    return list(groups.values())


def _outcome(future: Future[Properties]) -> Properties:
    try:
        return future.result()
    except WorkersDiedError as error:
        return Properties(status=Status.MEMORY_OR_SIGNAL, provenance=str(error))


def _evaluate(oracle: CachedOracle, structure: Structure) -> Properties:
    return oracle.evaluate([structure])[0]


def _stop(pool: Executor) -> None:
    """End the workers of a pool at once; the kernel then ends the calculations they wait for."""
    workers = list((getattr(pool, "_processes", None) or {}).values())
    pool.shutdown(wait=False, cancel_futures=True)
    for worker in workers:
        worker.kill()
    for worker in workers:
        worker.join()
