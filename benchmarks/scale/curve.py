"""What a crystal costs in sets of 1,000 to 100,000: CPU time, memory and disk at every step.

python benchmarks/scale/curve.py --folder DIR

Makes synthetic crystals of up to 60 sites (make_crystals.py), builds a dataset of them, loads it,
draws batches, trains and resets environments, each in a process of its own. CPU seconds of all
processes, each on one thread, since the wall clock of a shared machine says little. What is
finished is in ``DIR/results.jsonl`` and not measured again; the table goes to
docs/results/scale.csv and, with matplotlib, the picture to docs/results/scale.png. 100,000 crystals
take half an hour of CPU time and 6 GB.
"""

import argparse
import csv
import json
import os
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

COUNTS = (1_000, 3_000, 10_000, 30_000, 100_000)
STAGES = ("make", "build", "load", "batch", "train", "environment")
RESULTS = Path(__file__).resolve().parents[2] / "docs" / "results"
BATCH = 256


def anonymous_mb() -> float:
    """Return the process's own memory, without pages of files that the kernel can drop."""
    with open("/proc/self/status", encoding="ascii") as status:
        return next(int(line.split()[1]) / 1e3 for line in status if line.startswith("RssAnon"))


def cpu_seconds() -> float:
    """Return the CPU time of the process and of those it has waited for."""
    times = os.times()
    return time.process_time() + times.children_user + times.children_system


@contextmanager
def peak_memory() -> Iterator[list[float]]:
    """Give a list of one number, the highest memory (MB) while the block runs."""
    peak, over = [anonymous_mb()], threading.Event()

    def watch() -> None:
        while not over.wait(0.02):
            peak[0] = max(peak[0], anonymous_mb())

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield peak
    finally:
        over.set()
        watcher.join()
        peak[0] = max(peak[0], anonymous_mb())


