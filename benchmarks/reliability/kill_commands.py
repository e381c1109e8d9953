"""Commands killed with SIGKILL at random moments end with the result of an undisturbed run.

    python benchmarks/reliability/kill_commands.py build|train|evaluate [--kills 20] [--seed 0]

A trial runs the command in a folder of its own and kills it after a random part of the time that an
undisturbed run takes; the same command then goes on, and is killed again, until it ends by itself.
What it leaves is compared with what the undisturbed run left: every array, weight and number, but
for times and dates. Trials follow until there were enough kills. Exit code 1 where anything differs
or a run does not go on.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np

TIMES = {"seconds", "wall_s", "weights_sha256", "hdf5_changed_ns"}
"""What two undisturbed runs differ in, too; of the weights every number is compared."""

CRYSTAL_GYM = [sys.executable, "-m", "crystal_gym.cli"]


def build_command(folder: Path) -> list[str]:
    named = ["crystals.extxyz", "--minari", "crystal-made-v0", "--workers", "2"]
    return [*CRYSTAL_GYM, "data", "build", *named]


def train_command(folder: Path) -> list[str]:
    settings = ["--steps", "80", "--batch-size", "16", "--evaluate-every", "8"]
    settings += ["--validation-crystals", "20", "--warmup", "10", "--threads", "1"]
    return [*CRYSTAL_GYM, "train", "c-cql", "--dataset", "crystal-mini-v0", *settings, "-o", "run"]


def evaluate_command(folder: Path) -> list[str]:
    settings = ["--dataset", "crystal-mini-v0", "--crystals", "60", "--resamples", "50"]
    return [*CRYSTAL_GYM, "evaluate", "bundled", *settings, "--threads", "1", "-o", "results"]


COMMANDS: dict[str, Callable[[Path], list[str]]] = {
    "build": build_command,
    "train": train_command,
    "evaluate": evaluate_command,
}


def environment(folder: Path) -> dict[str, str]:
    own = {
        "MINARI_DATASETS_PATH": str(folder / "datasets"),
        "CRYSTAL_GYM_CACHE": str(folder / "cache"),
        "OMP_NUM_THREADS": "1",
    }
    return {**os.environ, **own}


def prepared(name: str, folder: Path) -> Path:
    """Make a folder in which a command can start."""
    folder.mkdir()
    command = [*CRYSTAL_GYM, "data", "build", "mini"]
    if name == "build":  # two parts
        script = Path(__file__).parents[1] / "scale" / "make_crystals.py"
        command = [sys.executable, str(script), "--count", "600", "-o", "crystals.extxyz"]
    subprocess.run(command, cwd=folder, env=environment(folder), check=True, capture_output=True)
    return folder


def start(name: str, folder: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        COMMANDS[name](folder),
        cwd=folder,
        env=environment(folder),
        stdout=subprocess.DEVNULL,
        stderr=open(folder / "errors.txt", "wb"),
        start_new_session=True,
    )


def must_end_well(process: subprocess.Popen[bytes], folder: Path) -> None:
    if process.returncode != 0:
        said = (folder / "errors.txt").read_text(errors="replace")[-2000:]
        raise SystemExit(f"a run ended with code {process.returncode}:\n{said}")


def left_over(process: subprocess.Popen[bytes]) -> list[int]:
    """Return the processes of a killed one's session that go on two seconds later."""
    time.sleep(2.0)
    found = []
    for entry in Path("/proc").iterdir():
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
        except OSError:  # no process, or one that has ended
            continue
        if entry.name.isdigit() and int(fields[3]) == process.pid and fields[0] != "Z":
            found.append(int(entry.name))
    return found


def contents(folder: Path) -> dict[str, Any]:
    """Return everything that a command left, by file and name within it."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_file() and _counts(name):
            found.update((f"{name}:{key}", value) for key, value in _parts(path))
    return found


def _counts(name: str) -> bool:
    # A temporary file that a kill left is removed by the next process that writes there.
    others = ("errors.txt", ".lock", ".part", "tensorboard", "cache/")
    return not any(part in name for part in others)


def _parts(path: Path) -> Iterator[tuple[str, Any]]:
    if path.suffix == ".json":
        yield "", _without_times(json.loads(path.read_text()))
    elif path.suffix == ".csv":
        with path.open(newline="") as file:
            yield "", [_without_times(row) for row in csv.DictReader(file)]
    elif path.suffix in (".hdf5", ".h5"):
        with h5py.File(path) as file:
            names: list[str] = []
            file.visit(names.append)
            for name in ["/", *names]:
                yield f"{name} attributes", {k: str(v) for k, v in file[name].attrs.items()}
                if isinstance(file[name], h5py.Dataset):
                    yield name, file[name][()]
    elif path.suffix == ".npy":
        yield "", np.load(path)
    elif path.suffix == ".npz":
        with np.load(path) as arrays:
            yield from ((name, array) for name, array in arrays.items() if name not in TIMES)
    elif path.suffix == ".pt":
        import torch

        yield from _flat("", torch.load(path, weights_only=True))
    else:
        yield "", path.read_bytes()


def _flat(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            if key not in TIMES:
                yield from _flat(f"{name}/{key}", inner)
    elif isinstance(value, list | tuple):
        for key, inner in enumerate(value):
            yield from _flat(f"{name}/{key}", inner)
    else:
        yield name, value.numpy() if hasattr(value, "numpy") else value


def _without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_times(v) for k, v in value.items() if k not in TIMES}
    return [_without_times(v) for v in value] if isinstance(value, list) else value


def differences(expected: dict[str, Any], found: dict[str, Any]) -> list[str]:
    names = sorted(expected.keys() ^ found.keys())
    for name in sorted(expected.keys() & found.keys()):
        a, b = expected[name], found[name]
        if isinstance(a, np.ndarray) and a.dtype.kind == "f":
            same = np.array_equal(a, b, equal_nan=True)
        else:
            same = np.array_equal(a, b) if isinstance(a, np.ndarray) else str(a) == str(b)
        if not same:
            names.append(name)
    return names


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("command", choices=COMMANDS)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    draw = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as scratch:
        whole = prepared(options.command, Path(scratch) / "whole")
        begun = time.monotonic()
        process = start(options.command, whole)
        process.wait()
        must_end_well(process, whole)
        takes = time.monotonic() - begun
        expected = contents(whole)
        print(f"undisturbed: {takes:.1f} s, {len(expected)} arrays and values", flush=True)
        kills = trials = wrong = 0
        while kills < options.kills:
            trials += 1
            folder = prepared(options.command, Path(scratch) / str(trials))
            while True:
                process = start(options.command, folder)
                moment = draw.uniform(0.0, 1.1 * takes)
                try:
                    process.wait(moment if kills < options.kills else None)
                except subprocess.TimeoutExpired:
                    process.send_signal(signal.SIGKILL)
                    process.wait()
                    kills += 1
                    left = left_over(process)
                    if left:
                        print(f"trial {trials}: processes {left} outlived a kill")
                        wrong += 1
                        os.killpg(process.pid, signal.SIGKILL)
                    continue
                must_end_well(process, folder)
                break
            differing = differences(expected, contents(folder))
            wrong += bool(differing)
            said = f"differs in {', '.join(differing[:5])}" if differing else "the same result"
            print(f"trial {trials}, {kills} kills so far: {said}", flush=True)
            shutil.rmtree(folder)
    print(
        f"{options.command}: {kills} kills in {trials} trials, {wrong} results that differ; "
        f"load {os.getloadavg()[0]:.1f}"
    )
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
