"""From labelled crystals to trajectories: which orders each crystal is filled in.

Everything is columnar. ``K`` episodes of ``T`` transitions in all; an episode's transitions lie
between two entries of ``step_ptr``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from crystal_gym.files import room_for
from crystal_gym.graphs import breadth_first_order
from crystal_gym.oracles import PropertyTable, Status, TableOracle
from crystal_gym.ragged import run_entries, run_starts, take_runs
from crystal_gym.skeletons import Skeleton, SkeletonSet

__all__ = [
    "MAX_ORDERS",
    "Trajectories",
    "in_source_order",
    "joined",
    "plan_trajectories",
    "sample_boltzmann",
    "sample_uniform",
    "start_sites",
]

MAX_ORDERS = 5
"""Breadth-first orders per crystal, as in the paper; as many as sites in smaller cells."""

_EPISODES_AT_ONCE = 8_192
"""Bounds the memory that a result of any size takes beside itself."""


@dataclass(frozen=True, eq=False)
class Trajectories:
    """Expert episodes that rebuild labelled crystals.

    Attributes:
        skeletons: The set that skeleton numbers refer to.
        skeleton: Skeleton number of every episode, int64 ``(K,)``.
        step_ptr: First transition of every episode, int64 ``(K + 1,)``.
        traversal: Site filled by every transition, int16 ``(T,)``.
        actions: Element (0 to 87) put there, int16 ``(T,)``.
        total_energy_ry: Of the finished crystal, float64 ``(K,)``, Ry per cell.
        formation_energy_ev_per_atom: float64 ``(K,)``.
        band_gap_ev: float64 ``(K,)``.
    """

    skeletons: SkeletonSet
    skeleton: NDArray[np.int64]
    step_ptr: NDArray[np.int64]
    traversal: NDArray[np.int16]
    actions: NDArray[np.int16]
    total_energy_ry: NDArray[np.float64]
    formation_energy_ev_per_atom: NDArray[np.float64]
    band_gap_ev: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.skeleton)

    def __repr__(self) -> str:
        return f"Trajectories({len(self)} episodes, {len(self.actions)} transitions)"

    @property
    def episode(self) -> NDArray[np.int32]:
        """Episode of every transition, ``(T,)``."""
        return np.repeat(np.arange(len(self), dtype=np.int32), np.diff(self.step_ptr))

    @property
    def step(self) -> NDArray[np.int16]:
        """Sites filled before every transition, ``(T,)``."""
        first = np.repeat(self.step_ptr[:-1], np.diff(self.step_ptr))
        return (np.arange(len(self.actions)) - first).astype(np.int16)

    @property
    def finished(self) -> NDArray[np.int8]:
        """Tokens of the finished crystals, int8 ``(K, max_sites)``, 0 beyond their sites."""
        tokens = np.empty((len(self), self.skeletons.max_sites), dtype=np.int8)
        for first in range(0, len(self), _EPISODES_AT_ONCE):
            episodes = np.arange(first, min(first + _EPISODES_AT_ONCE, len(self)))
            tokens[episodes] = self.fillings(episodes)[0]
        return tokens

    @cached_property
    def crystals(self) -> NDArray[np.int64]:
        """First episode that ends in each crystal, sorted by skeleton and tokens, ``(M,)``.

        What counts crystals starts here: a small cell has fewer orders, so fewer episodes.
        """
        # Of bytes, highest first: the order is that of the numbers, in an eighth of their memory.
        number = self.skeleton.astype(">u4")[:, None].view(np.uint8)
        ends = np.concatenate([number, self.finished.view(np.uint8)], axis=1)
        return np.unique(ends.view(f"V{ends.shape[1]}")[:, 0], return_index=True)[1]

    def episode_of(self, transitions: NDArray[np.integer] | np.integer) -> NDArray[np.int64]:
        """Return the episodes of transitions, by number, ``(B,)``."""
        return np.searchsorted(self.step_ptr, transitions, "right") - 1

    def fillings(self, episodes: NDArray[np.integer]) -> tuple[NDArray[np.int8], NDArray[np.int16]]:
        """Return the crystals that episodes end in, and at which step each site is filled.

        Args:
            episodes: Numbers, ``(B,)``.

        Returns:
            Tokens, int8 ``(B, max_sites)``, 0 beyond a crystal's sites; and steps, int16
            ``(B, max_sites)``, -1 there.
        """
        first = self.step_ptr[episodes]
        counts = self.step_ptr[np.asarray(episodes) + 1] - first
        transitions, starts = run_entries(first, counts)
        width = self.skeletons.max_sites
        cells = np.repeat(np.arange(len(first)) * width, counts) + self.traversal[transitions]
        tokens = np.zeros(len(first) * width, dtype=np.int8)
        steps = np.full(len(first) * width, -1, dtype=np.int16)
        tokens[cells] = self.actions[transitions] + 1
        steps[cells] = np.arange(len(cells)) - np.repeat(starts[:-1], counts)
        return tokens.reshape(-1, width), steps.reshape(-1, width)

    def tokens_before(self, transitions: NDArray[np.integer]) -> NDArray[np.int8]:
        """Return tokens before transitions, int8 ``(B, max_sites)``, 0 beyond their sites."""
        episodes = self.episode_of(transitions)
        tokens, steps = self.fillings(episodes)
        return np.where(steps < (transitions - self.step_ptr[episodes])[:, None], tokens, 0)

    def columns(self) -> dict[str, NDArray[Any]]:
        """Return the arrays by name, without the skeletons."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "skeletons"}

    def subset(self, episodes: NDArray[np.integer]) -> Trajectories:
        """Return only some episodes, by number."""
        if np.array_equal(episodes, np.arange(len(self))):
            return self
        step_ptr = run_starts(np.diff(self.step_ptr)[episodes])
        columns = {
            name: room_for((int(step_ptr[-1]),), np.int16) for name in ("traversal", "actions")
        }
        for first in range(0, len(episodes), _EPISODES_AT_ONCE):
            steps, _ = take_runs(self.step_ptr, episodes[first : first + _EPISODES_AT_ONCE])
            for name, column in columns.items():
                start = step_ptr[first]
                column[start : start + len(steps)] = getattr(self, name)[steps]
        return Trajectories(
            skeletons=self.skeletons,
            skeleton=self.skeleton[episodes],
            step_ptr=step_ptr,
            total_energy_ry=self.total_energy_ry[episodes],
            formation_energy_ev_per_atom=self.formation_energy_ev_per_atom[episodes],
            band_gap_ev=self.band_gap_ev[episodes],
            **columns,
        )

    def final_tokens(self, episode: int) -> NDArray[np.int16]:
        """Return the finished crystal of one episode, ``(n_sites,)``."""
        steps = slice(int(self.step_ptr[episode]), int(self.step_ptr[episode + 1]))
        tokens = np.zeros(steps.stop - steps.start, dtype=np.int16)
        tokens[self.traversal[steps]] = self.actions[steps] + 1
        return tokens


