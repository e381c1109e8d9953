"""Target gaps: what is one, and how one is drawn for an episode."""

from __future__ import annotations

import numbers
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["MAX_TARGET_EV", "UNIFORM_RANGE_EV", "TargetSampler", "check_target_gap"]

MAX_TARGET_EV = 1e3
"""Upper bound of a target (eV): far above any gap, and finite."""

UNIFORM_RANGE_EV = (0.0, 6.0)
"""Targets of ``"uniform"``: 95% of the training gaps lie below 5 eV."""

Float = NDArray[np.float64]


class TargetSampler:
    """Draws the target gap of an episode: one to play, or a stored one to relabel.

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

    def draw(self, generator: np.random.Generator) -> float | None:
        """Return the target (eV) of an episode that is yet to be played; None without a target.

        Args:
            generator: Source of randomness, which a single number leaves as it is.

        Returns:
            A target in eV, or None.

        Raises:
            ValueError: If one may be ``"hindsight"``, since the crystal has no gap yet.
        """
        if "hindsight" in self.choices:
            raise ValueError(
                "target_gap='hindsight' is for stored episodes, since a crystal that is yet to be "
                "filled has no gap: expected a number in eV, 'uniform', a list of these, or None"
            )
        several = len(self.choices) > 1
        choice = self.choices[int(generator.integers(len(self.choices))) if several else 0]
        return float(generator.uniform(*UNIFORM_RANGE_EV)) if isinstance(choice, str) else choice

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


def check_target_gap(target_gap: Any) -> float | None:
    """Return the target in eV.

    Args:
        target_gap: A number from 0 to 1000, in eV, or None for the unconditional task.

    Returns:
        A float in eV; None for None.

    Raises:
        TypeError: If it is not a number.
        ValueError: If it is negative, not finite or absurdly large.
    """
    if target_gap is None:
        return None
    if isinstance(target_gap, bool) or not isinstance(target_gap, numbers.Real):
        raise TypeError(
            f"target_gap={target_gap!r} is not a number: expected a band gap in eV such as 3.0, or "
            "None for the unconditional task"
        )
    value = float(target_gap)
    if not 0 <= value <= MAX_TARGET_EV:  # also False for NaN
        raise ValueError(
            f"target_gap={target_gap!r} eV is no band gap: expected a number from 0 to "
            f"{MAX_TARGET_EV:g}, or None for the unconditional task"
        )
    return value
