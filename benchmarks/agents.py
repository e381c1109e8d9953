"""CPU cost of training and acting with the agents on one thread, beside plain PyTorch Geometric.

    OMP_NUM_THREADS=1 python benchmarks/agents.py    (after `crystal-gym data build mp20`)

The plain network is that of ``pyg_megnet.py``, with the same weights. Its graphs are built before
the clock starts; collating them, as PyG's DataLoader does, counts. The code released with the
paper needs 1.35 CPU seconds for one gradient step at batch 1,024 on such a machine.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable

import d3rlpy
import torch
from d3rlpy.torch_utility import TorchMiniBatch
from pyg_megnet import PygCQL, pyg_graphs

from crystal_gym.agents import CrystalCQLConfig, GreedyPolicy, MEGNetEncoderFactory
from crystal_gym.datasets import load_d3rlpy
from crystal_gym.elements import N_ELEMENTS
from crystal_gym.skeletons import registered_set

BATCH = 1024


def cpu_seconds(functions: list[Callable[[], object]], repeats: int) -> list[list[float]]:
    """Return the CPU seconds of calls after one to warm up, in turns so that all share a load."""
    times: list[list[float]] = [[] for _ in functions]
    for turn in range(repeats + 1):
        for function, spent in zip(functions, times, strict=True):
            start = time.process_time()
            function()
            if turn > 0:
                spent.append(time.process_time() - start)
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", default="crystal-mp20-v0")
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(1)
    d3rlpy.seed(0)
    buffer = load_d3rlpy(options.dataset, target_gap=[1.12, 2.0, 3.0, 4.0])
    batch = TorchMiniBatch.from_batch(
        buffer.sample_transition_batch(BATCH),
        gamma=0.99,
        compute_returns_to_go=False,
        device="cpu",
    )
    algo = CrystalCQLConfig(encoder_factory=MEGNetEncoderFactory("paper")).create("cpu")
    algo.create_impl(tuple(batch.observations.shape[1:]), N_ELEMENTS)
    impl, policy = algo.impl, GreedyPolicy(algo)

    plain = PygCQL()
    plain.online.network.load_fast(impl.modules.q_funcs[0].encoder.network.state_dict())
    skeletons = registered_set(int(batch.observations[0, 0]))
    now, later = (
        pyg_graphs(skeletons, rows.numpy())
        for rows in (batch.observations, batch.next_observations * (1 - batch.terminals))
    )
    actions = batch.actions.long()

    def forward() -> torch.Tensor:
        return impl.compute_loss(batch, torch.zeros(BATCH, 1)).loss

    names_and_calls: dict[str, Callable[[], object]] = {
        "c-CQL step, sampling included": lambda: algo.update(buffer.sample_transition_batch(BATCH)),
        "the same in plain PyG": lambda: plain.update(
            now, actions, batch.rewards, later, batch.terminals
        ),
        "  ours: target network": lambda: impl.compute_target(batch),
        "  ours: online network": forward,
        "  ours: online network and gradient": lambda: forward().backward(),
        "greedy actions": lambda: policy.predict(batch.observations.numpy()),
    }
    times = cpu_seconds(list(names_and_calls.values()), options.repeats)
    print(f"{options.dataset}, batch {BATCH:,}, load {os.getloadavg()[0]:.2f}")
    for name, spent in zip(names_and_calls, times, strict=True):
        print(f"{name:36s} {statistics.median(spent):7.3f} CPU-s (least {min(spent):.3f})")
    ours, reference = (statistics.median(spent) for spent in times[:2])
    print(f"{'plain PyG to ours':36s} {reference / ours:7.2f}")
    print(f"{'greedy actions':36s} {BATCH / statistics.median(times[-1]):7.0f} states/CPU-s")


if __name__ == "__main__":
    main()
