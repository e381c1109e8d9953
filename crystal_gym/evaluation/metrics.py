"""How good finished crystals are: pure functions of tokens.

All rates are between 0 and 1. ``tokens`` and ``reference`` are int ``(B, max_sites)``, 0 beyond a
skeleton's sites (:meth:`crystal_gym.evaluation.rollout.Task.reference`).
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from crystal_gym.elements import ELEMENT_CLASS, EMPTY, formula_counts, reduced_formula
from crystal_gym.evaluation.rollout import Task
from crystal_gym.validity import smact_valid

__all__ = [
    "accuracy",
    "compositions",
    "exact_match",
    "novelty",
    "similarity",
    "validity",
]

Tokens = NDArray[np.integer]


def accuracy(tokens: Tokens, reference: Tokens) -> float:
    """Return the share of all sites that hold the element of the source crystal.

    Raises:
        ValueError: If the shapes differ or there are no sites.
    """
    sites = _sites(tokens, reference)
    return float((tokens[sites] == reference[sites]).mean())


def similarity(tokens: Tokens, reference: Tokens) -> float:
    """Return the share of all sites whose element is of the source element's class.

    The nine classes are :data:`crystal_gym.elements.CLASS_NAMES`.
    """
    sites = _sites(tokens, reference)
    filled = tokens[sites] != EMPTY
    same = ELEMENT_CLASS[tokens[sites] - 1] == ELEMENT_CLASS[reference[sites] - 1]
    return float((same & filled).mean())


def _sites(tokens: Tokens, reference: Tokens) -> NDArray[np.bool_]:
    if tokens.shape != reference.shape:
        raise ValueError(
            f"tokens of shape {tokens.shape} cannot be compared with a reference of shape "
            f"{reference.shape}: expected the same shape"
        )
    sites = reference != EMPTY
    if not sites.any():
        raise ValueError("the reference holds no elements: expected crystals with known species")
    return sites


def exact_match(tokens: Tokens, task: Task) -> float:
    """Return the share of crystals that equal their source, up to the skeleton's symmetry."""
    hits = 0
    for row, number in enumerate(task.skeleton.tolist()):
        skeleton = task.skeletons[number]
        mine, true = (t[row, : skeleton.n_sites] for t in (tokens, task.reference))
        hits += skeleton.canonical_tokens(mine) == skeleton.canonical_tokens(true)
    return hits / len(task)


def compositions(tokens: Iterable[Tokens]) -> set[str]:
    """Return the reduced formulas of crystals."""
    return {reduced_formula(row[row != EMPTY]) for row in tokens}


def novelty(tokens: Tokens, known: set[str]) -> float:
    """Return the share of crystals whose reduced formula is not in ``known``."""
    return float(np.mean([reduced_formula(row[row != EMPTY]) not in known for row in tokens]))


def validity(tokens: Tokens) -> float:
    """Return the share of crystals whose composition passes SMACT's test with ``smact14``."""
    return float(np.mean([smact_valid(formula_counts(row)) for row in tokens]))
