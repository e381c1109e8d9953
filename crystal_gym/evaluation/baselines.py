"""Policies that any trained one has to beat."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from crystal_gym.datasets.trajectories import Trajectories
from crystal_gym.elements import N_ELEMENTS

__all__ = ["MajorityPolicy", "RandomPolicy"]


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
        draws = self._generator.random((len(observations), N_ELEMENTS))
        return masked(draws, action_mask).argmax(axis=1)


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
        scores = np.broadcast_to(self._counts, (len(observations), N_ELEMENTS))
        return masked(scores, action_mask).argmax(axis=1)


def masked(
    scores: NDArray[np.float64], action_mask: NDArray[np.int8] | None
) -> NDArray[np.float64]:
    """Return scores ``(B, 88)`` with -inf for elements that a mask, if there is one, forbids."""
    if action_mask is None:
        return scores
    return np.where(np.broadcast_to(action_mask, scores.shape) == 1, scores, -np.inf)
