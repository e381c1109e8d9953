"""Acting with Decision Transformers, which see the history of an episode."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from d3rlpy.algos.transformer.base import TransformerAlgoBase
from d3rlpy.constants import ActionSpace
from d3rlpy.torch_utility import unwrap_ddp_model
from numpy.typing import NDArray
from torch import Tensor, nn

from crystal_gym.agents.acting import (
    CHUNK,
    Algorithm,
    allowed_actions,
    as_rows,
    best,
    nearest,
    require_built,
)
from crystal_gym.element_embedding import embed
from crystal_gym.envs.observations import COMPACT_HEADER, PACKED_HEADER, PackedLayout
from crystal_gym.skeletons import registered_set

__all__ = ["TransformerPolicy"]


class TransformerPolicy:
    """The best action of a trained Decision Transformer or TACR, among those allowed.

    It acts in any number of episodes side by side, one a row, each from its first step on, and
    remembers their observations; what was placed so far it reads off the crystals themselves. An
    empty crystal in a row starts a new episode there. Rows keep their order; those of finished
    crystals may be left out, as :func:`crystal_gym.evaluation.rollout` does.

    Args:
        algorithm: DecisionTransformer, DiscreteDecisionTransformer or TACR of d3rlpy, trained or
            built.
        target_return: Return to aim at, on the scale of the rewards trained on. All reward comes
            at the end, so that it stays to be earned through the whole episode.
        metadata: What to remember about it, such as the data it was trained on.

    Raises:
        TypeError: If ``algorithm`` is no such algorithm.
        ValueError: If it has no network yet, or the target is not finite.
    """

    def __init__(
        self,
        algorithm: Algorithm,
        target_return: float,
        *,
        metadata: dict[str, Any] | None = None,
    ) -> None:
        if not isinstance(algorithm, TransformerAlgoBase):
            raise TypeError(
                f"{type(algorithm).__name__} needs no history: expected a Decision Transformer or "
                "TACR of d3rlpy; use GreedyPolicy for other algorithms"
            )
        require_built(algorithm)
        if not math.isfinite(target_return):
            raise ValueError(
                f"target_return={target_return!r} is not finite: expected a return of the data, "
                "such as 10.0"
            )
        self.algorithm: Algorithm = algorithm
        self.target_return = float(target_return)
        self.metadata = dict(metadata or {})
        self._episodes: list[list[NDArray[np.float32]]] = []

    @property
    def stored(self) -> nn.Module:
        """The network whose weights a saved policy holds."""
        network: nn.Module = unwrap_ddp_model(self.algorithm.impl.modules.transformer)
        return network

    def reset(self) -> None:
        """Forget all episodes. An empty crystal starts a new one without this."""
        self._episodes = []

    def predict(
        self, observations: NDArray[np.float32], action_mask: NDArray[np.int8] | None = None
    ) -> NDArray[np.int64]:
        """Return greedy actions for the next step of every episode.

        Args:
            observations: Compact or packed rows, ``(B, D)``.
            action_mask: 1 where an action is allowed, ``(B, 88)`` or ``(88,)`` for all; None
                allows every action.

        Returns:
            int64 ``(B,)``.

        Raises:
            ValueError: If shapes do not fit, a mask allows nothing or a row does not continue
                its episode.
        """
        rows = as_rows(observations)
        allowed = allowed_actions(action_mask, len(rows))
        self._continue_episodes(rows)
        size = max(1, CHUNK // self.algorithm.config.context_size)
        parts = [torch.zeros(0, dtype=torch.int64)]
        for first in range(0, len(rows), size):
            part = slice(first, first + size)
            parts.append(self._choose(self._episodes[part], allowed[part]).cpu())
        return torch.cat(parts).numpy()

    def _continue_episodes(self, rows: NDArray[np.float32]) -> None:
        """Add each row to its episode, cut to the steps which the row has behind it."""
        filled = [int(np.count_nonzero(_tokens(row))) for row in rows]
        episodes = self._episodes
        if not any(filled):
            episodes = [[] for _ in rows]
        elif len(episodes) != len(rows):
            episodes = [e for e in episodes if not _was_last(e[-1])]
        if len(episodes) != len(rows):
            raise ValueError(
                f"{len(rows)} rows continue {len(self._episodes)} episodes: expected a row for "
                "each, or for each that is not finished; start new ones with empty crystals"
            )
        following = []
        for number, (row, steps, episode) in enumerate(zip(rows, filled, episodes, strict=True)):
            if steps and not (len(episode) >= steps and _follows(row, episode[steps - 1])):
                raise ValueError(
                    f"row {number}, with {steps} filled sites, does not continue its episode: "
                    "expected every step from the empty crystal on, rows in the same order"
                )
            following.append([*episode[:steps], row.copy()])
        self._episodes = following

    def _choose(self, episodes: list[list[NDArray[np.float32]]], allowed: Tensor) -> Tensor:
        config, impl = self.algorithm.config, self.algorithm.impl
        length = config.context_size
        continuous = self.algorithm.get_action_type() == ActionSpace.CONTINUOUS
        shape = len(episodes), length
        # d3rlpy pads in front, as its sampler of trajectories does.
        x = np.zeros((*shape, len(episodes[0][0])), np.float32)
        actions = np.zeros((*shape, impl.action_size if continuous else 1), np.float32)
        steps, real = np.zeros(shape, np.int64), np.zeros(shape, np.float32)
        for i, episode in enumerate(episodes):
            seen = episode[-length:]
            earlier, first = len(episode) - len(seen), length - len(seen)
            placed = _placed(episode)[earlier:]
            x[i, first:] = seen
            actions[i, first:-1] = embed(placed) if continuous else placed[:, None]
            number = np.arange(earlier, len(episode)) + 1
            steps[i, first:] = np.minimum(number, config.max_timestep)
            real[i, first:] = 1.0
        inputs = [torch.from_numpy(a).to(impl.device) for a in (x, actions, steps, real)]
        return self._greedy(*inputs, allowed=allowed)

    def _greedy(
        self, x: Tensor, actions: Tensor, steps: Tensor, real: Tensor, *, allowed: Tensor
    ) -> Tensor:
        config = self.algorithm.config
        to_go = real[..., None] * self.target_return
        if config.reward_scaler is not None:
            to_go = config.reward_scaler.transform(to_go)
        if config.observation_scaler is not None:
            x = config.observation_scaler.transform(x)
        if config.action_scaler is not None:
            actions = config.action_scaler.transform(actions)
        network = self.stored.eval()
        with torch.inference_mode():
            output = network(x, actions, to_go, steps, 1 - real)
        if self.algorithm.get_action_type() == ActionSpace.CONTINUOUS:
            return nearest(output[:, -1], allowed, config.action_scaler)
        logits = output[1][:, -1]
        return best(logits, allowed.to(logits.device))


def _layout(row: NDArray[np.float32]) -> tuple[int, slice]:
    """Return the column of the focus and those of the tokens, of a compact or packed row."""
    if row[0] == 0:  # no skeleton table: packed
        return PACKED_HEADER.index("focus"), PackedLayout.of_rows(row[None]).tokens
    return COMPACT_HEADER.index("focus"), slice(len(COMPACT_HEADER), None)


def _tokens(row: NDArray[np.float32]) -> NDArray[np.float32]:
    return row[_layout(row)[1]]


def _was_last(row: NDArray[np.float32]) -> bool:
    """Whether the site in focus is the last one to fill, or none is."""
    packed = row[0] == 0
    n_sites = row[1] if packed else registered_set(int(row[0])).n_sites[int(row[1])]
    return bool(np.count_nonzero(_tokens(row)) + 1 >= n_sites)


def _follows(row: NDArray[np.float32], previous: NDArray[np.float32]) -> bool:
    """Whether nothing but the site that was in focus was filled, and the focus moved."""
    focus, tokens = _layout(previous)
    if row.shape != previous.shape:
        return False
    site = tokens.start + int(previous[focus])
    return set(np.flatnonzero(row != previous).tolist()) <= {focus, site} and row[site] != 0


def _placed(episode: list[NDArray[np.float32]]) -> NDArray[np.int64]:
    """Return the actions of all steps but the last, as the last row shows them."""
    focus, _ = _layout(episode[-1])
    sites = [int(row[focus]) for row in episode[:-1]]
    return _tokens(episode[-1])[sites].astype(np.int64) - 1
