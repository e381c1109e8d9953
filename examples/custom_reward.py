"""Your own reward, of two properties: a band gap near a target, in a light crystal.

A reward is a function of `Properties`. What an oracle knows besides energies and gap goes into
their `details`; here a subclass of the table of DFT results adds the density. Prints the best paid
of 2,000 random fillings by eqn (7) of the paper, which pays for the gap and stability, and by the
new reward, which gets what it asks for: solid hydrogen is light. Ten seconds.

`load_d3rlpy(reward=...)` takes such functions too, but stored episodes know energies and gap alone.

python examples/custom_reward.py [TARGET_EV]
"""

import sys
from collections.abc import Sequence
from dataclasses import replace

import gymnasium as gym
import numpy as np

import crystal_gym  # noqa: F401  (registers CrystalFill-v0)
from crystal_gym.oracles import Filling, Properties, TableOracle


class TableWithDensity(TableOracle):
    """The table, and the density of each crystal."""

    def evaluate_fillings(self, fillings: Sequence[Filling]) -> list[Properties]:
        """Return the properties of each filling."""
        structures = [skeleton.structure(tokens) for skeleton, tokens in fillings]
        return [
            replace(known, details={"density_g_cm3": float(structure.density)})
            for known, structure in zip(
                super().evaluate_fillings(fillings), structures, strict=True
            )
        ]


def light(properties: Properties, target_gap: float | None) -> float | None:
    """Pay for the gap, and the less the denser the crystal; None where the gap is unknown."""
    if properties.band_gap_ev is None or target_gap is None:
        return None
    close = np.exp(-((properties.band_gap_ev - target_gap) ** 2) / 3)
    return float(10 * close * np.exp(-properties.details["density_g_cm3"] / 5))


def main(target_gap: float = 3.0) -> None:
    """Fill skeletons at random under both rewards."""
    for reward in ("formation", light):
        env = gym.make(
            "CrystalFill-v0",
            target_gap=target_gap,
            skeletons="tabular",
            oracle=TableWithDensity("tabular"),
            reward=reward,
        )
        env.action_space.seed(0)
        paid = {}
        for seed in range(2000):
            _, info = env.reset(seed=seed)
            terminated = False
            while not terminated:
                action = env.action_space.sample(info["action_mask"])
                _, earned, terminated, _, info = env.step(action)
            density = env.unwrapped.structure().density
            paid[earned] = info["formula"], info["properties"]["band_gap_ev"], density
        print(f"reward: {getattr(reward, '__name__', reward)}")
        for earned in sorted(paid, reverse=True)[:4]:
            formula, gap, density = paid[earned]
            print(f"  {formula:8s} {earned:5.2f}   gap {gap:.2f} eV, {density:.2f} g/cm3")


if __name__ == "__main__":
    main(*map(float, sys.argv[1:]))
