"""How good finished crystals are: pure functions of tokens.

All rates are between 0 and 1. ``tokens`` and ``reference`` are int ``(B, max_sites)``, 0 beyond a
skeleton's sites (:meth:`crystal_gym.evaluation.rollout.Task.reference`).
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from crystal_gym.elements import ELEMENT_CLASS, ELEMENTS, EMPTY, reduced_formula
from crystal_gym.evaluation.rollout import Task

__all__ = [
    "accuracy",
    "compositions",
    "exact_match",
    "novelty",
    "same_crystal",
    "similarity",
    "smact_valid",
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
    reference = task.reference
    hits = 0
    for row, number in enumerate(task.skeleton.tolist()):
        skeleton = task.skeletons[number]
        n = skeleton.n_sites
        mine, true = tokens[row, :n], reference[row, :n]
        hits += same_crystal(skeleton.permutations, mine, true)
    return hits / len(task)


def same_crystal(permutations: NDArray[np.int16], tokens: Tokens, other: Tokens) -> bool:
    """Return whether a symmetry operation turns one filling, ``(n_sites,)``, into the other."""
    return bool((tokens[permutations] == other).all(axis=1).any())


def compositions(tokens: Iterable[Tokens]) -> set[str]:
    """Return the reduced formulas of crystals."""
    return {reduced_formula(row[row != EMPTY]) for row in tokens}


def novelty(tokens: Tokens, known: set[str]) -> float:
    """Return the share of crystals whose reduced formula is not in ``known``."""
    return float(np.mean([reduced_formula(row[row != EMPTY]) not in known for row in tokens]))


def validity(tokens: Tokens, oxidation_states_set: str = "smact14") -> float:
    """Return the share of crystals whose composition passes SMACT's test (:func:`smact_valid`)."""
    return float(np.mean([smact_valid(row, oxidation_states_set) for row in tokens]))


def smact_valid(tokens: Tokens, oxidation_states_set: str = "smact14") -> bool:
    """Return whether a composition can be charge-neutral with ordered electronegativities.

    ``smact14`` is the definition of the paper (equal to CDVAE's); single elements and alloys of
    metals are valid. Davies et al., *J. Open Source Softw.* 2019, 4, 1361.

    Args:
        tokens: Element tokens of one crystal; zeros are left out.
        oxidation_states_set: Of :func:`smact.screening.smact_validity`.

    Raises:
        ValueError: If no site is filled.
    """
    counts = np.bincount(np.asarray(tokens), minlength=len(ELEMENTS) + 1)
    present = np.flatnonzero(counts[1:])
    if not present.size:
        raise ValueError("an empty skeleton has no composition: expected at least one element")
    amounts = counts[1:][present]
    amounts = amounts // np.gcd.reduce(amounts)
    key = tuple(zip((ELEMENTS[e] for e in present), amounts.tolist(), strict=True))
    return _smact_valid(key, oxidation_states_set)


@lru_cache(maxsize=1_000_000)
def _smact_valid(composition: tuple[tuple[str, int], ...], oxidation_states_set: str) -> bool:
    from smact.screening import smact_validity

    formula = "".join(f"{symbol}{count}" for symbol, count in composition)
    return bool(
        smact_validity(
            formula,
            use_pauling_test=True,
            include_alloys=True,
            oxidation_states_set=oxidation_states_set,
        )
    )
