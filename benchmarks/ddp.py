"""Two processes (torchrun, gloo) against one: c-CQL transitions per second of wall time.

    OMP_NUM_THREADS=1 python benchmarks/ddp.py [--dataset crystal-mini-v0]

Each process takes batches of the same size, one thread each, paper preset; gradients are averaged
by DistributedDataParallel, as `create(..., enable_ddp=True)` of d3rlpy sets it up. The processes
share a machine: the ratio means something only where two cores are idle.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time


def work(options: argparse.Namespace) -> None:
    import d3rlpy
    import torch

    from crystal_gym.agents import CrystalCQLConfig, MEGNetEncoderFactory
    from crystal_gym.datasets import load_d3rlpy

    torch.set_num_threads(1)
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    rank = d3rlpy.distributed.init_process_group("gloo") if several else 0
    buffer = load_d3rlpy(options.dataset, target_gap="uniform", seed=rank)
    config = CrystalCQLConfig(
        batch_size=options.batch_size, encoder_factory=MEGNetEncoderFactory("paper")
    )
    algorithm = config.create("cpu", enable_ddp=several)
    algorithm.build_with_dataset(buffer)
    for step in range(options.steps + 3):
        if step == 3:
            begun = time.monotonic()
        algorithm.update(buffer.sample_transition_batch(options.batch_size))
    if rank == 0:
        print("SECONDS", (time.monotonic() - begun) / options.steps, flush=True)
    if several:
        d3rlpy.distributed.destroy_process_group()


def measure(processes: int, options: argparse.Namespace) -> float:
    """Return transitions per second of all processes together."""
    script = [__file__, "--worker", "--dataset", options.dataset, "--steps", str(options.steps)]
    script += ["--batch-size", str(options.batch_size)]
    launch = [sys.executable]
    if processes > 1:
        launch += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    run = subprocess.run([*launch, *script], capture_output=True, text=True, check=False)
    seconds = [line.split()[1] for line in run.stdout.splitlines() if line.startswith("SECONDS")]
    if run.returncode or not seconds:
        raise SystemExit(f"a run of {processes} processes failed:\n{run.stderr[-2000:]}")
    return processes * options.batch_size / float(seconds[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", default="crystal-mp20-v0")
    parser.add_argument("--batch-size", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(options)
        return
    one, two = measure(1, options), measure(2, options)
    print(
        f"one process {one:,.0f} transitions/s, two {two:,.0f}: {two / one:.2f} times; "
        f"load {os.getloadavg()[0]:.2f}"
    )


if __name__ == "__main__":
    main()
