"""Datasets as d3rlpy replay buffers: columnar, sampled and relabelled at once for a whole batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import d3rlpy
import minari
import numpy as np
from d3rlpy.constants import ActionSpace
from d3rlpy.dataset import Episode, ReplayBuffer, Signature, Transition, TransitionMiniBatch
from numpy.typing import NDArray

from crystal_gym.datasets.minari_io import load_trajectories
from crystal_gym.datasets.relabel import TargetSampler, terminal_rewards
from crystal_gym.datasets.trajectories import Trajectories
from crystal_gym.element_embedding import EMBEDDING
from crystal_gym.elements import N_ELEMENTS
from crystal_gym.envs.observations import COMPACT_HEADER, compact_rows
from crystal_gym.rewards import Reward

__all__ = [
    "BALANCED_RANGE_EV",
    "CrystalMiniBatch",
    "CrystalReplayBuffer",
    "load_d3rlpy",
    "load_trajectories",
]

BALANCED_RANGE_EV = 0.5
"""Width of the ranges of gaps that ``balance`` makes equal."""

_TOKENS = len(COMPACT_HEADER)  # first token column of a compact row

_ACTION_FORMS: dict[str, tuple[ActionSpace, int, NDArray[Any]]] = {
    "elements": (ActionSpace.DISCRETE, N_ELEMENTS, np.arange(N_ELEMENTS)[:, None]),
    "embedding": (ActionSpace.CONTINUOUS, EMBEDDING.shape[1], EMBEDDING),
}
"""Kind, size and what d3rlpy sees of each of the 88 actions, by the name of the form."""


def load_d3rlpy(
    dataset: str | minari.MinariDataset | Trajectories,
    target_gap: float | Sequence[float | str] | str | None = 3.0,
    *,
    actions: str = "elements",
    reward: str | Reward = "formation",
    failure_reward: float = 0.0,
    balance: float = 0.0,
    reorder: float = 0.0,
    n_steps: int = 1,
    gamma: float = 0.99,
    seed: int = 0,
    progress: bool = False,
) -> CrystalReplayBuffer:
    """Return a d3rlpy replay buffer of a dataset, its rewards recomputed for the target.

    Observations are compact rows (:func:`crystal_gym.envs.observations.compact_rows`): 25 numbers
    that the encoders of :mod:`crystal_gym.agents` expand to graphs on the device.

    Args:
        dataset: Minari id such as ``"crystal-mp20-v0"``, a Minari dataset, or trajectories.
        target_gap: eV; a number, ``"uniform"`` (0 to 6 eV), ``"hindsight"`` (the crystal's own
            gap), a list of these (one drawn for each sample), or None: no target in the state,
            and only the energy in the reward.
        actions: ``"elements"`` for algorithms with discrete actions, ``"embedding"`` for those
            with continuous ones: the points of :mod:`crystal_gym.element_embedding`.
        reward: A built-in reward's name or any callable, as in ``gym.make``.
        failure_reward: Reward where a property is unknown, as in ``gym.make``.
        balance: 0 draws every transition alike; 1 draws every range of gaps alike (half an eV
            each), so that the few crystals with a wide gap count as much as the many with a
            narrow one; between them, a power of the weights.
        reorder: Share of the sampled transitions that fill their crystal in an order drawn at
            random instead of the stored one: what belongs on a site does not depend on the order,
            so these are new states with known answers.
        n_steps: A transition leads so many steps on, or to the end if that is nearer; its reward is
            the discounted sum of theirs, its ``interval`` their number. As many as the largest
            crystal has sites give whole returns: nothing is bootstrapped.
        gamma: Discount factor of these sums; that of the algorithm.
        seed: Of the sampling.
        progress: Show a progress bar while reading.

    Raises:
        ValueError: If the dataset is not there or does not hold compact observations, the
            target is no gap, or there is no such form of actions.
    """
    sampler = TargetSampler(target_gap)
    _check_actions(actions)
    return CrystalReplayBuffer(
        load_trajectories(dataset, progress=progress),
        sampler,
        actions=actions,
        reward=reward,
        failure_reward=failure_reward,
        balance=balance,
        reorder=reorder,
        n_steps=n_steps,
        gamma=gamma,
        seed=seed,
    )


def _check_actions(actions: str) -> None:
    if actions not in _ACTION_FORMS:
        raise ValueError(
            f"actions={actions!r} is unknown: expected 'elements' for discrete algorithms or "
            "'embedding' for continuous ones"
        )


@dataclass(frozen=True)
class CrystalMiniBatch(TransitionMiniBatch):
    """Transitions, and what their crystals will be.

    Attributes:
        finished: Tokens of the finished crystals, int8 ``(B, max_sites)``.
    """

    finished: NDArray[np.int8]

    def of_rows(self, rows: slice) -> CrystalMiniBatch:
        """Return some of the transitions."""
        found = {f.name: getattr(self, f.name)[rows] for f in fields(self)}
        return CrystalMiniBatch(**found)


class _Moves(NamedTuple):
    """What is done at the steps of a batch: tokens before, site, element; the next two."""

    tokens: NDArray[np.int8]
    site: NDArray[np.int16]
    action: NDArray[np.int16]
    next_site: NDArray[np.int16]
    next_action: NDArray[np.int16]


def _cumulated_weights(trajectories: Trajectories, balance: float) -> NDArray[np.float64]:
    """Return the cumulated probability of every transition, ``(T,)``."""
    gap_range = np.floor(trajectories.band_gap_ev / BALANCED_RANGE_EV).clip(0).astype(np.int64)
    gap_range = gap_range[trajectories.episode]
    counts = np.bincount(gap_range)
    # A range with a handful of crystals is not worth as much as one with a thousand.
    counts = np.maximum(counts, 0.01 * counts.sum())
    cumulated = np.cumsum(counts[gap_range] ** -balance)
    return cumulated / cumulated[-1]


class CrystalReplayBuffer(ReplayBuffer):
    """A fixed dataset of crystal trajectories.

    A batch is a few array look-ups; the target of each sample is drawn when it is sampled, and
    its reward computed then. The next observation of a terminal transition is the finished
    crystal, not a row of zeros.

    Args:
        trajectories: The episodes.
        targets: Draws the targets.
        actions: As in :func:`load_d3rlpy`.
        reward: As in ``gym.make``.
        failure_reward: As in ``gym.make``.
        balance: As in :func:`load_d3rlpy`.
        reorder: As in :func:`load_d3rlpy`.
        n_steps: As in :func:`load_d3rlpy`.
        gamma: As in :func:`load_d3rlpy`.
        seed: Of the sampling.

    Attributes:
        generator: Source of all draws; its state is part of a checkpoint.
    """

    def __init__(
        self,
        trajectories: Trajectories,
        targets: TargetSampler,
        *,
        actions: str = "elements",
        reward: str | Reward = "formation",
        failure_reward: float = 0.0,
        balance: float = 0.0,
        reorder: float = 0.0,
        n_steps: int = 1,
        gamma: float = 0.99,
        seed: int = 0,
    ) -> None:
        _check_actions(actions)
        for name, value, meaning in (
            ("balance", balance, "0 (all transitions alike) to 1 (all ranges of gaps alike)"),
            ("reorder", reorder, "0 (stored orders alone) to 1 (random ones alone)"),
            ("gamma", gamma, "a discount factor from 0 to 1"),
        ):
            if not 0.0 <= value <= 1.0:
                raise ValueError(f"{name}={value} is out of range: expected {meaning}")
        if isinstance(n_steps, bool) or not isinstance(n_steps, int) or n_steps < 1:
            raise ValueError(f"n_steps={n_steps!r}: expected a whole number above 0")
        kind, size, self._shown = _ACTION_FORMS[actions]
        self.trajectories = trajectories
        self.targets = targets
        self._reward = reward
        self._failure_reward = failure_reward
        self._reorder, self._n_steps, self._gamma = reorder, n_steps, gamma
        self.generator = np.random.default_rng(seed)
        self._cumulated = _cumulated_weights(trajectories, balance) if balance else None
        length = np.diff(trajectories.step_ptr)
        last = trajectories.step_ptr[1:] - 1
        self._terminal = np.zeros(len(trajectories.actions), dtype=bool)
        self._terminal[last] = True
        self._next_focus = np.append(trajectories.traversal[1:], 0).astype(np.int16)
        self._next_focus[last] = length
        self._next_action = np.append(trajectories.actions[1:], 0).astype(np.int16)
        width = compact_rows(trajectories.skeletons, [0], trajectories.tokens[:1], [0], None).shape
        super().__init__(
            buffer=_Columns(self),
            observation_signature=Signature([np.dtype(np.float32)], [(width[1],)]),
            action_signature=Signature([self._shown.dtype], [self._shown.shape[1:]]),
            reward_signature=Signature([np.dtype(np.float32)], [(1,)]),
            action_space=kind,
            action_size=size,
        )

    def __repr__(self) -> str:
        return f"CrystalReplayBuffer({self.trajectories!r}, {self.targets})"

    def sample_transition_batch(self, batch_size: int) -> CrystalMiniBatch:
        """Return a batch of transitions drawn at random, with replacement."""
        if self._cumulated is None:
            index = self.generator.integers(len(self._terminal), size=batch_size)
        else:
            index = np.searchsorted(self._cumulated, self.generator.random(batch_size), "right")
        targets = self._draw_targets(index)
        last = self._last_of(index, self._n_steps)
        first = self._as_stored(index)
        final = first if self._n_steps == 1 else self._as_stored(last)
        if self._reorder:
            anew = self.generator.random(batch_size) < self._reorder
            order = self._random_orders(index[anew])
            self._reordered(first, index, anew, order)
            if final is not first:
                self._reordered(final, last, anew, order)
        return self._batch(first, final, index, last, targets)

    def sample_transition(self) -> Transition:
        """Return one transition."""
        return next(iter(self.sample_transition_batch(1).transitions))

    def transitions(
        self, index: NDArray[np.int64], target_gap: NDArray[np.float64] | None
    ) -> CrystalMiniBatch:
        """Return the transitions of given numbers, relabelled for given targets.

        Args:
            index: Transition numbers, ``(B,)``.
            target_gap: eV, ``(B,)``, None without a target.
        """
        return self._leading(index, target_gap, self._n_steps)

    def _leading(
        self, index: NDArray[np.int64], target_gap: NDArray[np.float64] | None, n_steps: int
    ) -> CrystalMiniBatch:
        """Return transitions that lead ``n_steps`` on, in the stored orders."""
        last = self._last_of(index, n_steps)
        return self._batch(self._as_stored(index), self._as_stored(last), index, last, target_gap)

    def _last_of(self, index: NDArray[np.int64], n_steps: int) -> NDArray[np.int64]:
        """Return the last of the steps that each transition is made of."""
        ends = self.trajectories.step_ptr[self.trajectories.episode[index] + 1]
        return np.minimum(index + n_steps, ends) - 1

    def _as_stored(self, index: NDArray[np.int64]) -> _Moves:
        data = self.trajectories
        return _Moves(
            data.tokens[index],
            data.traversal[index],
            data.actions[index],
            self._next_focus[index],
            self._next_action[index],
        )

    def _random_orders(self, index: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return an order of filling for the episode of each step, ``(B, max_sites)``."""
        data, episode = self.trajectories, self.trajectories.episode[index]
        n_sites = data.step_ptr[episode + 1] - data.step_ptr[episode]
        drawn = self.generator.random((len(index), data.finished.shape[1]))
        drawn[np.arange(drawn.shape[1]) >= n_sites[:, None]] = np.inf
        return np.argsort(drawn, 1)

    def _reordered(
        self,
        moves: _Moves,
        index: NDArray[np.int64],
        anew: NDArray[np.bool_],
        order: NDArray[np.int64],
    ) -> None:
        """Overwrite some of the moves at some steps with those of other orders of filling."""
        data, index = self.trajectories, index[anew]
        episode, step, ends = data.episode[index], data.step[index], self._terminal[index]
        n_sites = data.step_ptr[episode + 1] - data.step_ptr[episode]
        finished, rows = data.finished[episode], np.arange(len(index))
        site, following = order[rows, step], order[rows, np.minimum(step + 1, n_sites - 1)]
        before = np.argsort(order, 1) < step[:, None]
        moves.tokens[anew] = np.where(before, finished, 0)
        moves.site[anew] = site
        moves.action[anew] = finished[rows, site] - 1
        moves.next_site[anew] = np.where(ends, n_sites, following)
        moves.next_action[anew] = np.where(ends, 0, finished[rows, following] - 1)

    def _batch(
        self,
        first: _Moves,
        final: _Moves,
        index: NDArray[np.int64],
        last: NDArray[np.int64],
        target_gap: NDArray[np.float64] | None,
    ) -> CrystalMiniBatch:
        """Return transitions from before the first move to after the final one."""
        data = self.trajectories
        observations = compact_rows(
            data.skeletons,
            data.skeleton[data.episode[index]],
            first.tokens,
            first.site,
            target_gap,
        )
        following = observations.copy()
        following[:, COMPACT_HEADER.index("focus")] = final.next_site
        following[:, _TOKENS : _TOKENS + final.tokens.shape[1]] = final.tokens
        following[np.arange(len(index)), _TOKENS + final.site] = final.action + 1
        terminal = self._terminal[last]
        # No action follows the last one: zeros, as d3rlpy has it.
        next_actions = np.where(terminal[:, None], 0, self._shown[final.next_action])
        intervals = (last - index + 1).astype(np.float32)
        rewards = np.zeros((len(index), 1), dtype=np.float32)
        if terminal.any():
            ends = data.episode[index[terminal]]
            target = None if target_gap is None else target_gap[terminal]
            discount = self._gamma ** (intervals[terminal] - 1.0)
            rewards[terminal, 0] = discount * self.episode_rewards(ends, target)
        return CrystalMiniBatch(
            observations=observations,
            actions=self._shown[first.action].astype(np.float32),
            rewards=rewards,
            next_observations=following,
            next_actions=next_actions.astype(np.float32),
            terminals=terminal[:, None].astype(np.float32),
            intervals=intervals[:, None],
            transitions=_LazyTransitions(self, index, target_gap),
            finished=data.finished[data.episode[index]],
        )

    def episode_rewards(
        self, episodes: NDArray[np.integer], target_gap: NDArray[np.float64] | None
    ) -> NDArray[np.float64]:
        """Return the terminal rewards of episodes for given targets, float64 ``(B,)``."""
        data = self.trajectories
        rewards = terminal_rewards(
            self._reward,
            data.total_energy_ry[episodes],
            data.formation_energy_ev_per_atom[episodes],
            data.band_gap_ev[episodes],
            target_gap,
        )
        return np.where(np.isfinite(rewards), rewards, self._failure_reward)

    def _draw_targets(self, index: NDArray[np.int64]) -> NDArray[np.float64] | None:
        gaps = self.trajectories.band_gap_ev[self.trajectories.episode[index]]
        return self.targets.sample(gaps, self.generator)

    def episode(self, number: int) -> Episode:
        """Return one episode in d3rlpy's form, with one target drawn for all its steps."""
        data = self.trajectories
        index = np.arange(data.step_ptr[number], data.step_ptr[number + 1])
        target = self._draw_targets(index[:1])
        targets = None if target is None else np.repeat(target, len(index))
        batch = self._leading(index, targets, n_steps=1)
        return Episode(
            observations=batch.observations,
            actions=batch.actions.astype(self._shown.dtype),
            rewards=batch.rewards,
            terminated=True,
        )

    @property
    def episodes(self) -> Sequence[Episode]:
        """The episodes in d3rlpy's form, made when they are asked for."""
        return _LazyEpisodes(self)

    def size(self) -> int:
        """Return the number of episodes."""
        return len(self.trajectories)

    @property
    def transition_count(self) -> int:
        """The number of transitions."""
        return len(self._terminal)

    def append(self, observation: Any, action: Any, reward: Any) -> None:
        """Refuse: the dataset is fixed."""
        raise ValueError(_FIXED)

    def append_episode(self, episode: Any) -> None:
        """Refuse: the dataset is fixed."""
        raise ValueError(_FIXED)

    def dump(self, f: BinaryIO | Path) -> None:
        """Refuse: the dataset is on disk already."""
        raise ValueError(_FIXED)