def in_source_order(trajectories: Trajectories) -> Trajectories:
    """Return the same episodes with sites numbered as in the source files.

    This numbering **leaks the elements** (:meth:`SkeletonSet.in_source_order`). Its only use is to
    reproduce the published protocol.
    """
    skeletons = trajectories.skeletons
    owner = np.repeat(np.arange(len(skeletons)), skeletons.n_sites)
    order = np.lexsort((skeletons.source_rank, owner))
    number = np.empty(len(owner), dtype=np.int64)
    number[order] = np.arange(len(owner)) - skeletons.site_ptr[owner]
    first = skeletons.site_ptr[trajectories.skeleton[trajectories.episode]]
    return replace(
        trajectories,
        skeletons=skeletons.in_source_order(),
        traversal=number[first + trajectories.traversal].astype(np.int16),
    )


def start_sites(skeleton: Skeleton, count: int) -> NDArray[np.int64]:
    """Return ``min(count, n_sites)`` different start sites, drawn from the geometry alone."""
    geometry = int(skeleton.key.split(":")[0], 16)
    generator = np.random.default_rng([geometry, 1])
    return generator.permutation(skeleton.n_sites)[:count]


def plan_trajectories(table: PropertyTable, max_orders: int = MAX_ORDERS) -> Trajectories:
    """Return breadth-first trajectories of every calculated crystal of a table.

    Args:
        table: Entries whose status is not ``ok`` have no properties and give no trajectory.
        max_orders: Orders per crystal, from different start sites.

    Returns:
        Crystal by crystal, in the order of the table.

    Raises:
        ValueError: If no entry is ``ok``.
    """
    entries = np.flatnonzero(table.status == Status.OK.value)
    if not len(entries):
        raise ValueError("the table holds no calculated crystal (status ok) to make episodes of")
    episodes: list[_Episode] = []
    for entry in entries.tolist():
        skeleton = table.skeletons[int(table.skeleton[entry])]
        tokens = table.entry_tokens(entry)
        for start in start_sites(skeleton, max_orders).tolist():
            order = breadth_first_order(skeleton.neighbours, start)
            episodes.append(_Episode(entry, order, tokens[order] - 1))
    return _columns(table, episodes)


