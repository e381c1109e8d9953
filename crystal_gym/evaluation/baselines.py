"""What any trained policy has to beat: two policies, and two chemists' habits.

None of them sees the elements of the skeletons that they fill.
"""

from __future__ import annotations

from functools import cache, cached_property
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from crystal_gym.charge_masks import ChargeNeutralMask
from crystal_gym.datasets.trajectories import Trajectories
from crystal_gym.elements import ELEMENTS, N_ELEMENTS, formula_counts, symbol_to_token
from crystal_gym.evaluation.prototypes import PrototypeLibrary
from crystal_gym.evaluation.rollout import Task

if TYPE_CHECKING:
    from pymatgen.analysis.structure_prediction.substitution_probability import (
        SubstitutionProbability,
    )

__all__ = [
    "Designer",
    "MajorityPolicy",
    "NearestNeighbour",
    "RandomBalanced",
    "RandomPolicy",
    "Substitution",
]


class Designer(Protocol):
    """Anything that fills skeletons; a policy does through :func:`rollout`."""

    def __call__(self, task: Task, target_gap: float | None) -> NDArray[np.int16]:
        """Return element tokens, int16 ``(B, max_sites)``, 0 beyond a skeleton's sites.

        Args:
            task: Skeletons and orders; their elements are not looked at.
            target_gap: eV; None without a target.

        Returns:
            Element tokens, one row a skeleton.
        """


