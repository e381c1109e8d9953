"""Whether a composition is chemically plausible: SMACT's test, exactly, in polynomial time.

:func:`smact.screening.smact_validity` tries every combination of oxidation states, which for the
twenty different elements that a random policy puts on twenty sites takes longer than anyone will
wait. The same answer follows from two observations. A combination passes the Pauling test exactly
if some electronegativity separates the cations (below or at it) from the anions (above). For one
such cut the charges that can be reached are a set of integers that grows element by element.

References:
    Davies et al., *SMACT: Semiconducting Materials by Analogy and Chemical Theory*, J. Open Source
    Softw. 2019, 4, 1361, doi 10.21105/joss.01361. Oxidation states and electronegativities are
    SMACT's; ``smact14`` is the set behind the paper's validity (equal to CDVAE's), ``icsd24`` the
    default of SMACT 4: states that the ICSD of 2024 reports three times or more.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cache, lru_cache

__all__ = [
    "STATE_SETS",
    "are_common",
    "charge_assignment",
    "electronegativity",
    "is_metal",
    "smact_valid",
    "states_at_cut",
]

STATE_SETS = ("smact14", "icsd24")
"""Sets of oxidation states: the paper's, and the default of SMACT 4."""


def smact_valid(counts: Mapping[str, int], states: str = "smact14") -> bool:
    """Return whether a composition passes SMACT's test with a set of oxidation states.

    Single elements and alloys of metals pass. Any other composition passes if one oxidation state
    for each element makes it neutral with every cation less electronegative than every anion.

    Args:
        counts: Atoms of each element, by symbol.
        states: One of :data:`STATE_SETS`.

    Returns:
        True if it passes; only the ratio of the counts matters.

    Raises:
        ValueError: If there are no atoms, or no such set.
    """
    if states not in STATE_SETS:
        raise ValueError(
            f"states={states!r} is no set of oxidation states: expected one of "
            f"{', '.join(STATE_SETS)}"
        )
    if not counts or min(counts.values()) < 1:
        raise ValueError(
            f"{dict(counts)} is no composition: expected at least one atom of each element named"
        )
    divisor = math.gcd(*counts.values())
    return _valid(tuple(sorted((symbol, n // divisor) for symbol, n in counts.items())), states)


@lru_cache(maxsize=1_000_000)
def _valid(composition: tuple[tuple[str, int], ...], states: str) -> bool:
    symbols = [symbol for symbol, _ in composition]
    if len(symbols) == 1 or all(map(is_metal, symbols)):
        return True
    if any(electronegativity(s) is None or not _oxidation_states(s, states) for s in symbols):
        return False
    cuts = {electronegativity(s) for s in symbols}
    return any(_neutral_below(composition, cut, states) for cut in cuts if cut is not None)


def charge_assignment(counts: Mapping[str, int]) -> dict[str, int] | None:
    """Return one oxidation state an element that makes a composition valid.

    Of several assignments that pass the test it is the one with most atoms in a state that is
    common for their element (pymatgen's ``common_oxidation_states``), then the one of the smallest
    charges. Elements of a pure element or an alloy are neutral.

    Args:
        counts: Atoms of each element, by symbol.

    Returns:
        States by symbol; None if the composition is not valid (smact14).

    Raises:
        ValueError: If there are no atoms.
    """
    if not smact_valid(counts):
        return None
    if len(counts) == 1 or all(map(is_metal, counts)):
        return dict.fromkeys(counts, 0)
    cuts = {electronegativity(symbol) for symbol in counts} - {None}
    found = (_likeliest_below(counts, cut) for cut in cuts if cut is not None)
    return max((f for f in found if f is not None), key=lambda f: f[0])[1]


def are_common(charges: Mapping[str, int]) -> bool:
    """Return whether every element has a state that is common for it, as pymatgen lists them.

    Neutral atoms, as in alloys and pure elements, have none.
    """
    from pymatgen.core import Element

    return all(n in Element(symbol).common_oxidation_states for symbol, n in charges.items())


def _likeliest_below(
    counts: Mapping[str, int], cut: float
) -> tuple[tuple[int, int], dict[str, int]] | None:
    """Return the best assignment for one cut, after how many atoms are common and how charged."""
    from pymatgen.core import Element

    best: dict[int, tuple[tuple[int, int], dict[str, int]]] = {0: ((0, 0), {})}
    for symbol, n in counts.items():
        common = Element(symbol).common_oxidation_states
        grown: dict[int, tuple[tuple[int, int], dict[str, int]]] = {}
        for charge, ((usual, size), states) in best.items():
            for state in states_at_cut(symbol, cut):
                rank = (usual + n * (state in common), size - n * abs(state))
                other = grown.get(charge + n * state)
                if other is None or rank > other[0]:
                    grown[charge + n * state] = (rank, {**states, symbol: state})
        best = grown
    return best.get(0)


def _neutral_below(composition: tuple[tuple[str, int], ...], cut: float, states: str) -> bool:
    """Return whether neutrality is in reach with cations at or below ``cut``, anions above."""
    charges = {0}
    for symbol, count in composition:
        allowed = [count * state for state in states_at_cut(symbol, cut, states)]
        charges = {charge + added for charge in charges for added in allowed}
    return 0 in charges


@cache
def states_at_cut(symbol: str, cut: float, states: str = "smact14") -> tuple[int, ...]:
    """Return an element's states with cations at or below an electronegativity, anions above."""
    own = electronegativity(symbol)
    if own is None:
        return ()
    sign = 1 if own <= cut else -1
    return tuple(state for state in _oxidation_states(symbol, states) if sign * state >= 0)


def is_metal(symbol: str) -> bool:
    """Return whether SMACT counts an element among the metals."""
    return symbol in _metals()


@cache
def _metals() -> frozenset[str]:
    import smact

    return frozenset(smact.metals)


@cache
def electronegativity(symbol: str) -> float | None:
    """Return Pauling's electronegativity, None where SMACT has none."""
    import smact

    value = smact.Element(symbol).pauling_eneg
    return None if value is None else float(value)


@cache
def _oxidation_states(symbol: str, states: str) -> tuple[int, ...]:
    import smact

    if states == "icsd24":
        return _icsd24().get(symbol, ())
    return tuple(smact.Element(symbol).oxidation_states_smact14 or ())


@cache
def _icsd24() -> dict[str, tuple[int, ...]]:
    from smact.utils.oxidation import ICSD24OxStatesFilter

    # The arguments are SMACT 4's defaults; those of 3.2 were others.
    table = ICSD24OxStatesFilter().filter(consensus=3, include_zero=False, commonality="low")
    rows = zip(table["element"], table["oxidation_state"], strict=True)
    return {str(element): tuple(map(int, str(found).split())) for element, found in rows}
