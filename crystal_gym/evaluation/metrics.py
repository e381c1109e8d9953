"""How good finished crystals are: pure functions of tokens, most of them crystal by crystal.

``tokens`` and ``reference`` are int ``(B, max_sites)``, 0 beyond a skeleton's sites
(:meth:`crystal_gym.evaluation.rollout.Task.reference`). What is counted is returned for each of
the ``B`` crystals, so that measures are sums over sums and a bootstrap can weigh crystals
(:mod:`crystal_gym.evaluation.intervals`); the measures themselves are shares between 0 and 1.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from crystal_gym.elements import (
    ELEMENT_CLASS,
    EMPTY,
    N_ELEMENTS,
    formula_counts,
    reduced_formula,
)
from crystal_gym.envs.observations import compact_rows
from crystal_gym.evaluation.rollout import Task, Valued
from crystal_gym.validity import smact_valid

__all__ = [
    "accuracy",
    "class_hits",
    "compositions",
    "differing_sites",
    "distinct_fillings",
    "element_hits",
    "exact_match",
    "formulas",
    "matches",
    "novel",
    "novelty",
    "similarity",
    "site_hits",
    "top_k_hits",
    "valid",
    "validity",
]

Tokens = NDArray[np.integer]
Counts = NDArray[np.int64]


# -- sites: against the source crystal -------------------------------------------------------------


def site_hits(tokens: Tokens, reference: Tokens) -> Counts:
    """Return how many sites of each crystal hold the element of the source crystal, ``(B,)``.

    Args:
        tokens: Of the fillings, ``(B, max_sites)``.
        reference: Of the source crystals, in the same places.

    Returns:
        Whole numbers, ``(B,)``.

    Raises:
        ValueError: If the shapes differ or there are no sites.
    """
    return (_sites(tokens, reference) & (tokens == reference)).sum(axis=1)


def class_hits(tokens: Tokens, reference: Tokens) -> Counts:
    """Return how many sites hold an element of the source element's class, ``(B,)``.

    The nine classes are :data:`crystal_gym.elements.CLASS_NAMES`.
    """
    filled = _sites(tokens, reference) & (tokens != EMPTY)
    return (filled & (ELEMENT_CLASS[tokens - 1] == ELEMENT_CLASS[reference - 1])).sum(axis=1)


def element_hits(tokens: Tokens, reference: Tokens) -> tuple[Counts, Counts]:
    """Return hits and sites of each crystal by element of the source, both ``(B, 88)``.

    The mean over elements of hits over sites is the macro accuracy: an element counts as much as
    any other, however rare.
    """
    row, site = np.nonzero(_sites(tokens, reference))
    element = reference[row, site].astype(np.int64) - 1
    sites = np.zeros((len(tokens), N_ELEMENTS), dtype=np.int64)
    hits = np.zeros_like(sites)
    np.add.at(sites, (row, element), 1)
    np.add.at(hits, (row, element), tokens[row, site] == reference[row, site])
    return hits, sites


def top_k_hits(
    policy: Valued,
    task: Task,
    target_gap: float | None,
    ks: Sequence[int] = (1, 3, 5),
    *,
    batch_size: int = 1024,
) -> Counts:
    """Return how many sites have the source element among the ``k`` best of a policy.

    Teacher-forced: every site is asked for with the sites before it, in the task's order, filled
    as in the source crystal, so that an early mistake is counted once. An element is among the
    ``k`` best if fewer than ``k`` have a higher value. No mask is applied.

    Args:
        policy: Gives the values.
        task: Skeletons, orders and source crystals.
        target_gap: eV; None for an unconditional policy.
        ks: The numbers ``k``.
        batch_size: Rows per call of the policy.

    Returns:
        int64 ``(B, len(ks))``.
    """
    steps = task.traversal >= 0
    row, step = np.nonzero(steps)
    rank_of_site = np.full(task.traversal.shape, task.traversal.shape[1], dtype=np.int64)
    rank_of_site[row, task.traversal[row, step]] = step
    hits = np.zeros((len(task), len(ks)), dtype=np.int64)
    for first in range(0, len(row), batch_size):
        rows, steps_now = row[first : first + batch_size], step[first : first + batch_size]
        focus = task.traversal[rows, steps_now]
        before = np.where(rank_of_site[rows] < steps_now[:, None], task.reference[rows], EMPTY)
        observations = compact_rows(task.skeletons, task.skeleton[rows], before, focus, target_gap)
        values = np.asarray(policy.values(observations))
        own = np.take_along_axis(
            values, task.reference[rows, focus].astype(np.int64)[:, None] - 1, 1
        )
        better = (values > own).sum(axis=1)
        np.add.at(hits, rows, better[:, None] < np.asarray(ks))
    return hits


def accuracy(tokens: Tokens, reference: Tokens) -> float:
    """Return the share of all sites that hold the element of the source crystal.

    Args:
        tokens: Of the fillings, ``(B, max_sites)``.
        reference: Of the source crystals, in the same places.

    Returns:
        From 0 to 1.

    Raises:
        ValueError: If the shapes differ or there are no sites.
    """
    return float(site_hits(tokens, reference).sum() / _sites(tokens, reference).sum())


def similarity(tokens: Tokens, reference: Tokens) -> float:
    """Return the share of all sites whose element is of the source element's class."""
    return float(class_hits(tokens, reference).sum() / _sites(tokens, reference).sum())


