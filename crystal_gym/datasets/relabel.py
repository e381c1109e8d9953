"""Rewards of stored episodes, exactly as the environment would give them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from crystal_gym.oracles import Properties
from crystal_gym.rewards import BuiltInReward, Reward, make_reward

__all__ = ["terminal_rewards"]

Float = NDArray[np.float64]


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
