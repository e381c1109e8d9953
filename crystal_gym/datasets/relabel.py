"""Targets and rewards of stored episodes, exactly as the environment would give them."""

from __future__ import annotations

import numbers
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crystal_gym.envs.crystal_fill import check_target_gap
from crystal_gym.oracles import Properties
from crystal_gym.rewards import BuiltInReward, Reward, make_reward

__all__ = ["UNIFORM_RANGE_EV", "TargetSampler", "terminal_rewards"]

UNIFORM_RANGE_EV = (0.0, 6.0)
"""Targets of ``"uniform"``: 95% of the training gaps lie below 5 eV."""

Float = NDArray[np.float64]


class TargetSampler:
    """Draws the target gap that a sampled episode is relabelled with.

    Args:
        target_gap: A number (eV), a list of numbers (one drawn for each sample), ``"uniform"``
            (0 to 6 eV), ``"hindsight"`` (the crystal's own gap), or None (unconditional).

    Raises:
        ValueError: If a name is unknown, a list empty or a number no gap.
        TypeError: If it is none of these.
    """

    def __init__(self, target_gap: float | Sequence[float] | str | None) -> None:
        self.choices: Float | None = None
        self.mode = "fixed"
        if isinstance(target_gap, str):
            if target_gap not in ("uniform", "hindsight"):
                raise ValueError(
                    f"target_gap={target_gap!r} is unknown: expected a number in eV, a list of "
                    "numbers, 'uniform', 'hindsight' or None"
                )
            self.mode = target_gap
        elif target_gap is None:
            self.mode = "none"
        elif isinstance(target_gap, numbers.Real):
            self.choices = np.array([check_target_gap(target_gap)])
        elif isinstance(target_gap, (Sequence, np.ndarray)) and len(target_gap):
            # float() only after the check: it would turn True into 1.0
            self.choices = np.array([_number(t) for t in target_gap], np.float64)
        else:
            raise TypeError(
                f"target_gap={target_gap!r} is not usable: expected a number in eV, a non-empty "
                "list of numbers, 'uniform', 'hindsight' or None"
            )

    @property
    def conditional(self) -> bool:
        """Whether there is a target at all."""
        return self.mode != "none"

    def sample(self, band_gap_ev: Float, generator: np.random.Generator) -> Float | None:
        """Return one target (eV) for each crystal, ``(B,)``; None without a target.

        Args:
            band_gap_ev: The crystals' own gaps, ``(B,)``.
            generator: Source of randomness.
        """
        if self.mode == "none":
            return None
        if self.mode == "hindsight":
            return band_gap_ev
        size = len(band_gap_ev)
        if self.mode == "uniform":
            return generator.uniform(*UNIFORM_RANGE_EV, size)
        assert self.choices is not None
        if len(self.choices) == 1:
            return np.full(size, self.choices[0])
        return generator.choice(self.choices, size)


def _number(value: Any) -> float:
    plain = value.item() if isinstance(value, np.generic) else value
    target = check_target_gap(plain)
    if target is None:
        raise TypeError("target_gap=None in a list: expected numbers in eV; None stands alone")
    return target


def terminal_rewards(
    reward: str | Reward,
    total_energy_ry: Float,
    formation_energy_ev_per_atom: Float,
    band_gap_ev: Float,
    target_gap: Float | None,
) -> Float:
    """Return the terminal reward of each crystal, ``(B,)``.

    Built-in rewards are computed at once; any other callable is asked crystal by crystal.
    """
    function = make_reward(reward)
    columns = total_energy_ry, formation_energy_ev_per_atom, band_gap_ev
    if isinstance(function, BuiltInReward):
        return function.values(*columns, target_gap)
    targets = [None] * len(band_gap_ev) if target_gap is None else target_gap.tolist()
    rows = zip(*([None if np.isnan(v) else v for v in c.tolist()] for c in columns), strict=True)
    single = [function(Properties(*row), target) for row, target in zip(rows, targets, strict=True)]
    return np.array([np.nan if r is None else r for r in single], dtype=np.float64)