def _sites(tokens: Tokens, reference: Tokens) -> NDArray[np.bool_]:
    if tokens.shape != reference.shape:
        raise ValueError(
            f"tokens of shape {tokens.shape} cannot be compared with a reference of shape "
            f"{reference.shape}: expected the same shape"
        )
    sites: NDArray[np.bool_] = reference != EMPTY
    if not sites.any():
        raise ValueError("the reference holds no elements: expected crystals with known species")
    return sites


# -- crystals --------------------------------------------------------------------------------------


def matches(tokens: Tokens, task: Task) -> NDArray[np.bool_]:
    """Return which crystals equal their source, up to the skeleton's symmetry, ``(B,)``."""
    return _names(tokens, task) == _names(task.reference, task)


def exact_match(tokens: Tokens, task: Task) -> float:
    """Return the share of crystals that equal their source, up to the skeleton's symmetry."""
    return float(matches(tokens, task).mean())


def _names(tokens: Tokens, task: Task) -> NDArray[np.object_]:
    """Return one name for all fillings of a skeleton that symmetry makes the same, ``(B,)``."""
    names = np.empty(len(task), dtype=object)
    for row, number in enumerate(task.skeleton.tolist()):
        skeleton = task.skeletons[number]
        names[row] = skeleton.canonical_tokens(tokens[row, : skeleton.n_sites])
    return names


def formulas(tokens: Iterable[Tokens]) -> NDArray[np.str_]:
    """Return the reduced formula of each crystal, ``(B,)``."""
    return np.array([reduced_formula(row[row != EMPTY]) for row in tokens], dtype=np.str_)


def compositions(tokens: Iterable[Tokens]) -> set[str]:
    """Return the reduced formulas of crystals."""
    return {reduced_formula(row[row != EMPTY]) for row in tokens}


def novel(tokens: Tokens, known: set[str]) -> NDArray[np.bool_]:
    """Return which crystals have a reduced formula that is not in ``known``, ``(B,)``."""
    return np.array([formula not in known for formula in formulas(tokens).tolist()], dtype=np.bool_)


def novelty(tokens: Tokens, known: set[str]) -> float:
    """Return the share of crystals whose reduced formula is not in ``known``."""
    return float(novel(tokens, known).mean())


def valid(tokens: Tokens, states: str = "smact14") -> NDArray[np.bool_]:
    """Return which compositions pass SMACT's test, ``(B,)``.

    Args:
        tokens: The crystals.
        states: Oxidation states: ``smact14``, the paper's definition, or ``icsd24``, SMACT's own.

    Returns:
        One truth value a crystal.
    """
    return np.array([smact_valid(formula_counts(row), states) for row in tokens], dtype=np.bool_)


def validity(tokens: Tokens, states: str = "smact14") -> float:
    """Return the share of crystals whose composition passes SMACT's test."""
    return float(valid(tokens, states).mean())


# -- one skeleton, several targets -----------------------------------------------------------------


def distinct_fillings(designs: Sequence[Tokens], task: Task) -> Counts:
    """Return how many different crystals each skeleton was filled to, ``(B,)``.

    Args:
        designs: Fillings of the task, one array for each target; those that symmetry makes the
            same are the same.
        task: The skeletons.

    Returns:
        From 1 to the number of targets.
    """
    names = [_names(tokens, task) for tokens in designs]
    return np.array([len(set(row)) for row in zip(*names, strict=True)], dtype=np.int64)


def differing_sites(designs: Sequence[Tokens]) -> NDArray[np.float64]:
    """Return on how many sites two designs of a skeleton differ, the mean over pairs, ``(B,)``.

    Args:
        designs: Fillings of the same skeletons, one array ``(B, max_sites)`` for each target.

    Returns:
        Numbers of sites, ``(B,)``.

    Raises:
        ValueError: If there are fewer than two designs.
    """
    pairs = list(combinations(designs, 2))
    if not pairs:
        raise ValueError("one design alone differs from none: expected designs for two targets")
    return np.mean([(one != other).sum(axis=1) for one, other in pairs], axis=0)
