"""Datasets as d3rlpy replay buffers: columnar, sampled and relabelled at once for a whole batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from crystal_gym.extras import require_agents

require_agents("loading a dataset for d3rlpy")

import d3rlpy
import minari
import numpy as np
from d3rlpy.constants import ActionSpace
from d3rlpy.dataset import Episode, ReplayBuffer, Signature, Transition, TransitionMiniBatch
from numpy.typing import NDArray

from crystal_gym.datasets.minari_io import load_trajectories
from crystal_gym.datasets.relabel import terminal_rewards
from crystal_gym.targets import TargetSampler
from crystal_gym.datasets.trajectories import Trajectories
from crystal_gym.element_embedding import EMBEDDING
from crystal_gym.elements import N_ELEMENTS
from crystal_gym.envs.observations import COMPACT_HEADER, MIN_ROW_SITES, compact_rows
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

    Returns:
        A buffer for ``algo.fit``.

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


class _Drawn(NamedTuple):
    """Transitions of a batch and what they are part of.

    Attributes:
        number: Of each, ``(B,)``.
        last: The last of the steps that each is made of, ``(B,)``.
        episode: ``(B,)``.
        start: First transition of the episode, ``(B,)``.
        end: One beyond its last, ``(B,)``.
        finished: Tokens of the crystal it ends in, int8 ``(B, max_sites)``.
        filled_at: Step at which each site is filled, int16 ``(B, max_sites)``.
    """

    number: NDArray[np.int64]
    last: NDArray[np.int64]
    episode: NDArray[np.int64]
    start: NDArray[np.int64]
    end: NDArray[np.int64]
    finished: NDArray[np.int8]
    filled_at: NDArray[np.int16]

    @classmethod
    def of(cls, data: Trajectories, index: NDArray[np.int64], n_steps: int) -> _Drawn:
        """Return transitions of given numbers that lead ``n_steps`` on."""
        episode = data.episode_of(index)
        start, end = data.step_ptr[episode], data.step_ptr[episode + 1]
        last = index if n_steps == 1 else np.minimum(index + n_steps, end) - 1
        return cls(index, last, episode, start, end, *data.fillings(episode))


class _Moves(NamedTuple):
    """What is done at the steps of a batch: tokens before, site, element; the next two."""

    tokens: NDArray[np.int8]
    site: NDArray[np.int16]
    action: NDArray[np.int16]
    next_site: NDArray[np.int16]
    next_action: NDArray[np.int16]


class _Ranges:
    """Draws transitions, those of rarer ranges of gaps more often.

    A transition's weight is that of its episode, so that only these are kept.
    """

    def __init__(self, trajectories: Trajectories, balance: float) -> None:
        gap_range = np.floor(trajectories.band_gap_ev / BALANCED_RANGE_EV).clip(0).astype(np.int64)
        length = np.diff(trajectories.step_ptr)
        counts = np.bincount(gap_range, length)
        # A range with a handful of crystals is not worth as much as one with a thousand.
        counts = np.maximum(counts, 0.01 * counts.sum())
        self._step_ptr = trajectories.step_ptr
        self._weight = (counts**-balance)[gap_range]
        self._cumulated = np.concatenate([[0.0], np.cumsum(self._weight * length)])

    def draw(self, generator: np.random.Generator, size: int) -> NDArray[np.int64]:
        """Return numbers of transitions, ``(size,)``."""
        drawn = generator.random(size) * self._cumulated[-1]
        episode = np.searchsorted(self._cumulated, drawn, "right") - 1
        step = (drawn - self._cumulated[episode]) / self._weight[episode]
        first, end = self._step_ptr[episode], self._step_ptr[episode + 1]
        return np.minimum(first + step.astype(np.int64), end - 1)


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
        self._ranges = _Ranges(trajectories, balance) if balance else None
        trajectories.skeletons.register()  # for the encoders to find
        width = len(COMPACT_HEADER) + max(MIN_ROW_SITES, trajectories.skeletons.max_sites)
        super().__init__(
            buffer=_Columns(self),
            observation_signature=Signature([np.dtype(np.float32)], [(width,)]),
            action_signature=Signature([self._shown.dtype], [self._shown.shape[1:]]),
            reward_signature=Signature([np.dtype(np.float32)], [(1,)]),
            action_space=kind,
            action_size=size,
        )

    def __repr__(self) -> str:
        return f"CrystalReplayBuffer({self.trajectories!r}, {self.targets})"

    def sample_transition_batch(self, batch_size: int) -> CrystalMiniBatch:
        """Return a batch of transitions drawn at random, with replacement."""
        if self._ranges is None:
            index = self.generator.integers(self.transition_count, size=batch_size)
        else:
            index = self._ranges.draw(self.generator, batch_size)
        drawn = _Drawn.of(self.trajectories, index, self._n_steps)
        targets = self._draw_targets(drawn.episode)
        first, final = self._stored_moves(drawn)
        if self._reorder:
            anew = self.generator.random(batch_size) < self._reorder
            order = self._random_orders(drawn, anew)
            _reorder(first, drawn, drawn.number, anew, order)
            if final is not first:
                _reorder(final, drawn, drawn.last, anew, order)
        return self._batch(first, final, drawn, targets)

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

        Returns:
            ``B`` transitions.
        """
        return self._leading(index, target_gap, self._n_steps)

    def _leading(
        self, index: NDArray[np.int64], target_gap: NDArray[np.float64] | None, n_steps: int
    ) -> CrystalMiniBatch:
        """Return transitions that lead ``n_steps`` on, in the stored orders."""
        drawn = _Drawn.of(self.trajectories, index, n_steps)
        return self._batch(*self._stored_moves(drawn), drawn, target_gap)

    def _stored_moves(self, drawn: _Drawn) -> tuple[_Moves, _Moves]:
        """Return the first and the final of the moves of each transition, in the stored order."""
        first = self._as_stored(drawn, drawn.number)
        return first, first if drawn.last is drawn.number else self._as_stored(drawn, drawn.last)

    def _as_stored(self, drawn: _Drawn, index: NDArray[np.int64]) -> _Moves:
        data, is_end = self.trajectories, index + 1 == drawn.end
        following = np.where(is_end, index, index + 1)
        before = drawn.filled_at < (index - drawn.start)[:, None]
        return _Moves(
            np.where(before, drawn.finished, 0),
            data.traversal[index],
            data.actions[index],
            np.where(is_end, drawn.end - drawn.start, data.traversal[following]),
            data.actions[following],
        )

    def _random_orders(self, drawn: _Drawn, anew: NDArray[np.bool_]) -> NDArray[np.int64]:
        """Return an order of filling for some of the transitions, ``(some, max_sites)``."""
        n_sites = (drawn.end - drawn.start)[anew]
        places = self.generator.random((len(n_sites), drawn.finished.shape[1]))
        places[np.arange(places.shape[1]) >= n_sites[:, None]] = np.inf
        return np.argsort(places, 1)

    def _batch(
        self,
        first: _Moves,
        final: _Moves,
        drawn: _Drawn,
        target_gap: NDArray[np.float64] | None,
    ) -> CrystalMiniBatch:
        """Return transitions from before the first move to after the final one."""
        data, index = self.trajectories, drawn.number
        observations = compact_rows(
            data.skeletons,
            data.skeleton[drawn.episode],
            first.tokens,
            first.site,
            target_gap,
        )
        following = observations.copy()
        following[:, COMPACT_HEADER.index("focus")] = final.next_site
        following[:, _TOKENS : _TOKENS + final.tokens.shape[1]] = final.tokens
        following[np.arange(len(index)), _TOKENS + final.site] = final.action + 1
        terminal = drawn.last + 1 == drawn.end
        # No action follows the last one: zeros, as d3rlpy has it.
        next_actions = np.where(terminal[:, None], 0, self._shown[final.next_action])
        intervals = (drawn.last - index + 1).astype(np.float32)
        rewards = np.zeros((len(index), 1), dtype=np.float32)
        if terminal.any():
            ends = drawn.episode[terminal]
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
            finished=drawn.finished,
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

    def _draw_targets(self, episode: NDArray[np.int64]) -> NDArray[np.float64] | None:
        return self.targets.sample(self.trajectories.band_gap_ev[episode], self.generator)

    def episode(self, number: int) -> Episode:
        """Return one episode in d3rlpy's form, with one target drawn for all its steps."""
        data = self.trajectories
        index = np.arange(data.step_ptr[number], data.step_ptr[number + 1])
        target = self._draw_targets(np.array([number]))
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
        return len(self.trajectories.actions)

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


def _reorder(
    moves: _Moves,
    drawn: _Drawn,
    index: NDArray[np.int64],
    anew: NDArray[np.bool_],
    order: NDArray[np.int64],
) -> None:
    """Overwrite some of the moves at some steps with those of other orders of filling."""
    step, n_sites = (index - drawn.start)[anew], (drawn.end - drawn.start)[anew]
    finished, rows, is_end = drawn.finished[anew], np.arange(len(step)), step + 1 == n_sites
    site, following = order[rows, step], order[rows, np.where(is_end, step, step + 1)]
    before = np.argsort(order, 1) < step[:, None]
    moves.tokens[anew] = np.where(before, finished, 0)
    moves.site[anew] = site
    moves.action[anew] = finished[rows, site] - 1
    moves.next_site[anew] = np.where(is_end, n_sites, following)
    moves.next_action[anew] = np.where(is_end, 0, finished[rows, following] - 1)


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
        number = int(data.episode_of(self._index[i]))
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
        number = int(data.episode_of(np.int64(index)))
        return self._buffer.episode(number), int(index - data.step_ptr[number])
