"""MaskablePPO of sb3-contrib: Stable-Baselines3's PPO, which never takes a masked element.

It finds ``action_masks()`` of the environment by itself. Prints the mean regret on skeletons whose
every filling was calculated, before and after: from about 9 to below 1. Half a minute; a
thousand steps teach next to nothing. Needs `pip install sb3-contrib`.

python examples/maskable_ppo.py [STEPS]
"""

import sys

import gymnasium as gym
from sb3_contrib import MaskablePPO

import crystal_gym  # noqa: F401  (registers CrystalFill-v0)
from crystal_gym.envs import OneHotObservations
from crystal_gym.evaluation import optimal_rewards
from crystal_gym.oracles import load_table

TARGET_EV = 3.0


def make() -> gym.Env:
    """Return the environment with one row of zeros and ones as its observation."""
    return OneHotObservations(
        gym.make("CrystalFill-v0", target_gap=TARGET_EV, skeletons="tabular", observation="compact")
    )


def regret(model: MaskablePPO, env: gym.Env) -> float:
    """Return how far greedy episodes stay behind the optimum: the mean over all skeletons."""
    lost = optimal_rewards(load_table("tabular"), TARGET_EV)
    for number in range(len(lost)):
        row, info = env.reset(seed=number, options={"skeleton": number})
        terminated = False
        while not terminated:
            action, _ = model.predict(row, action_masks=info["action_mask"], deterministic=True)
            row, reward, terminated, _, info = env.step(action)
        lost[number] -= reward
    return float(lost.mean())


def main(steps: int = 20_000) -> None:
    """Train, and print the regret before and after."""
    model = MaskablePPO(
        "MlpPolicy", make(), learning_rate=1e-3, n_steps=1000, batch_size=100, seed=0
    )
    print(f"untrained:          mean regret {regret(model, make()):.2f}")
    model.learn(steps)
    print(f"after {steps:6,} steps: mean regret {regret(model, make()):.2f}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