class _Episode(NamedTuple):
    """One episode: the table's entry that it ends in, its sites and its actions in order."""

    entry: int
    order: NDArray[np.int64]
    actions: NDArray[np.int16]


def _columns(table: PropertyTable, episodes: Sequence[_Episode]) -> Trajectories:
    entries = [episode.entry for episode in episodes]
    return Trajectories(
        skeletons=table.skeletons,
        skeleton=table.skeleton[entries],
        step_ptr=run_starts([len(episode.order) for episode in episodes]),
        traversal=np.concatenate([episode.order for episode in episodes]).astype(np.int16),
        actions=np.concatenate([episode.actions for episode in episodes]).astype(np.int16),
        total_energy_ry=table.total_energy_ry[entries],
        formation_energy_ev_per_atom=table.formation_energy_ev_per_atom[entries],
        band_gap_ev=table.band_gap_ev[entries],
    )


def sample_uniform(table: PropertyTable, episodes: int, seed: int = 0) -> Trajectories:
    """Return episodes of the uniform policy over the actions that ``mask="table"`` allows.

    Args:
        table: Of which every end state is an entry.
        episodes: For each skeleton, from start sites drawn uniformly.
        seed: Of everything drawn.

    Returns:
        Skeleton by skeleton.
    """
    oracle = TableOracle(table)

    def choose(generator: np.random.Generator, skeleton: Skeleton, order: NDArray[np.int64]) -> Any:
        tokens = np.zeros(skeleton.n_sites, dtype=np.int16)
        for site in order.tolist():
            allowed = np.flatnonzero(oracle.extensions(skeleton, tokens, site))
            tokens[site] = generator.choice(allowed) + 1
        return tokens

    return _sample(table, episodes, seed, choose)


def sample_boltzmann(
    table: PropertyTable,
    rewards: NDArray[np.float64],
    episodes: int,
    temperature: float,
    seed: int = 0,
) -> Trajectories:
    """Return episodes of the policy that is optimal for reward plus temperature times entropy.

    It ends in each filling with a probability proportional to ``exp(reward / temperature)``: near
    the optimum at a low temperature, and never quite the same.

    Args:
        table: Of which every end state is an entry.
        rewards: Terminal reward of every entry, ``(M,)``; -inf for one that is never chosen.
        episodes: For each skeleton, from start sites drawn uniformly.
        temperature: In units of the reward.
        seed: Of everything drawn.

    Returns:
        Skeleton by skeleton.
    """

    def choose(generator: np.random.Generator, skeleton: Skeleton, order: NDArray[np.int64]) -> Any:
        entries = np.flatnonzero((table.skeleton == skeleton.index) & np.isfinite(rewards))
        weights = np.exp((rewards[entries] - rewards[entries].max()) / temperature)
        entry = int(generator.choice(entries, p=weights / weights.sum()))
        return table.entry_tokens(entry)[generator.choice(skeleton.permutations)]

    return _sample(table, episodes, seed, choose)


def _sample(
    table: PropertyTable, episodes: int, seed: int, choose: Callable[..., NDArray[np.int16]]
) -> Trajectories:
    generator = np.random.default_rng(seed)
    found: list[_Episode] = []
    for skeleton in table.skeletons:
        for _ in range(episodes):
            start = int(generator.integers(skeleton.n_sites))
            order = breadth_first_order(skeleton.neighbours, start)
            tokens = choose(generator, skeleton, order)
            entry = table.entry_of(skeleton, tokens)
            assert entry is not None  # every end state is one
            found.append(_Episode(entry, order, tokens[order] - 1))
    return _columns(table, found)


def joined(parts: Sequence[Trajectories]) -> Trajectories:
    """Return the episodes of several collections over one skeleton set, one after the other.

    Args:
        parts: Collections over the same skeletons.

    Returns:
        All their episodes.

    Raises:
        ValueError: If they are over different sets.
    """
    if len({part.skeletons.table_id for part in parts}) != 1:
        raise ValueError("episodes over different skeleton sets cannot be joined")
    values = {f.name: [getattr(part, f.name) for part in parts] for f in fields(Trajectories)}
    del values["skeletons"], values["step_ptr"]
    sizes = np.concatenate([np.diff(part.step_ptr) for part in parts])
    columns = {name: np.concatenate(arrays) for name, arrays in values.items()}
    return Trajectories(skeletons=parts[0].skeletons, step_ptr=run_starts(sizes), **columns)
