"""Offline data: memory after loading, sampling rate with relabelling, size on disk.

python benchmarks/dataset.py --dataset crystal-mp20-v0
"""

import argparse
import time
from pathlib import Path

import minari
import psutil


def resident_mb() -> float:
    return psutil.Process().memory_info().rss / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", default="crystal-mp20-v0")
    parser.add_argument("--batches", type=int, default=2_000)
    options = parser.parse_args()

    from crystal_gym.agents import MEGNetEncoderFactory  # noqa: F401  (the idle import)
    from crystal_gym.datasets import load_d3rlpy

    folder = Path(minari.load_dataset(options.dataset).storage.data_path)
    size = sum(f.stat().st_size for f in folder.iterdir()) / 1e6
    idle = resident_mb()
    begun = time.process_time()
    buffer = load_d3rlpy(options.dataset, target_gap="uniform")
    loading = time.process_time() - begun
    buffer.sample_transition_batch(1024)
    print(f"size on disk            {size:10.1f} MB")
    print(f"loading                 {loading:10.1f} CPU-s")
    print(f"memory above idle       {resident_mb() - idle:10.1f} MB")
    for target in (3.0, [1.12, 2.0, 3.0, 4.0], "uniform", "hindsight"):
        sampled = load_d3rlpy(buffer.trajectories, target_gap=target)
        sampled.sample_transition_batch(1024)
        begun = time.process_time()
        for _ in range(options.batches):
            sampled.sample_transition_batch(1024)
        rate = 1024 * options.batches / (time.process_time() - begun)
        print(f"sampling, {target!s:22s}{rate / 1e6:6.2f} M transitions/CPU-s at batch 1,024")


if __name__ == "__main__":
    main()
