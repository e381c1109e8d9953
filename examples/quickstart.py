"""Fill skeletons at random, with the bundled policy, and as well as is possible.

Every allowed filling of the dozen skeletons in the set "tabular" was calculated by DFT. Prints what
was made of each for a target of 3 eV: formula, gap (eV) and reward. The bundled policy learned from
MP-20, and not from these cells, many of them stretched. Ten seconds.

python examples/quickstart.py
"""

import gymnasium as gym
import numpy as np

import crystal_gym  # noqa: F401  (registers CrystalFill-v0)
from crystal_gym.agents import load_policy
from crystal_gym.elements import reduced_formula
from crystal_gym.evaluation import Policy, RandomPolicy, optimum
from crystal_gym.evaluation.report import markdown_table
from crystal_gym.oracles import load_table

TARGET_EV = 3.0


def play(env: gym.Env, policy: Policy, skeleton: int) -> tuple[str, float, float]:
    """Return formula, gap (eV) and reward of one episode."""
    observation, info = env.reset(seed=skeleton, options={"skeleton": skeleton})
    terminated = False
    while not terminated:
        action = policy.predict(observation[None], info["action_mask"])[0]
        observation, reward, terminated, _, info = env.step(action)
    return info["formula"], info["properties"]["band_gap_ev"], reward


def main() -> None:
    """Play one episode on every skeleton with both policies."""
    env = gym.make(
        "CrystalFill-v0", target_gap=TARGET_EV, skeletons="tabular", observation="packed"
    )
    table = load_table("tabular")
    lines, rewards = [["skeleton", "random", "bundled policy", "best possible"]], []
    for number, name in enumerate(table.skeletons.names):
        best = optimum(table, number, TARGET_EV)
        made = [
            play(env, RandomPolicy(seed=number), number),
            play(env, load_policy(), number),
            (reduced_formula(best.tokens), best.properties.band_gap_ev, best.reward),
        ]
        lines.append(
            [name, *(f"{formula} {gap:5.2f} {reward:5.2f}" for formula, gap, reward in made)]
        )
        rewards.append([reward for _, _, reward in made])
    lines.append(["mean reward", *(f"{mean:.2f}" for mean in np.mean(rewards, 0))])
    print(markdown_table(lines))


if __name__ == "__main__":
    main()
