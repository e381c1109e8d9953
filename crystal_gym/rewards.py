r"""Terminal rewards: pure functions of properties and target.

Equation numbers are those of Govindarajan et al., *Learning conditional policies for crystal
design using offline reinforcement learning*, Digital Discovery 2024, 3, 769,
doi 10.1039/d4dd00024b.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from crystal_gym.oracles.base import Properties

__all__ = [
    "REWARDS",
    "BuiltInReward",
    "EnergyReward",
    "FormationReward",
    "Reward",
    "TotalEnergyReward",
    "make_reward",
]

Float = NDArray[np.float64]


class Reward(Protocol):
    """A terminal reward."""

    def __call__(self, properties: Properties, target_gap: float | None) -> float | None:
        """Return the reward of a crystal.

        Args:
            properties: What the oracle answered.
            target_gap: eV, None for the unconditional task.

        Returns:
            A number without a unit, more for a better crystal; None if a property it needs is
            unknown.
        """


def _gap_term(gap_ev: ArrayLike, target_gap: ArrayLike, width: float) -> Float:
    return np.exp(-((np.asarray(gap_ev) - np.asarray(target_gap)) ** 2) / width)


class BuiltInReward(ABC):
    """A reward that is a formula: one crystal at a time, or many at once."""

    @abstractmethod
    def values(
        self,
        total_energy_ry: ArrayLike,
        formation_energy_ev_per_atom: ArrayLike,
        band_gap_ev: ArrayLike,
        target_gap: ArrayLike | None,
    ) -> Float:
        """Return rewards of many crystals at once; NaN stays NaN.

        Args:
            total_energy_ry: Ry for the cell, ``(B,)``.
            formation_energy_ev_per_atom: eV/atom, ``(B,)``.
            band_gap_ev: eV, ``(B,)``.
            target_gap: eV, one for all or ``(B,)``; None for the unconditional task.

        Returns:
            float64 ``(B,)``.
        """

    def __call__(self, properties: Properties, target_gap: float | None) -> float | None:
        """Return the reward of one crystal, None if a property it needs is unknown."""
        total, formation, gap = (
            np.nan if known is None else known
            for known in (
                properties.total_energy_ry,
                properties.formation_energy_ev_per_atom,
                properties.band_gap_ev,
            )
        )
        value = float(self.values(total, formation, gap, target_gap))
        return None if np.isnan(value) else value


@dataclass(frozen=True)
class FormationReward(BuiltInReward):
    r"""Eqn (7): formation energy and distance of the gap to the target.

    .. math:: r = a_1 e^{-E_\mathrm{form}/b_1} + a_2 e^{-(p-\hat p)^2/b_2}

    Without a target only the first term is left (the unconditional task).

    Attributes:
        a1: Weight of the energy term.
        a2: Weight of the gap term.
        b1: Energy scale, eV/atom.
        b2: Width of the gap term, eV^2.
    """

    a1: float = 1.0
    a2: float = 10.0
    b1: float = 5.0
    b2: float = 3.0

    def values(
        self,
        total_energy_ry: ArrayLike,
        formation_energy_ev_per_atom: ArrayLike,
        band_gap_ev: ArrayLike,
        target_gap: ArrayLike | None,
    ) -> Float:
        """Return rewards of many crystals at once; NaN stays NaN."""
        energy = self.a1 * np.exp(-np.asarray(formation_energy_ev_per_atom) / self.b1)
        if target_gap is None:
            return energy
        return energy + self.a2 * _gap_term(band_gap_ev, target_gap, self.b2)


@dataclass(frozen=True)
class TotalEnergyReward(BuiltInReward):
    r"""Eqn (16): total energy instead of formation energy.

    .. math:: r = a_1 \log_{10}(-E_\mathrm{tot}) + a_2 e^{-(p-\hat p)^2/b}

    Attributes:
        a1: Weight of the energy term (total energy in Ry per cell).
        a2: Weight of the gap term.
        b: Width of the gap term, eV^2.
    """

    a1: float = 1.0
    a2: float = 10.0
    b: float = 3.0

    def values(
        self,
        total_energy_ry: ArrayLike,
        formation_energy_ev_per_atom: ArrayLike,
        band_gap_ev: ArrayLike,
        target_gap: ArrayLike | None,
    ) -> Float:
        """Return rewards of many crystals at once; NaN stays NaN."""
        total = np.asarray(total_energy_ry, dtype=np.float64)
        with np.errstate(invalid="ignore", divide="ignore"):
            energy = self.a1 * np.where(total < 0, np.log10(-total), np.nan)
        if target_gap is None:
            return energy
        return energy + self.a2 * _gap_term(band_gap_ev, target_gap, self.b)


@dataclass(frozen=True)
class EnergyReward(BuiltInReward):
    r"""Formation energy only, :math:`a_1 e^{-E_\mathrm{form}/b_1}`, whatever the target.

    Attributes:
        a1: Weight.
        b1: Energy scale, eV/atom.
    """

    a1: float = 1.0
    b1: float = 5.0

    def values(
        self,
        total_energy_ry: ArrayLike,
        formation_energy_ev_per_atom: ArrayLike,
        band_gap_ev: ArrayLike,
        target_gap: ArrayLike | None,
    ) -> Float:
        """Return rewards of many crystals at once; NaN stays NaN."""
        return self.a1 * np.exp(-np.asarray(formation_energy_ev_per_atom) / self.b1)


REWARDS: dict[str, BuiltInReward] = {
    "formation": FormationReward(),
    "total_energy": TotalEnergyReward(),
    "energy": EnergyReward(),
}
"""Rewards by the name that ``gym.make(reward=...)`` takes."""


def make_reward(reward: str | Reward) -> Reward:
    """Return the reward of that name, or the callable itself.

    Args:
        reward: A key of :data:`REWARDS`, or a callable ``(properties, target_gap) -> float``.

    Returns:
        A callable that takes the oracle's answer and a target (eV, or None).

    Raises:
        ValueError: If the name is unknown.
        TypeError: If it is neither a name nor callable.
    """
    if isinstance(reward, str):
        if reward not in REWARDS:
            raise ValueError(
                f"reward={reward!r} is unknown: expected one of {', '.join(REWARDS)}, or a "
                "callable (properties, target_gap) -> float"
            )
        return REWARDS[reward]
    if not callable(reward):
        raise TypeError(
            f"reward={reward!r} is not callable: expected one of {', '.join(REWARDS)}, or a "
            "callable (properties, target_gap) -> float"
        )
    return reward
