"""Train behavioural cloning on the bundled crystals and fill a skeleton of your own with it.

Prints what it makes of a fluorite for three target gaps, and whether the table of DFT results knows
that. Half a minute; so few steps learn more by heart than they understand.

python examples/train_and_act.py [STEPS]
"""

import sys

import gymnasium as gym
import minari
from pymatgen.core import Lattice, Structure

import crystal_gym  # noqa: F401  (registers CrystalFill-v0)
from crystal_gym.agents import CrystalBCConfig, GreedyPolicy
from crystal_gym.datasets import build_mini, load_d3rlpy


def train(steps: int) -> GreedyPolicy:
    """Return a policy cloned from the bundled DFT-labelled crystals."""
    if "crystal-mini-v0" not in minari.list_local_datasets():
        build_mini()
    buffer = load_d3rlpy("crystal-mini-v0", target_gap="hindsight")
    algorithm = CrystalBCConfig(batch_size=64, learning_rate=1e-3).create(device="cpu")
    algorithm.build_with_dataset(buffer)
    for _ in range(steps):
        algorithm.update(buffer.sample_transition_batch(64))
    return GreedyPolicy(algorithm)


def main() -> None:
    """Train, then fill a fluorite skeleton that no dataset of ours holds."""
    policy = train(int(sys.argv[1]) if len(sys.argv) > 1 else 300)
    mine = Structure.from_spacegroup(
        "Fm-3m", Lattice.cubic(5.6), ["Ca", "F"], [[0, 0, 0], [0.25, 0.25, 0.25]]
    ).get_primitive_structure()
    for target_gap in (1.0, 4.0, 7.0):
        env = gym.make(
            "CrystalFill-v0", target_gap=target_gap, skeletons=[mine], observation="packed"
        )
        observation, info = env.reset(seed=0)
        terminated = False
        while not terminated:
            action = policy.predict(observation[None], info["action_mask"])[0]
            observation, _, terminated, _, info = env.step(action)
        print(f"target {target_gap} eV: {info['formula']:10s} DFT table: {info['oracle_status']}")


if __name__ == "__main__":
    main()
