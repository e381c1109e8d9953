"""Measures as functions of the weights of crystals, so that one bootstrap serves them all.

A *statistic* takes weights ``(R, B)``, a row for each of ``R`` resamples and a column for each of
``B`` crystals, and returns one value a row. With all weights 1 it is the measure itself; with the
number of times that a crystal was drawn it is the measure of a resample. All measures of all
methods see the same resamples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["Estimate", "Statistic", "earth_movers", "estimates", "mean_ratio", "ratio"]

Floats: TypeAlias = NDArray[np.float64]
Statistic: TypeAlias = Callable[[Floats], Floats]

_CHUNK = 100  # resamples at a time: bounds the memory of what a statistic makes of them


@dataclass(frozen=True)
class Estimate:
    """A measure and its interval; all three are NaN where there is nothing to measure.

    Attributes:
        value: Of the crystals at hand.
        low: 2.5th percentile of the resamples.
        high: 97.5th percentile of the resamples.
    """

    value: float
    low: float
    high: float


def ratio(numerator: ArrayLike, denominator: ArrayLike | None = None) -> Statistic:
    """Return the statistic "sum over sum", such as sites that are right over all sites.

    Args:
        numerator: ``(B,)``.
        denominator: ``(B,)``; 1 for each crystal if left out.

    Returns:
        A function of weights ``(B,)`` of the crystals.
    """
    above = np.asarray(numerator, dtype=np.float64)
    below = np.ones_like(above) if denominator is None else np.asarray(denominator, np.float64)
    _check_shapes(above, below, 1)

    def statistic(weights: Floats) -> Floats:
        return _divided(weights @ above, weights @ below)

    return statistic


def mean_ratio(numerators: ArrayLike, denominators: ArrayLike) -> Statistic:
    r"""Return the mean of several ratios, such as the accuracies of the elements.

    Those with nothing to divide by are left out. A resample may hold none of a rare element, and
    without it would have another mean of other things; so a ratio :math:`r` of a resample with
    weights :math:`w` is taken to first order, :math:`r + \sum_i w_i (n_i - r d_i) / \sum_i d_i`.

    Args:
        numerators: ``(B, K)``.
        denominators: ``(B, K)``.

    Returns:
        A function of weights ``(B,)`` of the crystals.
    """
    above, below = np.asarray(numerators, np.float64), np.asarray(denominators, np.float64)
    _check_shapes(above, below, 2)
    there = below.sum(axis=0) > 0
    above, below = above[:, there], below[:, there]
    total = below.sum(axis=0)
    shares = above.sum(axis=0) / total
    change = ((above - shares * below) / total).sum(axis=1)

    def statistic(weights: Floats) -> Floats:
        count = np.full(len(weights), len(shares), dtype=np.float64)
        return _divided(shares.sum() + weights @ change, count)

    return statistic


def _check_shapes(above: Floats, below: Floats, n_dimensions: int) -> None:
    if above.shape != below.shape or above.ndim != n_dimensions:
        raise ValueError(
            f"a ratio of arrays of shapes {above.shape} and {below.shape}: expected the same "
            f"shape, of {n_dimensions} dimension{'s' * (n_dimensions > 1)}"
        )


def earth_movers(values: ArrayLike, reference: ArrayLike) -> Statistic:
    r"""Return the earth mover's (first Wasserstein) distance between two sets of numbers.

    .. math:: \int \lvert F(x) - G(x) \rvert \, dx

    with the two cumulative distributions. A crystal that is drawn counts in both.

    Args:
        values: ``(B,)``, NaN where there is none.
        reference: ``(B,)``, NaN where there is none.

    Returns:
        A function of weights ``(B,)``, in the unit of the values.
    """
    sides = [_Cumulative(np.asarray(x, dtype=np.float64)) for x in (values, reference)]
    grid = np.sort(np.concatenate([side.values for side in sides]))

    def statistic(weights: Floats) -> Floats:
        (mine, total), (other, other_total) = (side.at(grid[:-1], weights) for side in sides)
        both = (total > 0) & (other_total > 0)
        difference = np.abs(
            mine / np.where(both, total, 1.0)[:, None]
            - other / np.where(both, other_total, 1.0)[:, None]
        )
        return np.where(both, difference @ np.diff(grid), np.nan)

    return statistic


class _Cumulative:
    """Sorted numbers, and how much weight lies at or below a point."""

    def __init__(self, column: Floats) -> None:
        rows = np.flatnonzero(np.isfinite(column))
        self._rows = rows[np.argsort(column[rows], kind="stable")]
        self.values: Floats = column[self._rows]

    def at(self, points: Floats, weights: Floats) -> tuple[Floats, Floats]:
        sums = np.zeros((len(weights), len(self._rows) + 1))
        np.cumsum(weights[:, self._rows], axis=1, out=sums[:, 1:])
        return sums[:, np.searchsorted(self.values, points, side="right")], sums[:, -1]


def estimates(
    statistics: Mapping[str, Statistic], n_crystals: int, *, resamples: int = 1000, seed: int = 0
) -> dict[str, Estimate]:
    """Return measures with 95% percentile intervals of a bootstrap over crystals.

    Args:
        statistics: By name.
        n_crystals: How many crystals their weights are for.
        resamples: How many times ``n_crystals`` of them are drawn, with replacement.
        seed: Of the draws.

    Returns:
        Value and interval by name.

    Raises:
        ValueError: If there are no crystals, or no resamples.
    """
    if n_crystals < 1 or resamples < 1:
        raise ValueError(
            f"{n_crystals} crystals and {resamples} resamples: expected at least one of each"
        )
    ones = np.ones((1, n_crystals))
    values = {name: float(statistic(ones)[0]) for name, statistic in statistics.items()}
    drawn: dict[str, list[Floats]] = {name: [] for name in statistics}
    for weights in _resampled(n_crystals, resamples, seed):
        for name, statistic in statistics.items():
            drawn[name].append(statistic(weights))
    return {name: _estimate(values[name], np.concatenate(drawn[name])) for name in statistics}


def _resampled(n_crystals: int, resamples: int, seed: int) -> Iterator[Floats]:
    generator = np.random.default_rng(seed)
    for first in range(0, resamples, _CHUNK):
        rows = min(_CHUNK, resamples - first)
        drawn = generator.integers(n_crystals, size=(rows, n_crystals))
        flat = drawn + n_crystals * np.arange(rows)[:, None]
        counts = np.bincount(flat.ravel(), minlength=rows * n_crystals)
        yield counts.reshape(rows, n_crystals).astype(np.float64)


def _estimate(value: float, resampled: Floats) -> Estimate:
    # A resample without anything to measure (no calculation that succeeded) has no say.
    there = resampled[np.isfinite(resampled)]
    if not np.isfinite(value) or not len(there):
        return Estimate(np.nan, np.nan, np.nan)
    low, high = np.percentile(there, (2.5, 97.5))
    return Estimate(value, float(low), float(high))


def _divided(above: Floats, below: Floats) -> Floats:
    """Return quotients, NaN where there is nothing to divide by."""
    return np.divide(above, below, out=np.full_like(above, np.nan), where=below > 0)
