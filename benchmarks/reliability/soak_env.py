"""Step the vector environment ten million times and watch memory, open files and processes.

    python benchmarks/reliability/soak_env.py [--steps 10000000]      (Linux)

1,024 copies, compact observations, the set `tabular` with its table as oracle and its masks, so
that every episode ends with a calculated crystal; actions are drawn from the masks.
After a tenth of the steps to warm up, resident memory must stay within 5%, open files and child
processes as they are. Exit code 1 where they do not.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import gymnasium as gym
import numpy as np

import crystal_gym  # noqa: F401 (registers the environment)

COPIES = 1024
LOOKS = 20
FLAT = 1.05


@dataclass(frozen=True)
class Sample:
    """What the process holds."""

    steps: int
    memory_mb: float
    descriptors: int
    children: int

    def __str__(self) -> str:
        return f"{self.steps:12,} {self.memory_mb:10.1f} {self.descriptors:12} {self.children:9}"


def sample(steps: int) -> Sample:
    status = Path("/proc/self/status").read_text()
    resident = next(int(s.split()[1]) for s in status.splitlines() if s.startswith("VmRSS"))
    tasks = Path("/proc/self/task").glob("*/children")
    return Sample(
        steps,
        resident / 1e3,
        len(os.listdir("/proc/self/fd")),
        sum(len(path.read_text().split()) for path in tasks),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=10_000_000)
    options = parser.parse_args()
    envs = gym.make_vec(
        "CrystalFill-v0",
        num_envs=COPIES,
        vectorization_mode="vector_entry_point",
        skeletons="tabular",
        observation="compact",
        target_gap=3.0,
    )
    rng = np.random.default_rng(0)
    _, info = envs.reset(seed=0)
    done = episodes = 0
    total_reward = 0.0
    samples: list[Sample] = []
    look_every = max(COPIES, options.steps // LOOKS)
    print("       steps  memory MB  descriptors  children")
    begun = time.process_time()
    while done < options.steps:
        allowed = info["action_mask"]
        draws = rng.random(allowed.shape, dtype=np.float32)
        actions = np.where(allowed, draws, -1.0).argmax(1)
        _, rewards, ended, cut, info = envs.step(actions)
        assert not cut.any()
        total_reward += float(rewards.sum())
        episodes += int(ended.sum())
        done += COPIES
        if done // look_every > (done - COPIES) // look_every:
            samples.append(sample(done))
            print(samples[-1], flush=True)
    took = time.process_time() - begun
    envs.close()
    first, *rest = samples[max(1, LOOKS // 10) - 1 :]
    grown = max(s.memory_mb for s in rest) / first.memory_mb
    leaks = any(s.descriptors > first.descriptors or s.children > first.children for s in rest)
    print(
        f"{done:,} steps, {episodes:,} episodes, mean reward {total_reward / episodes:.3f} in "
        f"{took:.0f} CPU-s: memory at most {grown:.3f} times what it was after the warm-up, "
        f"{'LEAKS of files or processes' if leaks else 'no file or process leaked'}; "
        f"load {os.getloadavg()[0]:.1f}"
    )
    sys.exit(1 if grown > FLAT or leaks else 0)


if __name__ == "__main__":
    main()
