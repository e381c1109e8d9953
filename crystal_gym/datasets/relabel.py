"""Targets and rewards of stored episodes, exactly as the environment would give them."""

from __future__ import annotations

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
        target_gap: A number (eV), ``"uniform"`` (0 to 6 eV), ``"hindsight"`` (the crystal's own
            gap), a list of these (one of them is drawn for each sample, so ``["hindsight",
            "uniform"]`` mixes both half and half), or None (unconditional).

    Raises:
        ValueError: If a name is unknown, a list empty or a number no gap.
        TypeError: If it is none of these.
    """

    def __init__(self, target_gap: float | Sequence[float | str] | str | None) -> None:
        self.conditional = target_gap is not None
        if isinstance(target_gap, (Sequence, np.ndarray)) and not isinstance(target_gap, str):
            self.choices = [_choice(t) for t in target_gap]
            if not self.choices or None in self.choices:
                raise TypeError(
                    f"target_gap={target_gap!r} is not usable: expected a non-empty list of "
                    "numbers in eV, 'uniform' and 'hindsight'; None stands alone"
                )
        else:
            self.choices = [_choice(target_gap)]

    def __repr__(self) -> str:
        names = [c if c is None or isinstance(c, str) else f"{c:g} eV" for c in self.choices]
        return f"TargetSampler({', '.join(map(str, names))})"

    def sample(self, band_gap_ev: Float, generator: np.random.Generator) -> Float | None:
        """Return one target (eV) for each crystal, ``(B,)``; None without a target.

        Args:
            band_gap_ev: The crystals' own gaps, ``(B,)``.
            generator: Source of randomness.

        Returns:
            Targets in eV, ``(B,)``, or None.
        """
        if not self.conditional:
            return None
        size = len(band_gap_ev)
        which = generator.integers(len(self.choices), size=size) if len(self.choices) > 1 else None
        targets = np.empty(size)
        for number, choice in enumerate(self.choices):
            rows = slice(None) if which is None else which == number
            if choice == "hindsight":
                targets[rows] = band_gap_ev[rows]
            elif choice == "uniform":
                targets[rows] = generator.uniform(*UNIFORM_RANGE_EV, size)[rows]
            else:
                targets[rows] = choice
        return targets


def _choice(value: Any) -> float | str | None:
    """Return one checked entry of a list of targets."""
    if isinstance(value, str):
        if value not in ("uniform", "hindsight"):
            raise ValueError(
                f"target_gap={value!r} is unknown: expected a number in eV, 'uniform', "
                "'hindsight', a list of these, or None"
            )
        return value
    # Before float(), which would turn True into 1.0.
    return check_target_gap(value.item() if isinstance(value, np.generic) else value)


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
