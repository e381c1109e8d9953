"""Checks of columns that come from a file: shapes, kinds of numbers, and what they point to.

A file of arrays can be well-formed and yet say that a site has the number 30,000. Whatever reads
columns from a file checks them once, so that nothing behind it has to.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["require_columns", "require_range", "require_range_of_runs", "require_starts"]

_BLOCK = 1 << 20
"""Values that are looked at together."""


def require_columns(
    columns: Mapping[str, NDArray[Any]], expected: Mapping[str, tuple[str, tuple[int | None, ...]]]
) -> None:
    """Refuse columns of other kinds or shapes than expected.

    Args:
        columns: Arrays by name.
        expected: NumPy's letter for the kind of each (``i``, ``f``, ``U``) and its shape, None
            where a length is free.

    Raises:
        ValueError: If one does not fit, naming it.
    """
    for name, (kind, shape) in expected.items():
        column = columns[name]
        fits = len(column.shape) == len(shape) and all(
            want in (None, found) for want, found in zip(shape, column.shape, strict=True)
        )
        if column.dtype.kind != kind or not fits:
            wanted = "x".join("n" if n is None else str(n) for n in shape)
            raise ValueError(
                f"{name} is {column.dtype} of shape {column.shape}: expected kind {kind!r} of "
                f"shape {wanted}"
            )


def require_range(name: str, column: NDArray[Any], low: float, high: Any) -> None:
    """Refuse a column with a value below ``low``, not below ``high``, or not a number.

    Args:
        name: Of the column.
        column: Any shape.
        low: Smallest value allowed.
        high: What all values have to be below: a number, or one for each.

    Raises:
        ValueError: If one is outside.
    """
    ends = np.broadcast_to(high, column.shape) if np.ndim(high) else None
    for first in range(0, len(column), _BLOCK):  # a large column is mapped, and stays so
        part = column[first : first + _BLOCK]
        below = high if ends is None else ends[first : first + _BLOCK]
        if not np.all((part >= low) & (part < below)):
            raise ValueError(f"{name} holds a value outside its range, which begins at {low:g}")


def require_range_of_runs(
    name: str, column: NDArray[Any], starts: NDArray[np.integer], high: NDArray[np.integer]
) -> None:
    """Refuse a column of runs with a value below 0 or not below that of its run.

    Args:
        name: Of the column.
        column: Its last axis is made of runs.
        starts: Of the runs, and the end of the last one, ``(R + 1,)``.
        high: What the values of every run have to be below, ``(R,)``.

    Raises:
        ValueError: If one is outside.
    """
    first, count = 0, len(high)
    starts = starts.astype(np.int64)  # a hostile file may have them in a byte each
    while first < count:
        last = int(np.searchsorted(starts, starts[first] + _BLOCK, "right")) - 1
        last = min(max(last, first + 1), count)
        below = np.repeat(high[first:last], np.diff(starts[first : last + 1]))
        part = column[..., starts[first] : starts[last]]
        if not np.all((part >= 0) & (part < below)):
            raise ValueError(f"{name} holds a value outside its range, which begins at 0")
        first = last


def require_starts(name: str, starts: NDArray[np.integer], end: int) -> None:
    """Refuse starts of runs that do not go from 0 to ``end`` without a step back.

    Args:
        name: Of the column, for the error.
        starts: First entry of every run, and the end of the last one, ``(R + 1,)``.
        end: Entries of all runs together.

    Raises:
        ValueError: If they do not.
    """
    if len(starts) < 2 or starts[0] != 0 or starts[-1] != end or np.any(np.diff(starts) < 0):
        raise ValueError(f"{name} is no ascending list from 0 to {end:,}")
