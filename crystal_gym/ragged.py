"""Runs of different lengths end to end in one array, and where each begins."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["run_entries", "run_starts", "take_runs"]


def run_starts(sizes: Sequence[int] | NDArray[np.integer]) -> NDArray[np.int64]:
    """Return ``[0, sizes[0], sizes[0] + sizes[1], ...]``, int64 ``(len(sizes) + 1,)``."""
    return np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])


def run_entries(
    first: NDArray[np.int64], sizes: NDArray[np.integer]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the entries of runs, laid end to end, and where each run begins there.

    Args:
        first: First entry of every run, ``(n_runs,)``.
        sizes: How many it has, ``(n_runs,)``.

    Returns:
        Positions of the entries, and the new starts, ``(n_runs + 1,)``.
    """
    new = run_starts(sizes)
    return np.repeat(first - new[:-1], sizes) + np.arange(new[-1]), new


def take_runs(
    starts: NDArray[np.int64], which: NDArray[np.integer]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the entries of some runs, laid end to end again, and where each begins there.

    Args:
        starts: First entry of every run, ``(n_runs + 1,)``.
        which: Numbers of the runs wanted, ``(n_wanted,)``.

    Returns:
        Positions of their entries, and the new starts, ``(n_wanted + 1,)``.
    """
    first = starts[which]
    return run_entries(first, starts[np.asarray(which) + 1] - first)
