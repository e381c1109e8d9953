"""Wrappers of ``CrystalFill-v0``."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from crystal_gym.element_embedding import EMBEDDING_COLUMNS, EMBEDDING_SIZE, decode

__all__ = ["EmbeddedActions"]


class EmbeddedActions(gym.Wrapper[Any, Any, Any, np.int64], gym.utils.RecordConstructorArgs):
    """Choose elements by points of :mod:`crystal_gym.element_embedding`.

    The action space is ``Box(-1, 1, (5,))``; the element placed is the nearest to the action
    among those that the last ``info["action_mask"]`` allows. So algorithms for continuous actions
    act in the environment, and no action is ever forbidden.

    Args:
        env: An environment with the actions of ``CrystalFill-v0``.

    Raises:
        ValueError: By :meth:`step`, if the action has another shape or is not finite.

    Example:
        >>> import gymnasium as gym
        >>> import crystal_gym
        >>> from crystal_gym.envs import EmbeddedActions
        >>> env = EmbeddedActions(gym.make("CrystalFill-v0", observation="packed"))
        >>> env.action_space.shape
        (5,)
    """

    def __init__(self, env: gym.Env[Any, np.int64]) -> None:
        gym.utils.RecordConstructorArgs.__init__(self)
        super().__init__(env)
        self.action_space = spaces.Box(-1.0, 1.0, (EMBEDDING_SIZE,), np.float32)
        self._mask: NDArray[np.int8] | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Start an episode; see :class:`crystal_gym.envs.CrystalFillEnv`."""
        observation, info = self.env.reset(seed=seed, options=options)
        self._mask = info["action_mask"]
        return observation, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Put the allowed element nearest to ``action``, ``(5,)``, on the focus site."""
        point = np.asarray(action)
        if point.shape != (EMBEDDING_SIZE,):
            raise ValueError(
                f"action={action!r} is no point of the elements: expected {EMBEDDING_SIZE} "
                f"numbers ({', '.join(EMBEDDING_COLUMNS)}); crystal_gym.element_embedding.embed() "
                "gives those of an element"
            )
        step = self.env.step(decode(point[None], self._mask)[0])
        self._mask = step[4]["action_mask"]
        return step