class RandomPolicy:
    """Chooses uniformly among the allowed elements.

    Args:
        seed: Of the draws.
    """

    def __init__(self, seed: int = 0) -> None:
        self._generator = np.random.default_rng(seed)

    def predict(
        self, observations: NDArray[np.float32], action_mask: NDArray[np.int8] | None = None
    ) -> NDArray[np.int64]:
        """Return one random action for each row."""
        return masked(self.values(observations), action_mask).argmax(axis=1)

    def values(self, observations: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return random values, ``(B, 88)``."""
        return self._generator.random((len(observations), N_ELEMENTS))


class MajorityPolicy:
    """Always chooses the allowed element that is most frequent in the training data.

    Args:
        trajectories: Training data; each crystal counts once for every order it is stored in.
    """

    def __init__(self, trajectories: Trajectories) -> None:
        self._counts = np.bincount(trajectories.actions, minlength=N_ELEMENTS).astype(float)

    def predict(
        self, observations: NDArray[np.float32], action_mask: NDArray[np.int8] | None = None
    ) -> NDArray[np.int64]:
        """Return the same action for each row, unless the mask forbids it."""
        return masked(self.values(observations), action_mask).argmax(axis=1)

    def values(self, observations: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return how often each element occurs, the same for each row, ``(B, 88)``."""
        return np.broadcast_to(self._counts, (len(observations), N_ELEMENTS))


def masked(
    scores: NDArray[np.float64], action_mask: NDArray[np.int8] | None
) -> NDArray[np.float64]:
    """Return scores ``(B, 88)`` with -inf for elements that a mask, if there is one, forbids."""
    if action_mask is None:
        return scores
    return np.where(np.broadcast_to(action_mask, scores.shape) == 1, scores, -np.inf)


class RandomBalanced:
    """Chooses uniformly among the elements after which the crystal can still become valid.

    The same distribution as :class:`RandomPolicy` under :class:`ChargeNeutralMask`, which takes
    fifty times as long: elements are tried in a random order until one is allowed.

    Args:
        seed: Of the draws; every call begins anew with it.
    """

    def __init__(self, seed: int = 0) -> None:
        self._seed = seed
        self._mask = ChargeNeutralMask()

    def __call__(self, task: Task, target_gap: float | None = None) -> NDArray[np.int16]:
        """Return fillings, the same for any target; see :class:`Designer`."""
        generator = np.random.default_rng(self._seed)
        tokens = np.zeros((len(task), task.skeletons.max_sites), dtype=np.int16)
        for row, n_sites in enumerate(task.n_sites.tolist()):
            filling = tokens[row, :n_sites]
            for site in task.traversal[row, :n_sites].tolist():
                tried = (generator.permutation(N_ELEMENTS) + 1).tolist()
                filling[site] = next(t for t in tried if self._mask.allows(filling, t))
        return tokens


class NearestNeighbour:
    """Copies the elements of the labelled crystal whose structure is most alike.

    Without a target that is the first prototype of :class:`PrototypeLibrary`; with one, of the
    prototypes of the same structure type (at most ten) the one whose gap is nearest to it. The
    composition comes with the copy: that of the skeleton asked about is hidden.

    Args:
        library: Labelled crystals.
    """

    def __init__(self, library: PrototypeLibrary) -> None:
        self._library = library

    def __call__(self, task: Task, target_gap: float | None) -> NDArray[np.int16]:
        """Return fillings; see :class:`Designer`."""
        tokens = np.zeros((len(task), task.skeletons.max_sites), dtype=np.int16)
        for row, number in enumerate(task.skeleton.tolist()):
            found = self._library.prototypes(task.skeletons[number])
            best = found[0]
            if target_gap is not None and best.same_type:
                best = min(found, key=lambda p: abs(p.band_gap_ev - target_gap))
            tokens[row, : len(best.tokens)] = best.tokens
        return tokens


class Substitution:
    """Replaces an ion of the most alike labelled crystal by the likeliest other of its charge.

    The source is the first prototype of :class:`PrototypeLibrary`. Oxidation states are pymatgen's
    likeliest guess for its composition. Among all ions of the source and all other ions of the same
    charge that the source does not hold, the pair with the highest probability of substitution,
    relative to that of staying, is taken: charge and structure stay, one element changes. Where
    pymatgen finds no oxidation states, or its table knows no such pair, the source is copied.

    Args:
        library: Labelled crystals.

    References:
        Hautier, Fischer, Ehrlacher, Jain, Ceder, *Data Mined Ionic Substitutions for the Discovery
        of New Compounds*, Inorg. Chem. 2011, 50, 656, doi 10.1021/ic102031h: the probabilities, as
        pymatgen ships them.
    """

    def __init__(self, library: PrototypeLibrary) -> None:
        self._library = library
        self._replacements: dict[tuple[tuple[str, int], ...], tuple[str, str] | None] = {}

    def __call__(self, task: Task, target_gap: float | None = None) -> NDArray[np.int16]:
        """Return fillings, the same for any target; see :class:`Designer`."""
        tokens = np.zeros((len(task), task.skeletons.max_sites), dtype=np.int16)
        for row, number in enumerate(task.skeleton.tolist()):
            source = self._library.prototypes(task.skeletons[number])[0].tokens
            tokens[row, : len(source)] = self._substituted(source)
        return tokens

    def _substituted(self, source: NDArray[np.int16]) -> NDArray[np.int16]:
        counts = formula_counts(source)
        key = tuple(counts.items())
        if key not in self._replacements:
            self._replacements[key] = self._likeliest(counts)
        replacement = self._replacements[key]
        if replacement is None:
            return source
        old, new = map(symbol_to_token, replacement)
        return np.where(source == old, np.int16(new), source)

    def _likeliest(self, counts: dict[str, int]) -> tuple[str, str] | None:
        """Return which element of a composition is replaced by which, None for none."""
        best, pair = 0.0, None
        for symbol, charge in _charges(counts).items():
            others = self._alternatives.get((symbol, charge), [])
            for odds, other in others:  # the likeliest first
                if other not in counts:
                    if odds > best:
                        best, pair = odds, (symbol, other)
                    break
        return pair

    @cached_property
    def _alternatives(self) -> dict[tuple[str, int], list[tuple[float, str]]]:
        """Odds of each substitution against staying, by element and charge, the best first."""
        probability = _substitution_probability()
        ions = [
            (str(ion.element.symbol), int(ion.oxi_state), ion)
            for ion in sorted(probability.species, key=str)
            if ion.element.symbol in ELEMENTS and float(ion.oxi_state).is_integer()
        ]
        found: dict[tuple[str, int], list[tuple[float, str]]] = {}
        for symbol, charge, ion in ions:
            stays = probability.cond_prob(ion, ion)
            odds = [
                (probability.cond_prob(new, ion) / stays, other)
                for other, other_charge, new in ions
                if other_charge == charge and other != symbol
            ]
            found[symbol, charge] = sorted(odds, key=lambda pair: (-pair[0], pair[1]))
        return found


@cache
def _substitution_probability() -> SubstitutionProbability:
    from pymatgen.analysis.structure_prediction.substitution_probability import (
        SubstitutionProbability,
    )

    return SubstitutionProbability()


def _charges(counts: dict[str, int]) -> dict[str, int]:
    """Return pymatgen's likeliest whole oxidation states of a composition; empty for none."""
    from pymatgen.core import Composition

    guesses = Composition(counts).reduced_composition.oxi_state_guesses()
    for guess in guesses:
        if all(float(charge).is_integer() for charge in guess.values()):
            return {symbol: int(charge) for symbol, charge in guess.items()}
    return {}
