"""Train continuous algorithms of d3rlpy, whose actions are points in a space of elements.

The environment places the nearest element (period, group, f block, electronegativity and radius
span the space). Prints how far the points that each algorithm chooses for stored states lie from
those of the stored elements, before and after, and what it makes of one skeleton. A minute. So few
steps show that the algorithms run, not which one is best.

python examples/d3rlpy_continuous.py [STEPS]
"""

import sys

import d3rlpy
import gymnasium as gym
import minari
import numpy as np
from d3rlpy import algos

from crystal_gym.agents import MEGNetEncoderFactory
from crystal_gym.datasets import build_mini, load_d3rlpy
from crystal_gym.envs import EmbeddedActions

FEW = "Na Mg Ca Zn O S F Cl".split()
MORE = {
    name: MEGNetEncoderFactory("paper")
    for name in ("actor_encoder_factory", "critic_encoder_factory")
}
CONFIGS = {
    "BC": algos.BCConfig(encoder_factory=MEGNetEncoderFactory("paper")),
    "TD3": algos.TD3Config(**MORE),
    "TD3+BC": algos.TD3PlusBCConfig(**MORE),
    "SAC": algos.SACConfig(**MORE),
    "AWAC": algos.AWACConfig(**MORE),
    "CQL": algos.CQLConfig(**MORE),
    "IQL": algos.IQLConfig(**MORE, value_encoder_factory=MEGNetEncoderFactory("paper")),
}


def main(steps: int = 50) -> None:
    """Train each algorithm and let it fill a crystal."""
    if "crystal-mini-v0" not in minari.list_local_datasets():
        build_mini()
    buffer = load_d3rlpy("crystal-mini-v0", target_gap="uniform", actions="embedding")
    judged = buffer.sample_transition_batch(256)
    env = EmbeddedActions(
        gym.make("CrystalFill-v0", target_gap=3.0, observation="packed", elements=FEW)
    )
    for name, config in CONFIGS.items():
        d3rlpy.seed(0)
        config.batch_size = 32
        algorithm = config.create(device="cpu")
        algorithm.build_with_dataset(buffer)
        distances = []
        for step in range(steps + 1):
            if step in (0, steps):
                points = algorithm.predict(judged.observations)
                distances.append(np.linalg.norm(points - judged.actions, axis=1).mean())
            algorithm.update(buffer.sample_transition_batch(32))
        observation, _ = env.reset(seed=0, options={"skeleton": "CaF2-fluorite"})
        terminated = False
        while not terminated:
            point = algorithm.predict(observation[None])[0]
            observation, _, terminated, _, info = env.step(point)
        before, after = distances
        print(f"{name:8s} distance {before:.2f} to {after:.2f}   filled: {info['formula']}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
