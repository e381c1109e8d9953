"""Wrappers of ``CrystalFill-v0``."""

from __future__ import annotations

from typing import Any, cast

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from crystal_gym.element_embedding import EMBEDDING_COLUMNS, EMBEDDING_SIZE, decode
from crystal_gym.elements import N_ELEMENTS

__all__ = ["EmbeddedActions", "OneHotObservations", "one_hot"]


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


def one_hot(observation: dict[str, NDArray[Any]], space: spaces.Dict) -> NDArray[np.float32]:
    """Return compact observations as inputs of a plain network.

    Columns: which skeleton, one each; what is on each site (nothing or one of the 88 elements),
    89 a site; which site is in focus, one a site and one for none; and the target gap in eV where
    there is one. The skeleton is a mere name here, so a network learns nothing about skeletons
    that it has not seen: those need ``observation="packed"`` or ``"graph"`` and a graph network.

    Args:
        observation: Of ``observation="compact"``: one, or a batch of a vector environment.
        space: Of a single one, such as ``envs.single_observation_space``.

    Returns:
        float32 ``(..., D)``, with the leading axes of the observation.

    Raises:
        ValueError: If they have another form.
    """
    n_skeletons, max_sites = _sizes(space)
    tokens = _unit_rows(observation["element_tokens"], N_ELEMENTS + 1)
    parts = [
        _unit_rows(observation["skeleton"][..., 0], n_skeletons),
        tokens.reshape(*tokens.shape[:-2], -1),
        _unit_rows(observation["focus"][..., 0], max_sites + 1),
    ]
    if "target_gap" in space.spaces:
        parts.append(observation["target_gap"])
    return np.concatenate(parts, axis=-1)


def _unit_rows(number: NDArray[np.integer], count: int) -> NDArray[np.float32]:
    """Return rows of ``count`` zeros with a one at each number, ``(..., count)``."""
    rows = np.zeros((*number.shape, count), dtype=np.float32)
    np.put_along_axis(rows, number[..., None].astype(np.int64), 1.0, axis=-1)
    return rows


def _sizes(space: Any) -> tuple[int, int]:
    """Return the number of skeletons and the most sites of a compact observation."""
    if not isinstance(space, spaces.Dict) or "skeleton" not in space.spaces:
        raise ValueError(
            f"observations of {space} do not name their skeleton: expected those of "
            "observation='compact'"
        )
    parts: Any = space.spaces
    return int(parts["skeleton"].high[0]) + 1, parts["element_tokens"].shape[0]


class OneHotObservations(
    gym.ObservationWrapper[NDArray[np.float32], Any, Any], gym.utils.RecordConstructorArgs
):
    """Show a state as one float32 ``Box`` of zeros and ones, for plain networks.

    For small sets such as ``skeletons="tabular"``; :func:`one_hot` names the columns and does the
    same for the batches of a vector environment.

    Args:
        env: An environment made with ``observation="compact"``.

    Raises:
        ValueError: If the observations have another form.

    Example:
        >>> import gymnasium as gym
        >>> import crystal_gym
        >>> from crystal_gym.envs import OneHotObservations
        >>> env = gym.make("CrystalFill-v0", skeletons="tabular", observation="compact")
        >>> OneHotObservations(env).observation_space.shape
        (373,)
    """

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        gym.utils.RecordConstructorArgs.__init__(self)
        super().__init__(env)
        self._space = cast("spaces.Dict", env.observation_space)
        n_skeletons, max_sites = _sizes(self._space)
        conditional = "target_gap" in self._space.spaces
        width = n_skeletons + (N_ELEMENTS + 2) * max_sites + 1 + conditional
        self.observation_space = spaces.Box(0.0, np.inf, (width,), np.float32)

    def observation(self, observation: dict[str, NDArray[Any]]) -> NDArray[np.float32]:
        """Return the row of a compact observation."""
        return one_hot(observation, self._space)
