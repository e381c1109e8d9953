"""Environment speed with the table oracle: steps and resets per CPU second, one thread.

Then 1,024 environments in arrays: steps per CPU second, restarts and the oracle included.

python benchmarks/environment.py --skeletons mini
python benchmarks/environment.py --skeletons mp20        (after `crystal-gym data build mp20`)
"""

import argparse
import time

import gymnasium as gym
import numpy as np

import crystal_gym  # noqa: F401


def steps_per_second(skeletons: str, observation: str, steps: int) -> tuple[float, float]:
    """Return steps per CPU second, resets not counted, and milliseconds per reset."""
    env = gym.make("CrystalFill-v0", target_gap=3.0, skeletons=skeletons, observation=observation)
    actions = np.random.default_rng(0).integers(88, size=steps).tolist()
    env.reset(seed=0)
    stepping = resetting = 0.0
    resets, done = 0, True
    for action in actions:
        if done:
            begun = time.process_time()
            env.reset()
            resetting += time.process_time() - begun
            resets += 1
        begun = time.process_time()
        done = env.step(action)[2]
        stepping += time.process_time() - begun
    return steps / stepping, 1e3 * resetting / resets


def steps_per_second_of_many(skeletons: str, observation: str, steps: int) -> float:
    many = gym.make_vec(
        "CrystalFill-v0",
        num_envs=1024,
        vectorization_mode="vector_entry_point",
        target_gap=3.0,
        skeletons=skeletons,
        observation=observation,
    )
    actions = np.random.default_rng(0).integers(88, size=(steps, many.num_envs))
    many.reset(seed=0)
    for row in actions[:20]:
        many.step(row)
    begun = time.process_time()
    for row in actions:
        many.step(row)
    return actions.size / (time.process_time() - begun)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--skeletons", default="mini")
    parser.add_argument("--steps", type=int, default=40_000)
    options = parser.parse_args()
    for observation in ("compact", "graph", "packed", "space"):
        steps_per_second(options.skeletons, observation, 2_000)  # warm up
        rate, reset = steps_per_second(options.skeletons, observation, options.steps)
        print(f"{observation:8s} {rate:10,.0f} steps/CPU-s   reset {reset:.3f} ms")
    for observation, steps in (("compact", 1_000), ("packed", 300), ("graph", 300), ("space", 20)):
        rate = steps_per_second_of_many(options.skeletons, observation, steps)
        print(f"{observation:8s} {rate:10,.0f} steps/CPU-s   1,024 environments")


if __name__ == "__main__":
    main()