_FIXED = (
    "this replay buffer is a view of a dataset on disk and takes nothing in: for online training "
    "use d3rlpy.dataset.create_fifo_replay_buffer"
)


class _LazyTransitions(Sequence[Transition]):
    """The transitions of a batch one by one, for the few algorithms that ask for them."""

    def __init__(
        self,
        buffer: CrystalReplayBuffer,
        index: NDArray[np.int64],
        target_gap: NDArray[np.float64] | None,
    ) -> None:
        self._buffer, self._index, self._target_gap = buffer, index, target_gap

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, i: Any) -> Any:
        if isinstance(i, slice):
            target = None if self._target_gap is None else self._target_gap[i]
            return _LazyTransitions(self._buffer, self._index[i], target)
        data, shown = self._buffer.trajectories, self._buffer.dataset_info.action_signature
        index = int(self._index[i])
        number = int(data.episode[index])
        rest = np.arange(index, data.step_ptr[number + 1])
        target = None if self._target_gap is None else np.full(len(rest), self._target_gap[i])
        batch = self._buffer.transitions(rest[:1], None if target is None else target[:1])
        single = self._buffer._leading(rest, target, n_steps=1)
        return Transition(
            observation=batch.observations[0],
            action=batch.actions[0].astype(shown.dtype[0]),
            reward=batch.rewards[0],
            next_observation=batch.next_observations[0],
            next_action=batch.next_actions[0].astype(shown.dtype[0]),
            terminal=float(batch.terminals[0, 0]),
            interval=int(batch.intervals[0, 0]),
            rewards_to_go=single.rewards,
        )

    def __iter__(self) -> Iterator[Transition]:
        return (self[i] for i in range(len(self)))


class _LazyEpisodes(Sequence[Episode]):
    def __init__(self, buffer: CrystalReplayBuffer) -> None:
        self._buffer = buffer

    def __len__(self) -> int:
        return self._buffer.size()

    def __getitem__(self, i: Any) -> Any:
        return self._buffer.episode(range(len(self))[i])


class _Columns(d3rlpy.dataset.BufferProtocol):
    """d3rlpy's view of the storage: transition number to (episode, step)."""

    def __init__(self, buffer: CrystalReplayBuffer) -> None:
        self._buffer = buffer

    def append(self, episode: Any, index: int) -> None:
        raise ValueError(_FIXED)

    @property
    def episodes(self) -> Sequence[Episode]:
        return self._buffer.episodes

    def __len__(self) -> int:
        return self._buffer.transition_count

    @property
    def transition_count(self) -> int:
        return self._buffer.transition_count

    def __getitem__(self, index: int) -> tuple[Episode, int]:
        data = self._buffer.trajectories
        number = int(data.episode[index])
        return self._buffer.episode(number), int(index - data.step_ptr[number])
