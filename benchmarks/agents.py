"""CPU cost of training and acting with the agents on one thread.

    OMP_NUM_THREADS=1 python benchmarks/agents.py [skeletons.npz]

Without a skeleton set it measures on random multigraphs of the size of MP-20's (12 sites and 70
directed edges a crystal on average). Reference: the code released with the paper needs 1.35 CPU
seconds for one gradient step at batch 1,024 on such a machine.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from d3rlpy.torch_utility import TorchMiniBatch

from crystal_gym.agents import CrystalCQLConfig, GreedyPolicy, MEGNetEncoderFactory
from crystal_gym.elements import N_ELEMENTS
from crystal_gym.envs.observations import compact_rows
from crystal_gym.graphs import Geometry
from crystal_gym.skeletons import Cell, SkeletonSet


def random_skeletons(n: int, rng: np.random.Generator) -> SkeletonSet:
    """Return random multigraphs with as many sites and edges as MP-20's crystals."""
    cells, geometries = [], []
    for i in range(n):
        n_sites = int(np.clip(rng.normal(12.4, 5), 2, 20))
        lattice = np.diag(rng.uniform(3.0, 9.0, 3))
        name = f"random-{i}"
        cells.append(Cell.from_sites(name, lattice, rng.random((n_sites, 3)), [0] * n_sites))
        one_way = rng.integers(0, n_sites, (2, round(2.85 * n_sites)))
        length = rng.choice(rng.uniform(1.8, 3.2, 8), one_way.shape[1])
        edges = np.concatenate([one_way, one_way[::-1]], 1)
        order = np.lexsort(edges[::-1])
        geometries.append(
            Geometry(
                edges[:, order].astype(np.int16),
                np.zeros((edges.shape[1], 3), np.int16),
                np.tile(length, 2)[order].astype(np.float32),
                np.arange(n_sites, dtype=np.int16)[None],
                int(rng.integers(1, 231)),
            )
        )
    return SkeletonSet.from_cells(cells, geometries)


def random_states(
    skeletons: SkeletonSet, n: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Return rows of half-filled crystals, every site of the set as likely as any, and sizes."""
    sizes = skeletons.n_sites
    number = rng.choice(len(skeletons), n, p=sizes / sizes.sum())
    focus = (rng.random(n) * sizes[number]).astype(int)
    tokens = rng.integers(1, N_ELEMENTS + 1, (n, skeletons.max_sites))
    tokens[np.arange(skeletons.max_sites) >= focus[:, None]] = 0
    rows = compact_rows(skeletons, number, tokens, focus, np.full(n, 3.0))
    return rows, sizes[number] - focus == 1


def mini_batch(skeletons: SkeletonSet, n: int, rng: np.random.Generator) -> TorchMiniBatch:
    rows, terminal = random_states(skeletons, n, rng)
    x, last = torch.from_numpy(rows), torch.from_numpy(terminal)[:, None].float()
    actions = torch.from_numpy(rng.integers(0, N_ELEMENTS, (n, 1))).float()
    return TorchMiniBatch(
        observations=x,
        actions=actions,
        rewards=torch.from_numpy(rng.random((n, 1), np.float32)) * last,
        next_observations=x * (1 - last),
        next_actions=actions,
        returns_to_go=torch.zeros(n, 1),
        terminals=last,
        intervals=torch.ones(n, 1),
        device="cpu",
    )


def cpu_seconds(function: Callable[[], object], repeats: int) -> tuple[float, float]:
    """Return the median and the least CPU seconds of a call, after two calls to warm up."""
    times = []
    for i in range(repeats + 2):
        start = time.process_time()
        function()
        if i > 1:
            times.append(time.process_time() - start)
    return statistics.median(times), min(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("skeletons", nargs="?", help="a skeletons.npz; random ones without")
    parser.add_argument("--repeats", type=int, default=10)
    args = parser.parse_args()
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    skeletons = SkeletonSet.load(args.skeletons) if args.skeletons else random_skeletons(1000, rng)
    weights = skeletons.n_sites / skeletons.n_sites.sum()
    print(
        f"{len(skeletons)} skeletons; a transition sees {weights @ skeletons.n_sites:.1f} sites "
        f"and {weights @ skeletons.n_edges:.1f} edges; load {os.getloadavg()[0]:.2f}"
    )

    algo = CrystalCQLConfig(encoder_factory=MEGNetEncoderFactory("paper")).create("cpu")
    batch = mini_batch(skeletons, 1024, rng)
    algo.create_impl(tuple(batch.observations.shape[1:]), N_ELEMENTS)
    impl = algo.impl

    def forward() -> object:
        return impl.compute_loss(batch, torch.zeros(1024, 1))

    def report(name: str, function: Callable[[], object]) -> float:
        median, least = cpu_seconds(function, args.repeats)
        print(f"{name:34s} {median:7.3f} CPU-s (least {least:.3f})")
        return median

    report("update, batch 1,024", lambda: impl.update(batch, 0))
    report("  target network", lambda: impl.compute_target(batch))
    online = report("  online network", forward)
    both = report("  online network and gradient", lambda: forward().loss.backward())
    print(f"{'  gradient alone':34s} {both - online:7.3f} CPU-s")

    policy = GreedyPolicy(algo)
    rows, _ = random_states(skeletons, 2048, rng)
    median = report("greedy actions, batch 2,048", lambda: policy.predict(rows))
    print(f"{'':34s} {2048 / median:7.0f} states/s")


if __name__ == "__main__":
    main()
