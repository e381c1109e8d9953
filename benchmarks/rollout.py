"""Greedy rollout speed: skeletons filled per CPU second, one thread, paper preset.

    python benchmarks/rollout.py --skeletons mp20-val    (after `crystal-gym data build mp20`)

The network is untrained: how good it is does not change how long it takes.
"""

import argparse
import time

import d3rlpy
import numpy as np
import torch

from crystal_gym.agents import GreedyPolicy, MEGNetEncoderFactory
from crystal_gym.elements import N_ELEMENTS
from crystal_gym.evaluation import Task, rollout
from crystal_gym.sets import load_skeletons


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--skeletons", default="mp20-val")
    options = parser.parse_args()
    torch.set_num_threads(1)
    d3rlpy.seed(0)
    algorithm = d3rlpy.algos.DQNConfig(encoder_factory=MEGNetEncoderFactory("paper")).create()
    algorithm.create_impl((25,), N_ELEMENTS)
    policy = GreedyPolicy(algorithm)
    task = Task.of_skeletons(load_skeletons(options.skeletons))
    rollout(policy, Task(task.skeletons, task.skeleton[:64], task.traversal[:64]), 3.0)
    begun = time.process_time()
    tokens = rollout(policy, task, 3.0)
    seconds = time.process_time() - begun
    sites = int(np.count_nonzero(tokens))
    print(
        f"{len(task):,} crystals, {sites:,} sites in {seconds:.1f} CPU-s: "
        f"{len(task) / seconds:.0f} crystals/CPU-s, {sites / seconds:,.0f} steps/CPU-s"
    )


if __name__ == "__main__":
    main()
