"""The 88 elements an agent may place, their tokens and their classes.

An *action* ``a`` (0 to 87) is a position in :data:`ELEMENTS`, ordered by atomic number.
An *element token* is ``a + 1``; token 0 is :data:`EMPTY`, a site that is not filled yet.
"""

from __future__ import annotations

import difflib
import math
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "ATOMIC_NUMBERS",
    "CLASS_NAMES",
    "ELEMENTS",
    "ELEMENT_CLASS",
    "EMPTY",
    "GROUP",
    "N_ELEMENTS",
    "PERIOD",
    "element_mask",
    "formula_counts",
    "mask_rows",
    "reduced_formula",
    "symbol_to_token",
    "tokens_to_symbols",
]

EMPTY = 0
"""Token of a site without an element."""

# Z = 1 to 83 without Po, At, Rn, Fr and Ra (84 to 88), then Ac Th Pa U Np Pu.
_PERIODIC = (
    "H He Li Be B C N O F Ne Na Mg Al Si P S Cl Ar K Ca Sc Ti V Cr Mn Fe Co Ni Cu Zn Ga Ge As Se "
    "Br Kr Rb Sr Y Zr Nb Mo Tc Ru Rh Pd Ag Cd In Sn Sb Te I Xe Cs Ba La Ce Pr Nd Pm Sm Eu Gd Tb "
    "Dy Ho Er Tm Yb Lu Hf Ta W Re Os Ir Pt Au Hg Tl Pb Bi Po At Rn Fr Ra Ac Th Pa U Np Pu"
).split()
_ABSENT = {"Ar", "Po", "At", "Rn", "Fr", "Ra"}

ELEMENTS: tuple[str, ...] = tuple(s for s in _PERIODIC if s not in _ABSENT)
"""Element symbols in action order."""

N_ELEMENTS = len(ELEMENTS)
ATOMIC_NUMBERS: NDArray[np.int64] = np.array(
    [z for z, s in enumerate(_PERIODIC, start=1) if s not in _ABSENT]
)
"""Atomic number of every action, shape ``(88,)``."""

_NOBLE = np.array([0, 2, 10, 18, 36, 54, 86])
"""Atomic numbers that end the periods, and 0."""

PERIOD: NDArray[np.int64] = np.searchsorted(_NOBLE, ATOMIC_NUMBERS)
"""Period of every action in the periodic table, 1 to 7, shape ``(88,)``."""


def _group(z: int, period: int) -> int:
    place, length = z - int(_NOBLE[period - 1]), (2, 8, 8, 18, 18, 32, 32)[period - 1]
    if place <= (1 if period == 1 else 2):
        return place
    return max(3, place + 18 - length)


GROUP: NDArray[np.int64] = np.array(
    [_group(z, p) for z, p in zip(ATOMIC_NUMBERS.tolist(), PERIOD.tolist(), strict=True)]
)
"""Group of every action, 1 to 18, shape ``(88,)``; lanthanides and actinides are in group 3."""

_TOKEN = {symbol: action + 1 for action, symbol in enumerate(ELEMENTS)}

# The paper's nine classes for "similarity" (Govindarajan et al. 2024, section 4.3). Where the
# text leaves an element open we follow its usual table: H with the nonmetals, group 12 with the
# transition metals, metalloids on their side of the staircase (B, Si, Ge, As, Sb, Te below).
CLASS_NAMES = (
    "group 1",
    "group 2",
    "transition",
    "post-transition",
    "nonmetals",
    "halogens",
    "noble",
    "lanthanides",
    "actinides",
)
_CLASS_MEMBERS = (
    "Li Na K Rb Cs",
    "Be Mg Ca Sr Ba",
    "Sc Ti V Cr Mn Fe Co Ni Cu Zn Y Zr Nb Mo Tc Ru Rh Pd Ag Cd Hf Ta W Re Os Ir Pt Au Hg",
    "Al Ga In Sn Tl Pb Bi Ge Sb",
    "H B C N O Si P S As Se Te",
    "F Cl Br I",
    "He Ne Kr Xe",
    "La Ce Pr Nd Pm Sm Eu Gd Tb Dy Ho Er Tm Yb Lu",
    "Ac Th Pa U Np Pu",
)
ELEMENT_CLASS: NDArray[np.int64] = np.array(
    [next(i for i, m in enumerate(_CLASS_MEMBERS) if s in m.split()) for s in ELEMENTS]
)
"""Class (position in :data:`CLASS_NAMES`) of every action, shape ``(88,)``."""