def measured(name: str, found: dict[str, float], work: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that also notes its CPU time (s) and peak memory (MB)."""

    def run(*arguments: Any, **options: Any) -> Any:
        begun = cpu_seconds()
        with peak_memory() as peak:
            result = work(*arguments, **options)
        found[f"{name}_cpu_s"] = cpu_seconds() - begun
        found[f"{name}_peak_mb"] = peak[0]
        return result

    return run


def make(count: int, folder: Path) -> dict[str, float]:
    script = Path(__file__).with_name("make_crystals.py")
    path = folder / f"crystals-{count}.extxyz"
    environment = {k: v for k, v in os.environ.items() if k != "MINARI_DATASETS_PATH"}
    command = [sys.executable, str(script), "--count", str(count), "-o", str(path)]
    subprocess.run(command, check=True, env=environment)
    return {"source_bytes": path.stat().st_size}


def build(count: int, folder: Path) -> dict[str, float]:
    from crystal_gym.datasets import parts

    found: dict[str, float] = {}
    parts._make_parts = measured("graphs", found, parts._make_parts)
    parts._joined = measured("join", found, parts._joined)
    parts.write_dataset = measured("write", found, parts.write_dataset)
    report = parts.build_structures([folder / f"crystals-{count}.extxyz"], dataset_id(count))
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    found["worker_peak_rss_mb"] = usage.ru_maxrss / 1e3
    for file in report.path.iterdir():
        found[f"bytes_{file.name}"] = file.stat().st_size
    n_sites = parts.SkeletonSet.load(report.path / "skeletons.npz").n_sites
    return found | {
        "crystals": report.crystals,
        "left_out": len(report.problems),
        "episodes": report.episodes,
        "transitions": report.transitions,
        "mean_sites": float(n_sites.mean()),
        "max_sites": int(n_sites.max()),
    }


def load(count: int, folder: Path) -> dict[str, float]:
    from crystal_gym.agents import MEGNetEncoderFactory  # noqa: F401  (the idle import)
    from crystal_gym.datasets import load_d3rlpy

    found = {"idle_mb": anonymous_mb()}
    measured("load", found, load_d3rlpy)(dataset_id(count), target_gap="uniform")
    return found


def batch(count: int, folder: Path) -> dict[str, float]:
    import torch

    from crystal_gym.agents.batch import rows_to_batch
    from crystal_gym.datasets import load_d3rlpy

    torch.set_num_threads(1)
    buffer = load_d3rlpy(dataset_id(count), target_gap="uniform", reorder=0.5)

    def draw(batches: int) -> None:
        for _ in range(batches):
            rows_to_batch(torch.from_numpy(buffer.sample_transition_batch(BATCH).observations))

    found: dict[str, float] = {}
    draw(20)
    measured("batch", found, draw)(200)
    found["batch_cpu_s"] /= 200
    return found


def train(count: int, folder: Path) -> dict[str, float]:
    import torch

    from crystal_gym.agents.training import TrainConfig
    from crystal_gym.agents.training import train as run

    torch.set_num_threads(1)
    found: dict[str, float] = {}
    config = TrainConfig(
        "bc",
        dataset=dataset_id(count),
        batch_size=64,
        steps=10,
        warmup=5,
        evaluate_every=10,
        validation_crystals=16,
        device="cpu",
        compile="off",
    )
    measured("train", found, run)(config, folder / f"run-{count}", progress=False)
    return found


def environment(count: int, folder: Path) -> dict[str, float]:
    import gymnasium as gym
    import numpy as np

    import crystal_gym  # noqa: F401  (registers CrystalFill-v0)

    found: dict[str, float] = {}
    env = gym.make(
        "CrystalFill-v0", skeletons=dataset_id(count), target_gap=3.0, disable_env_checker=True
    ).unwrapped
    generator = np.random.default_rng(0)
    env.reset(seed=0)

    def resets() -> None:
        for _ in range(2_000):
            env.reset()

    def episodes() -> None:
        for _ in range(200):
            done = False
            env.reset()
            while not done:
                done = env.step(int(generator.integers(88)))[2]

    measured("reset", found, resets)()
    measured("episode", found, episodes)()
    found["reset_cpu_s"] /= 2_000
    found["episode_cpu_s"] /= 200
    return found


def dataset_id(count: int) -> str:
    return f"crystal-scale-{count}-v0"


def results(folder: Path) -> dict[tuple[int, str], dict[str, float]]:
    path = folder / "results.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    found = [json.loads(line) for line in lines]
    return {(entry.pop("count"), entry.pop("stage")): entry for entry in found}


def rows(found: dict[tuple[int, str], dict[str, float]]) -> list[dict[str, float]]:
    """Return one row for each size: milliseconds and bytes a crystal, MB in all."""
    table = []
    for count in sorted({count for count, _ in found}):
        values: dict[str, float] = {}
        for stage in STAGES:
            values |= found.get((count, stage), {})
        row: dict[str, float] = {"crystals": count}
        for name in ("graphs", "join", "write", "load"):
            if f"{name}_cpu_s" in values:
                row[f"{name}_ms_per_crystal"] = 1e3 * values[f"{name}_cpu_s"] / count
        for name in ("batch", "reset", "episode"):
            if f"{name}_cpu_s" in values:
                row[f"{name}_ms"] = 1e3 * values[f"{name}_cpu_s"]
        for name in ("graphs", "join", "write", "load", "batch", "train", "episode"):
            if f"{name}_peak_mb" in values:
                row[f"{name}_peak_mb"] = values[f"{name}_peak_mb"]
        files = {n: size for n, size in values.items() if n.startswith("bytes_")}
        if files:
            row["kb_per_crystal"] = sum(files.values()) / count / 1e3
            row["kb_per_crystal_without_hdf5"] = (
                sum(size for n, size in files.items() if "hdf5" not in n) / count / 1e3
            )
        for name in ("mean_sites", "max_sites", "left_out"):
            row[name] = values.get(name, float("nan"))
        table.append({name: float(f"{value:.4g}") for name, value in row.items()})
        table[-1]["crystals"] = count
    return table


def write(table: list[dict[str, float]]) -> None:
    RESULTS.mkdir(parents=True, exist_ok=True)
    names = list(dict.fromkeys(name for row in table for name in row))
    with open(RESULTS / "scale.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(table)
    try:
        import matplotlib
    except ImportError:
        print("no picture: matplotlib is not installed")
        return
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 3, figsize=(12, 3.6))
    for axis, title, unit, columns in (
        (axes[0], "CPU time a crystal", "ms", [n for n in names if n.endswith("_ms_per_crystal")]),
        (axes[1], "CPU time whatever the set", "ms", ["batch_ms", "reset_ms", "episode_ms"]),
        (axes[2], "peak of own memory", "MB", [n for n in names if n.endswith("_peak_mb")]),
    ):
        for name in columns:
            points = [(row["crystals"], row[name]) for row in table if name in row]
            label = name.removesuffix("_ms_per_crystal").removesuffix("_peak_mb")
            axis.plot(*zip(*points, strict=True), "o-", label=label.removesuffix("_ms"))
        axis.set(title=title, ylabel=unit, xlabel="crystals", xscale="log")
        axis.set(**({"yscale": "log"} if unit == "ms" else {"ylim": (0, None)}))
        axis.legend(fontsize=7)
        axis.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(RESULTS / "scale.png", dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="for crystals and datasets")
    parser.add_argument("--counts", type=int, nargs="+", default=list(COUNTS))
    parser.add_argument("--stage", choices=STAGES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    folder: Path = options.folder.absolute()
    if options.stage is not None:
        print(json.dumps(globals()[options.stage](options.counts[0], folder)))
        return
    folder.mkdir(parents=True, exist_ok=True)
    variables = {
        "OMP_NUM_THREADS": "1",
        "MINARI_DATASETS_PATH": str(folder / "datasets"),
        "CRYSTAL_GYM_CACHE": str(folder / "cache"),
    }
    for stage in STAGES:
        for count in options.counts:
            if (count, stage) in results(folder):
                continue
            command = [sys.executable, __file__, "--folder", str(folder)]
            command += ["--counts", str(count), "--stage", stage]
            # Where crystals are made from is the user's MP-20, in the usual place.
            environment = {**os.environ, **({} if stage == "make" else variables)}
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, env=environment)
            found = json.loads(done.stdout.splitlines()[-1])
            with open(folder / "results.jsonl", "a", encoding="utf-8") as file:
                file.write(json.dumps({"count": count, "stage": stage, **found}) + "\n")
            print(count, stage, {n: round(v, 4) for n, v in found.items()}, flush=True)
    table = rows(results(folder))
    write(table)
    for row in table:
        print(row)


if __name__ == "__main__":
    main()
