"""Filling many skeletons at once with a policy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from crystal_gym.datasets.trajectories import Trajectories, start_sites
from crystal_gym.envs.observations import compact_rows
from crystal_gym.graphs import breadth_first_order
from crystal_gym.skeletons import SkeletonSet
from crystal_gym.targets import check_target_gap

__all__ = ["MaskRule", "Policy", "Task", "Valued", "mask_of", "rollout"]

MaskRule: TypeAlias = Callable[..., NDArray[np.int8]]
"""From partial fillings and their numbers of sites to the elements allowed next.

Searches that fill several sites at once hand over how many, as a third argument.
"""


class Policy(Protocol):
    """What a rollout asks."""

    def predict(
        self, observations: NDArray[np.float32], action_mask: NDArray[np.int8] | None = None
    ) -> NDArray[np.int64]:
        """Return one action for each row.

        Args:
            observations: Compact or packed rows, float32 ``(B, D)``.
            action_mask: 1 = allowed, int8 ``(88,)`` or ``(B, 88)``; None allows all.

        Returns:
            Actions 0 to 87, ``(B,)``.
        """


class Valued(Protocol):
    """A policy that says how good it finds every element."""

    def values(self, observations: NDArray[np.float32]) -> NDArray[np.floating]:
        """Return one logit for each action, ``(B, 88)``, of compact rows ``(B, D)``."""


@dataclass(frozen=True, eq=False)
class Task:
    """Skeletons to fill, each in a given order.

    Attributes:
        skeletons: The set.
        skeleton: Skeleton number of each of ``B`` fillings, int64 ``(B,)``.
        traversal: Sites in the order of filling, int16 ``(B, max_sites)``, -1 beyond the last.
    """

    skeletons: SkeletonSet
    skeleton: NDArray[np.int64]
    traversal: NDArray[np.int16]

    def __len__(self) -> int:
        return len(self.skeleton)

    @property
    def n_sites(self) -> NDArray[np.int64]:
        """Sites of each skeleton, ``(B,)``."""
        return self.skeletons.n_sites[self.skeleton]

    @cached_property
    def reference(self) -> NDArray[np.int16]:
        """Tokens of the source crystals, int16 ``(B, max_sites)``, 0 beyond the last site."""
        tokens = np.zeros((len(self), self.skeletons.max_sites), dtype=np.int16)
        for row, number in enumerate(self.skeleton.tolist()):
            reference = self.skeletons[number].reference
            tokens[row, : len(reference)] = reference
        return tokens

    def first_orders(self) -> Task:
        """Return the same skeletons, each of them once, in the first of their orders."""
        _, first = np.unique(self.skeleton, return_index=True)
        return self.rows(np.sort(first))

    def rows(self, rows: NDArray[np.integer]) -> Task:
        """Return some of the fillings, by number."""
        return Task(self.skeletons, self.skeleton[rows], self.traversal[rows])

    @classmethod
    def of_trajectories(cls, trajectories: Trajectories) -> Task:
        """Return the orders of stored episodes."""
        traversal = np.full((len(trajectories), trajectories.skeletons.max_sites), -1, np.int16)
        traversal[trajectories.episode, trajectories.step] = trajectories.traversal
        return cls(trajectories.skeletons, trajectories.skeleton, traversal)

    @classmethod
    def of_skeletons(cls, skeletons: SkeletonSet, numbers: Sequence[int] | None = None) -> Task:
        """Return one order for each skeleton, its start site drawn from the geometry alone."""
        chosen = np.arange(len(skeletons)) if numbers is None else np.asarray(numbers)
        traversal = np.full((len(chosen), skeletons.max_sites), -1, dtype=np.int16)
        for row, number in enumerate(chosen.tolist()):
            skeleton = skeletons[number]
            start = int(start_sites(skeleton, 1)[0])
            traversal[row, : skeleton.n_sites] = breadth_first_order(skeleton.neighbours, start)
        return cls(skeletons, chosen, traversal)


def rollout(
    policy: Policy,
    task: Task,
    target_gap: float | NDArray[np.float64] | None,
    *,
    action_mask: NDArray[np.int8] | MaskRule | None = None,
    batch_size: int = 1024,
    progress: bool = False,
) -> NDArray[np.int16]:
    """Fill every skeleton of a task, all of them a site at a time.

    Args:
        policy: Chooses the elements.
        task: Skeletons and orders.
        target_gap: eV, one for all or ``(B,)``; None for the unconditional task.
        action_mask: Elements allowed everywhere, int8 ``(88,)``, or a rule for partial fillings
            such as ``ChargeNeutralMask().rows``: from tokens ``(B, max_sites)`` and numbers of
            sites ``(B,)`` to int8 ``(B, 88)``.
        batch_size: Rows per call of the policy.
        progress: Show a progress bar on standard error.

    Returns:
        Element tokens, int16 ``(B, max_sites)``, 0 beyond a skeleton's sites.
    """
    tokens = np.zeros((len(task), task.skeletons.max_sites), dtype=np.int16)
    n_sites = task.n_sites
    targets = None if target_gap is None else np.broadcast_to(target_gap, len(task))
    for target in () if targets is None else np.unique(targets).tolist():
        check_target_gap(target)
    bar = tqdm(total=int(n_sites.sum()), desc="filling", unit="site", disable=not progress)
    # Skeletons of one size side by side keep every batch full until its skeletons are done.
    by_size = np.argsort(n_sites, kind="stable")
    for first in range(0, len(task), batch_size):
        part = by_size[first : first + batch_size]
        for step in range(int(n_sites[part].max())):
            rows = part[n_sites[part] > step]
            focus = task.traversal[rows, step]
            observations = compact_rows(
                task.skeletons,
                task.skeleton[rows],
                tokens[rows],
                focus,
                None if targets is None else targets[rows],
            )
            mask = mask_of(action_mask, tokens[rows], n_sites[rows])
            tokens[rows, focus] = policy.predict(observations, mask) + 1
            bar.update(len(rows))
    bar.close()
    return tokens


def mask_of(
    action_mask: NDArray[np.int8] | MaskRule | None,
    tokens: NDArray[np.integer],
    n_sites: NDArray[np.integer],
) -> NDArray[np.int8] | None:
    """Return the mask of partial fillings ``(B, max_sites)``, from a rule where there is one."""
    return action_mask(tokens, n_sites) if callable(action_mask) else action_mask