def symbol_to_token(symbol: str) -> int:
    """Return the token of an element.

    Args:
        symbol: With a capital: ``"Fe"``, not ``"fe"``.

    Returns:
        1 to 88: the place in :data:`ELEMENTS`, counted from 1.

    Raises:
        ValueError: If the element is not one of the 88, naming close matches.
    """
    token = _TOKEN.get(symbol)
    if token is None:
        close = difflib.get_close_matches(str(symbol), ELEMENTS, n=3, cutoff=0.5)
        hint = f" Did you mean {', '.join(close)}?" if close else ""
        raise ValueError(
            f"element {str(symbol)[:50]!r} is not supported: expected one of the {N_ELEMENTS} "
            f"elements H to Bi and Ac to Pu without Ar, Po, At, Rn, Fr, Ra.{hint}"
        )
    return token


def tokens_to_symbols(tokens: Iterable[int]) -> list[str | None]:
    """Return element symbols, ``None`` for an empty site."""
    return [ELEMENTS[t - 1] if t != EMPTY else None for t in tokens]


def element_mask(elements: Sequence[str] | None) -> NDArray[np.int8]:
    """Return the action mask that allows some elements.

    Args:
        elements: Symbols; None allows all 88.

    Returns:
        int8 ``(88,)``, 1 where an element is allowed.

    Raises:
        TypeError: If ``elements`` is one string instead of a sequence of symbols.
        ValueError: If it is empty or names an unknown element.
    """
    if elements is None:
        return np.ones(N_ELEMENTS, dtype=np.int8)
    if isinstance(elements, str) or not isinstance(elements, Iterable):
        what = "one string" if isinstance(elements, str) else "no list"
        raise TypeError(
            f"elements={elements!r} is {what}: expected a list of symbols such as ['Zn', 'S']"
        )
    mask = np.zeros(N_ELEMENTS, dtype=np.int8)
    for symbol in elements:
        mask[symbol_to_token(symbol) - 1] = 1
    if not mask.any():
        raise ValueError("elements is empty: name at least one element, or leave it out for all 88")
    return mask


def mask_rows(action_mask: NDArray[np.integer], n_rows: int) -> NDArray[np.bool_]:
    """Return which actions are allowed for each of some observations.

    Args:
        action_mask: 1 where an action is allowed, ``(n_rows, 88)``, or ``(88,)`` for all rows.
        n_rows: Number of observations.

    Returns:
        bool ``(n_rows, 88)``, read-only.

    Raises:
        ValueError: If the shape does not fit or a row allows nothing.
    """
    mask = np.asarray(action_mask)
    if mask.shape not in {(N_ELEMENTS,), (n_rows, N_ELEMENTS)}:
        raise ValueError(
            f"action_mask has shape {mask.shape}: expected ({N_ELEMENTS},) or "
            f"({n_rows}, {N_ELEMENTS}) for {n_rows} observations"
        )
    rows = np.broadcast_to(mask != 0, (n_rows, N_ELEMENTS))
    empty = np.flatnonzero(~rows.any(axis=1))
    if empty.size:
        raise ValueError(
            f"action_mask allows no action in row {empty[0]}: expected at least one 1 a row; "
            "leave finished episodes out"
        )
    return rows


def formula_counts(tokens: NDArray[np.integer]) -> dict[str, int]:
    """Return ``{symbol: count}`` of the filled sites, ordered by atomic number."""
    counts = np.bincount(np.asarray(tokens), minlength=N_ELEMENTS + 1)
    return {ELEMENTS[t - 1]: int(counts[t]) for t in np.flatnonzero(counts) if t != EMPTY}


# A formula only has to be unambiguous and familiar: metals first as in the classes above, then
# nonmetals, then halogens, by atomic number within.
_FORMULA_KEY = [  # by token
    (0, 0),
    *(
        ((0, 0, 1, 2, 3, 4, 4, 1, 1)[c], int(z))
        for c, z in zip(ELEMENT_CLASS, ATOMIC_NUMBERS, strict=True)
    ),
]


def reduced_formula(tokens: NDArray[np.integer]) -> str:
    """Return a reduced formula such as ``"MgO"``; empty sites are written as ``"□"``."""
    counts = Counter(np.asarray(tokens).tolist())
    divisor = math.gcd(*counts.values()) or 1
    n_empty = counts.pop(EMPTY, 0)
    parts = [(ELEMENTS[t - 1], counts[t]) for t in sorted(counts, key=_FORMULA_KEY.__getitem__)]
    if n_empty:
        parts.append(("□", n_empty))
    return "".join(s + (str(n // divisor) if n > divisor else "") for s, n in parts)
