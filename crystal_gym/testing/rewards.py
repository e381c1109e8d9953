"""What every reward has to keep."""

from __future__ import annotations

import itertools
import math
import numbers
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from crystal_gym.oracles.base import Properties
from crystal_gym.rewards import Reward, make_reward
from crystal_gym.testing.promises import Promises, shortened

__all__ = ["check_reward"]

_LARGEST = 1e4
"""Larger returns no value network learns as they are; those of eqn (7) reach about 20."""

_NUMBERS = {
    "total_energy_ry": (-2000.0, -71.3, -4.2),
    "formation_energy_ev_per_atom": (-4.5, -1.2, 0.4),
    "band_gap_ev": (0.0, 1.1, 6.3),
}
"""What oracles answer: low, usual and high."""


def check_reward(
    reward: str | Reward, *, targets: Sequence[float | None] = (None, 0.0, 1.12, 3.0)
) -> None:
    """Hold a reward to its promises.

    - It is called with :class:`~crystal_gym.oracles.Properties` and a target gap in eV, and returns
      one finite real number, None where it lacks a property, never NaN; it raises nothing.
    - Without any property it returns None.
    - Called twice it returns the same.
    - ``values``, where there is one (:class:`crystal_gym.rewards.BuiltInReward`), returns for
      arrays what calls return one by one, and NaN where a property it needs is NaN.

    Args:
        reward: Yours, or the name of a built-in one.
        targets: Target gaps in eV that it is for; None stands for the unconditional task.

    Raises:
        BrokenPromise: The first that is found.
        TypeError: If it is not callable.

    Example:
        >>> from crystal_gym.testing import check_reward
        >>> def gap_only(properties, target_gap):
        ...     gap = properties.band_gap_ev
        ...     return None if gap is None else -abs(gap - target_gap)
        >>> check_reward(gap_only, targets=(1.12, 3.0))
    """
    function = make_reward(reward)
    check = _RewardCheck(function)
    for target in targets:
        for values in itertools.product(*_NUMBERS.values()):
            check.one(_properties(values), target, knows_all=True)
        usual = [values[1] for values in _NUMBERS.values()]
        for known in itertools.product((True, False), repeat=3):
            some = [value if k else None for k, value in zip(known, usual, strict=True)]
            check.one(_properties(some), target, knows_all=all(known))
        check.knows_nothing(target)
        if hasattr(function, "values"):
            check.arrays(target)


class _RewardCheck(Promises):
    def __init__(self, reward: Reward) -> None:
        super().__init__(f"reward {shortened(reward, 80)}")
        self.reward: Any = reward

    def one(self, properties: Properties, target: float | None, *, knows_all: bool) -> float | None:
        """Return the checked reward of one crystal."""
        case = f"{_case(properties)}, target_gap={target}"
        value = self.call(
            self.reward,
            properties,
            target,
            promise=f"it raises nothing for {case}",
            advice="Return None where a property is None; leave None out of targets if it is for a "
            "target only",
        )
        if value is None:
            self.require(
                not knows_all,
                "it is a number where every property is known",
                f"None for {case}",
                "Return a finite number for every gap from 0 eV and every target",
            )
            return None
        self.require(
            isinstance(value, numbers.Real) and not isinstance(value, (bool, np.bool_)),
            "a reward is one real number or None",
            f"{shortened(value)} for {case}",
            "Return float(...), and take the one number out of an array with .item()",
        )
        self.require(
            math.isfinite(value),
            "a reward is finite, and None where it is not known",
            f"{value} for {case}",
            "Return None where a property is None, and clip what runs over",
        )
        self.require(
            abs(value) <= _LARGEST,
            f"a reward is of a size that can be learned, at most {_LARGEST:g}",
            f"{value:g} for {case}",
            "Scale or clip it; energies of a cell in Ry or eV are too large as they are",
        )
        again = self.reward(properties, target)
        self.require(
            again == value,
            "called twice it returns the same",
            f"{value} and then {again} for {case}",
            "Draw nothing at random and keep nothing between calls",
        )
        return float(value)

    def knows_nothing(self, target: float | None) -> None:
        """Check that nothing known is worth nothing known."""
        value = self.reward(Properties(), target)
        self.require(
            value is None,
            "without any property it returns None",
            f"{shortened(value)} for target_gap={target}",
            "Return None: the environment then gives failure_reward and says why",
        )

    def arrays(self, target: float | None) -> None:
        """Check rewards of many crystals at once."""
        grid = np.array(list(itertools.product(*_NUMBERS.values())))
        targets = None if target is None else np.full(len(grid), target)
        many = np.asarray(
            self.call(
                self.reward.values,
                *grid.T,
                targets,
                promise="values(total, formation, gap, target_gap) takes arrays of one length",
                advice="Use NumPy's functions instead of math's, and no if on an array",
            )
        )
        singles = [self.one(_properties(row), target, knows_all=True) for row in grid.tolist()]
        self.require(
            many.shape == (len(grid),) and np.allclose(many, np.array(singles, float)),
            "values returns for arrays what calls return one by one",
            f"shape {many.shape}, {shortened(many.tolist())} instead of {shortened(singles)}",
            "Let __call__ call values",
        )
        two = None if targets is None else targets[:2]
        nothing = np.asarray(self.reward.values(*np.full((3, 2), np.nan), two))
        self.require(
            bool(np.isnan(nothing).all()),
            "values is NaN where every property is",
            nothing.tolist(),
            "Let NaN pass through; nan_to_num hides failed calculations",
        )


def _properties(values: Iterable[float | None]) -> Properties:
    total, formation, gap = values
    return Properties(total, formation, gap)


def _case(properties: Properties) -> str:
    return ", ".join(f"{name}={getattr(properties, name)}" for name in _NUMBERS)
