"""Which elements keep a valid composition within reach: the mask ``"charge_neutral"``.

A partial filling can be completed if some elements on its empty sites give a composition that
passes :func:`crystal_gym.validity.smact_valid`. There are 88^k ways to fill k sites, but only the
atoms of every element matter, and of these only the total charge: for one cut between the
electronegativities of cations and anions, the charges within reach are a set of integers, which
grows element by element. Such a set is kept as the bits of one Python integer, so that adding a
charge to all of its members is a shift.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, reduce
from operator import or_

import numpy as np
from numpy.typing import NDArray

from crystal_gym.elements import ELEMENTS, EMPTY, N_ELEMENTS
from crystal_gym.validity import electronegativity, is_metal, smact_valid, states_at_cut

__all__ = ["ChargeNeutralMask"]

_MAX_SITES = 256
_ZERO = 10 * _MAX_SITES
"""Bit of charge 0: no element has a state beyond 9."""

Composition = tuple[tuple[int, int], ...]
"""Tokens and how many atoms of each, sorted."""


@dataclass(frozen=True)
class _Cut:
    """Cations at or below an electronegativity, anions above.

    Attributes:
        states: Oxidation states that each element may have, by token; none where it has no
            electronegativity.
        givers: Elements that may be chosen and have a state, by state, as bits of their tokens.
    """

    states: dict[int, tuple[int, ...]]
    givers: dict[int, int]


class ChargeNeutralMask:
    """Elements for the next site after which the crystal can still become valid.

    Exact: an element is allowed if and only if some choice of allowed elements for the sites that
    are left passes SMACT's test with ``smact14`` states, by neutrality with a Pauling order or as
    a single element or an alloy of metals. So a policy that follows the mask from an empty
    skeleton always ends at a valid composition.

    Args:
        elements: Elements that may be chosen, int8 ``(88,)``; None allows all.
    """

    def __init__(self, elements: NDArray[np.int8] | None = None) -> None:
        allowed = np.arange(N_ELEMENTS) if elements is None else np.flatnonzero(elements)
        self._tokens = tuple((allowed + 1).tolist())
        values = {electronegativity(symbol) for symbol in ELEMENTS}
        # From high to low: oxygen and fluorine are the usual anions, so most answers come early.
        self._cuts = [
            _cut(value, self._tokens)
            for value in sorted((v for v in values if v is not None), reverse=True)
        ]
        self._all_givers = reduce(or_, (g for cut in self._cuts for g in cut.givers.values()), 0)
        self._metals = sum(1 << t for t in self._tokens if is_metal(ELEMENTS[t - 1]))
        self._mask = lru_cache(maxsize=200_000)(self._mask_of)
        self._within_reach = lru_cache(maxsize=1_000_000)(self._can_be_completed)
        self._charges_of_new = lru_cache(maxsize=100_000)(self._charges_of_any_new)

    def __call__(self, tokens: Iterable[int], at_once: int = 1) -> NDArray[np.int8]:
        """Return the mask of the next site.

        Args:
            tokens: One entry a site, 0 where it is empty.
            at_once: How many empty sites the next element goes on.

        Returns:
            int8 ``(88,)``, read-only, 1 where an element may come; all 0 if nothing can save the
            crystal.

        Raises:
            ValueError: If fewer sites are empty, or there are more than 256.
        """
        counts = Counter(int(token) for token in tokens)
        empty = counts.pop(EMPTY, 0)
        if not 0 < empty + counts.total() <= _MAX_SITES or not 1 <= at_once <= empty:
            raise ValueError(
                f"{empty} of {empty + counts.total()} sites are empty: expected at least "
                f"{max(1, at_once)}, of at most {_MAX_SITES}"
            )
        return self._mask(tuple(sorted(counts.items())), empty, at_once)

    def allows(self, tokens: Iterable[int], token: int) -> bool:
        """Return whether an element may come next: one entry of the mask, for less than all.

        Args:
            tokens: As for a call; at least one site has to be empty.
            token: The element, 1 to 88.

        Returns:
            Whether a valid crystal is within reach after it; False also where no site is empty or
            the element may not be chosen.
        """
        counts = Counter(int(t) for t in tokens)
        empty = counts.pop(EMPTY, 0)
        if empty == 0 or token not in self._tokens:
            return False
        return self._completed_with(counts, token, 1, empty)

    def rows(
        self,
        tokens: NDArray[np.integer],
        n_sites: Sequence[int] | NDArray[np.integer],
        at_once: Sequence[int] | NDArray[np.integer] | None = None,
    ) -> NDArray[np.int8]:
        """Return the masks of many partial fillings.

        Args:
            tokens: ``(B, max_sites)``, 0 where a site is empty and beyond the last one.
            n_sites: Sites of each, ``(B,)``.
            at_once: How many empty sites the next element of each goes on, ``(B,)``; 1 by default.

        Returns:
            int8 ``(B, 88)``, each row as from a call.
        """
        numbers = np.ones(len(tokens), int) if at_once is None else np.asarray(at_once)
        rows = zip(tokens, n_sites, numbers.tolist(), strict=True)
        return np.stack([self(row[:n], many) for row, n, many in rows])

    def _mask_of(self, filled: Composition, empty: int, at_once: int) -> NDArray[np.int8]:
        mask = np.zeros(N_ELEMENTS, dtype=np.int8)
        # The quick answers are for one more atom.
        sure = self._surely_completed(filled, empty) if at_once == 1 else 0
        present = {token for token, _ in filled}
        for token in self._tokens:
            if sure >> token & 1:
                mask[token - 1] = 1
            # For another element on the last site what is sure is all there is.
            elif empty > 1 or token in present or not filled:
                mask[token - 1] = self._completed_with(dict(filled), token, at_once, empty)
        mask.setflags(write=False)
        return mask

    def _completed_with(
        self, filled: Mapping[int, int], token: int, at_once: int, empty: int
    ) -> bool:
        """Return whether a crystal can be completed after an element went on empty sites."""
        counts = {**filled, token: filled.get(token, 0) + at_once}
        return self._within_reach(tuple(sorted(counts.items())), empty - at_once)

    def _surely_completed(self, filled: Composition, empty: int) -> int:
        """Return elements (bits of their tokens) after which a simple completion is there.

        That is an alloy, or for a new element one by other elements still, each with a state that
        no one else is needed for.
        """
        present = sum(1 << token for token, _ in filled)
        sure, wanted = 0, self._all_givers & ~present
        if all(is_metal(ELEMENTS[token - 1]) for token, _ in filled):
            sure = self._metals
        for cut in self._cuts:
            if wanted & ~sure == 0:
                break
            if not all(cut.states[token] for token, _ in filled):
                continue
            old = _charges_of_present(cut, filled, 0)[0]
            new = _free_sums(_states_to_spare(cut.givers, present), empty - 1)[empty - 1]
            for state, givers in cut.givers.items():
                if _shifted(old, (state,), 1) & new:
                    sure |= givers & ~present
        return sure

    def _can_be_completed(self, filled: Composition, empty: int) -> bool:
        """Return whether allowed elements on ``empty`` more sites give a valid composition."""
        counts = {ELEMENTS[token - 1]: n for token, n in filled}
        if empty == 0:
            return smact_valid(counts)
        # The last element chosen may be chosen again: more of the same, or more of an alloy.
        if len(counts) == 1 or all(map(is_metal, counts)):
            return True
        present = tuple(token for token, _ in filled)
        cuts = [i for i, cut in enumerate(self._cuts) if all(cut.states[t] for t in present)]
        # Most answers need no more atoms of what is there.
        for number in cuts:
            new = self._charges_of_new(number, present, empty)
            if _charges_of_present(self._cuts[number], filled, 0)[0] & new[empty]:
                return True
        for number in cuts:
            new = self._charges_of_new(number, present, empty)
            old = _charges_of_present(self._cuts[number], filled, empty, self._tokens)
            if any(old[more] & new[empty - more] for more in range(1, empty + 1)):
                return True
        return False

    def _charges_of_any_new(
        self, number: int, present: tuple[int, ...], most: int
    ) -> tuple[int, ...]:
        """Return the *negated* charges that 0 to ``most`` atoms of other elements can add up to."""
        cut = self._cuts[number]
        taken = sum(1 << token for token in present)
        givers = {state: bits & ~taken for state, bits in cut.givers.items() if bits & ~taken}
        if _have_different_ones(list(givers.values())):
            return _free_sums(tuple(sorted(givers)), most)
        others = [t for t in self._tokens if t not in present and cut.states[t]]
        sums = [1 << _ZERO, *([0] * most)]
        for token in others:
            sums = _with_element(sums, cut.states[token], 0, sign=-1)
        return tuple(sums)


def _cut(value: float, tokens: Sequence[int]) -> _Cut:
    states = {t: states_at_cut(symbol, value) for t, symbol in enumerate(ELEMENTS, start=1)}
    givers: dict[int, int] = {}
    for token in tokens:
        for state in states[token]:
            givers[state] = givers.get(state, 0) | 1 << token
    return _Cut(states, givers)


def _states_to_spare(givers: dict[int, int], taken: int) -> tuple[int, ...]:
    """Return states that all have two givers of their own among those not taken.

    So one of them may be taken for something else.
    """
    counts = sorted(((bits & ~taken).bit_count(), state) for state, bits in givers.items())
    chosen: list[int] = []
    for count, state in counts:  # the rarest first: 2 for each before it, and 2 more
        if count >= 2 * len(chosen) + 2:
            chosen.append(state)
    return tuple(sorted(chosen))


def _charges_of_present(
    cut: _Cut, filled: Composition, most: int, growing: Sequence[int] = ()
) -> list[int]:
    """Return the charges of what is there and 0 to ``most`` more atoms of ``growing`` elements."""
    sums = [1 << _ZERO, *([0] * most)]
    for token, count in filled:
        if token in growing:
            sums = _with_element(sums, cut.states[token], count)
        else:
            sums = [_shifted(bits, cut.states[token], count) for bits in sums]
    return sums


def _with_element(
    sums: Sequence[int], states: Sequence[int], count: int, sign: int = 1
) -> list[int]:
    """Return the sums with ``count`` atoms of an element and any number of more."""
    out = []
    for n in range(len(sums)):
        bits = 0 if count else sums[n]
        for more in range(n + 1):
            if (count or more) and sums[n - more]:
                bits |= _shifted(sums[n - more], states, sign * (count + more))
        out.append(bits)
    return out


def _shifted(bits: int, states: Sequence[int], count: int) -> int:
    out = 0
    for state in states:
        by = state * count
        out |= bits << by if by >= 0 else bits >> -by
    return out


@lru_cache(maxsize=100_000)
def _free_sums(states: tuple[int, ...], most: int) -> tuple[int, ...]:
    """Return the negated sums of 0 to ``most`` charges, each of them any of ``states``."""
    sums = [1 << _ZERO]
    for _ in range(most):
        sums.append(_shifted(sums[-1], states, -1))
    return tuple(sums)


def _have_different_ones(sets: Sequence[int]) -> bool:
    """Return whether every set of bits can have one of its own (Hall's theorem, by matching)."""
    owner: dict[int, int] = {}

    def find(number: int, seen: set[int]) -> bool:
        bits = sets[number]
        while bits:
            bit = bits & -bits
            bits ^= bit
            if bit in seen:
                continue
            seen.add(bit)
            if bit not in owner or find(owner[bit], seen):
                owner[bit] = number
                return True
        return False

    return all(find(number, set()) for number in range(len(sets)))
