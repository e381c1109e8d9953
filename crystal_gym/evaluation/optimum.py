"""The best that can be done, where every filling is in a table: exact optima and regret."""

from __future__ import annotations

from dataclasses import dataclass

import gymnasium as gym
import numpy as np
from numpy.typing import ArrayLike, NDArray

from crystal_gym.datasets.relabel import terminal_rewards
from crystal_gym.evaluation.rollout import Policy
from crystal_gym.oracles import Properties, PropertyTable, Status, load_table
from crystal_gym.rewards import Reward

__all__ = ["Optimum", "optimal_rewards", "optimum", "regret", "tabular_regret"]


@dataclass(frozen=True, eq=False)
class Optimum:
    """The best filling of a skeleton.

    Attributes:
        reward: Its terminal reward, which is the return of an optimal policy (gamma = 1).
        tokens: The filling, int16 ``(n_sites,)``; symmetric relabellings of it are as good.
        properties: What was calculated for it.
    """

    reward: float
    tokens: NDArray[np.int16]
    properties: Properties


def optimum(
    table: PropertyTable,
    skeleton: int,
    target_gap: float | None,
    reward: str | Reward = "formation",
) -> Optimum:
    """Return the best calculated filling of one skeleton.

    For ``skeletons="tabular"``, whose mask leads to calculated fillings only, nothing better can
    be reached.

    Args:
        table: Such as ``load_table("tabular")``.
        skeleton: Its number in the table's set.
        target_gap: eV, None for the unconditional task.
        reward: As for ``gym.make(reward=...)``.

    Returns:
        The filling, its properties and its reward.

    Raises:
        ValueError: If the table holds no calculated filling of that skeleton.
    """
    rewards = _rewards(table, target_gap, reward)
    rewards[table.skeleton != skeleton] = -np.inf
    best = int(np.argmax(rewards))
    if rewards[best] == -np.inf:
        raise ValueError(
            f"the table holds no calculated filling of skeleton {skeleton}: expected a number from "
            f"0 to {len(table.skeletons) - 1} of a skeleton with one"
        )
    return Optimum(float(rewards[best]), table.entry_tokens(best), table.properties(best))


def optimal_rewards(
    table: PropertyTable, target_gap: float | None, reward: str | Reward = "formation"
) -> NDArray[np.float64]:
    """Return the best reward of every skeleton, ``(n_skeletons,)``, -inf where there is none.

    Args:
        table: Such as ``load_table("tabular")``.
        target_gap: eV, None for the unconditional task.
        reward: As for ``gym.make(reward=...)``.

    Returns:
        One reward a skeleton.
    """
    best = np.full(len(table.skeletons), -np.inf)
    np.maximum.at(best, table.skeleton, _rewards(table, target_gap, reward))
    return best


def regret(
    table: PropertyTable,
    skeleton: ArrayLike,
    achieved: ArrayLike,
    target_gap: float | None,
    reward: str | Reward = "formation",
) -> NDArray[np.float64]:
    """Return how much each episode fell short of the optimum, ``(n_episodes,)``, not below 0.

    Args:
        table: With every filling that can be reached.
        skeleton: Skeleton number of each episode.
        achieved: Its return.
        target_gap: eV, the same for all.
        reward: The reward that ``achieved`` was paid by.

    Returns:
        In units of the reward.
    """
    return optimal_rewards(table, target_gap, reward)[np.asarray(skeleton)] - np.asarray(achieved)


def tabular_regret(
    policy: Policy, target_gap: float | None, *, seed: int = 0
) -> NDArray[np.float64]:
    """Return the regret of a policy on every skeleton of the bundled set ``tabular``, by DFT.

    The environment's mask leads to calculated fillings only, so every episode has a reward.

    Args:
        policy: Acts on packed rows under a mask.
        target_gap: eV.
        seed: Of the start sites.

    Returns:
        In units of the reward, ``(n_skeletons,)``.
    """
    env = gym.make(
        "CrystalFill-v0", skeletons="tabular", observation="packed", target_gap=target_gap
    )
    count = len(load_table("tabular").skeletons)
    achieved = np.zeros(count)
    for number in range(count):
        row, info = env.reset(seed=seed + number, options={"skeleton": number})
        done = False
        while not done:
            action = policy.predict(row[None], info["action_mask"])[0]
            row, achieved[number], done, _, info = env.step(int(action))
    env.close()
    return regret(load_table("tabular"), np.arange(count), achieved, target_gap)


def _rewards(
    table: PropertyTable, target_gap: float | None, reward: str | Reward
) -> NDArray[np.float64]:
    """Return the reward of every entry, -inf for one without properties."""
    rewards = terminal_rewards(
        reward,
        table.total_energy_ry,
        table.formation_energy_ev_per_atom,
        table.band_gap_ev,
        None if target_gap is None else np.full(len(table), float(target_gap)),
    )
    known = (table.status == Status.OK.value) & ~np.isnan(rewards)
    return np.where(known, rewards, -np.inf)
