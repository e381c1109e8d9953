"""Online DQN with masked actions in plain PyTorch, on skeletons with a known optimum.

Every filling that the set "tabular" allows was calculated by DFT, so the best reward is known. The
script prints by how much the greedy policy falls short of it, the mean over the twelve skeletons:
from about 9 to below 1. Half a minute; in a few hundred steps it learns next to nothing.

python examples/online_dqn.py [STEPS]
"""

import sys

import gymnasium as gym
import numpy as np
import torch
from torch import nn

import crystal_gym  # noqa: F401  (registers CrystalFill-v0)
from crystal_gym.envs import OneHotObservations
from crystal_gym.evaluation import optimal_rewards
from crystal_gym.oracles import load_table

TARGET_EV, BATCH = 3.0, 128
TASK = {"target_gap": TARGET_EV, "skeletons": "tabular", "observation": "compact"}


def best(network: nn.Module, row: np.ndarray, mask: np.ndarray) -> int:
    """Return the allowed action of the highest value."""
    with torch.no_grad():
        values = network(torch.from_numpy(row))
    return int(values.masked_fill(torch.from_numpy(mask == 0), -torch.inf).argmax())


def regret(network: nn.Module, env: gym.Env) -> float:
    """Return how far greedy episodes stay behind the optimum: the mean over all skeletons."""
    lost = optimal_rewards(load_table("tabular"), TARGET_EV)
    for number in range(len(lost)):
        row, info = env.reset(seed=number, options={"skeleton": number})
        terminated = False
        while not terminated:
            row, reward, terminated, _, info = env.step(best(network, row, info["action_mask"]))
        lost[number] -= reward
    return float(lost.mean())


def main(steps: int = 8000) -> None:
    """Train, and print the regret ten times on the way."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    env, judged = (OneHotObservations(gym.make("CrystalFill-v0", **TASK)) for _ in range(2))
    width = env.observation_space.shape[0]
    online, target = (
        nn.Sequential(nn.Linear(width, 256), nn.ReLU(), nn.Linear(256, 88)) for _ in range(2)
    )
    optimizer = torch.optim.Adam(online.parameters(), lr=1e-3)
    memory: list[tuple] = []
    row, info = env.reset(seed=0)
    for step in range(steps + 1):
        if step % 100 == 0:
            target.load_state_dict(online.state_dict())
        if step % max(1, steps // 10) == 0:
            print(f"step {step:5d}: mean regret {regret(online, judged):.2f}")
        mask = info["action_mask"]
        explores = rng.random() < max(0.05, 1 - 2 * step / steps)
        action = rng.choice(np.flatnonzero(mask)) if explores else best(online, row, mask)
        after, reward, terminated, _, info = env.step(action)
        memory.append((row, action, np.float32(reward), after, info["action_mask"], terminated))
        row, info = env.reset() if terminated else (after, info)
        drawn = [memory[i] for i in rng.integers(len(memory), size=BATCH)]
        s, a, r, s_next, m, end = (torch.from_numpy(np.array(x)) for x in zip(*drawn, strict=True))
        future = target(s_next).detach().masked_fill(m == 0, -torch.inf).amax(1)
        value = online(s).gather(1, a[:, None])[:, 0]
        loss = nn.functional.smooth_l1_loss(value, torch.where(end, r, r + future))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
