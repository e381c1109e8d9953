"""Training on several processes: torchrun (gloo), and one process, do the same."""

from __future__ import annotations

import contextlib
import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("d3rlpy")

from crystal_gym.agents import SurrogateConfig, TrainConfig, load_policy, train  # noqa: E402
from crystal_gym.agents import training as T  # noqa: E402
from crystal_gym.agents.processes import Processes  # noqa: E402
from crystal_gym.datasets import build_mini  # noqa: E402

COMMAND = [sys.executable, "-m", "crystal_gym.cli", "train"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
COMMON = {
    "steps": 8,
    "batch_size": 16,
    "evaluate_every": 4,
    "validation_crystals": 5,
    "warmup": 2,
}


@pytest.fixture(scope="module")
def dataset_id():
    return build_mini().dataset_id


def command(algorithm, dataset_id, folder, **changes):
    words = [algorithm, "--dataset", dataset_id, "-o", str(folder), "--threads", "1"]
    for name, value in {**COMMON, **changes}.items():
        words += [f"--{name.replace('_', '-')}", str(value)]
    return words


def together(words, **changes):
    """Start two processes; their output goes to one pipe."""
    launch = [*TORCHRUN, "-m", "crystal_gym.cli", "train", *words]
    return subprocess.Popen(
        launch,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **changes},
    )


def finished(process, code=0):
    text, _ = process.communicate(timeout=300)
    assert process.returncode == code, text
    return text


def kill_all(word):
    """Kill every process that has a word in its command: the launcher's are no group of its."""
    for folder in Path("/proc").iterdir():
        try:
            found = folder.name.isdigit() and word in (folder / "cmdline").read_text()
        except OSError:  # it has ended meanwhile
            continue
        if found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(folder.name), signal.SIGKILL)


def log(folder):
    with (folder / "log.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def checkpoint(folder):
    return torch.load(folder / "checkpoint.pt", weights_only=True)


def test_two_processes_learn_as_one_does(dataset_id, tmp_path):
    algorithm = "c-cql"
    text = finished(together(command(algorithm, dataset_id, tmp_path / "two", preset="paper")))
    assert text.count("best policy in") == 1
    config = TrainConfig(algorithm, dataset_id, preset="paper", **COMMON)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        train(config, tmp_path / "one", progress=False)
    finally:
        torch.set_num_threads(threads)
    # The paper's network draws nothing: the same batches give the same losses up to rounding.
    one, two = log(tmp_path / "one"), log(tmp_path / "two")
    assert [r["step"] for r in two] == ["4", "8"]
    for a, b in zip(one, two, strict=True):
        assert float(a["loss"]) == pytest.approx(float(b["loss"]), rel=1e-4)
    a, b = checkpoint(tmp_path / "one"), checkpoint(tmp_path / "two")
    assert a["averaged"].keys() == b["averaged"].keys()
    assert a["modules"]["q_funcs"].keys() == b["modules"]["q_funcs"].keys()
    assert a["sampling"] == b["sampling"]
    # The optimizer makes directions of little weight as long as the others, rounding included.
    a, b = (torch.cat([w.flatten() for w in x["averaged"].values()]) for x in (a, b))
    assert (a - b).norm() < 1e-3 * a.norm()
    load_policy(tmp_path / "two")


def test_two_killed_processes_go_on_bit_for_bit(dataset_id, tmp_path):
    changes = {"preset": "default", "steps": 120}
    whole = command("bc", dataset_id, tmp_path / "whole", **changes)
    finished(together(whole))
    parts = command("bc", dataset_id, tmp_path / "parts", **changes)
    process = together(parts)
    while not (tmp_path / "parts" / "checkpoint.pt").exists():
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.02)
    kill_all(str(tmp_path / "parts"))
    process.communicate()
    assert checkpoint(tmp_path / "parts")["step"] < 120
    finished(together(parts))
    a, b = checkpoint(tmp_path / "whole"), checkpoint(tmp_path / "parts")
    for part in ("averaged", "modules"):
        assert str(a[part]) == str(b[part])
    assert all(torch.equal(a["averaged"][k], b["averaged"][k]) for k in a["averaged"])
    timeless = [
        [{k: v for k, v in row.items() if k != "seconds"} for row in log(tmp_path / name)]
        for name in ("whole", "parts")
    ]
    assert timeless[0] == timeless[1]


def test_two_processes_train_a_surrogate(dataset_id, tmp_path):
    changes = {"steps": 4, "evaluate_every": 2, "batch_size": 8}
    words = command("surrogate", dataset_id, tmp_path / "run", **changes)
    at = words.index("--validation-crystals")
    del words[at : at + 2]
    text = finished(together(words))
    assert text.count("surrogate in") == 1
    assert [r["step"] for r in log(tmp_path / "run")] == ["2", "4"]
    assert SurrogateConfig().members == 4


def test_a_batch_that_cannot_be_shared_is_refused(dataset_id, tmp_path):
    process = together(command("bc", dataset_id, tmp_path / "run", batch_size=15))
    text, _ = process.communicate(timeout=300)
    assert process.returncode != 0
    assert "batch_size=15 cannot be shared by 2 processes" in text


def test_sigterm_stores_the_state(dataset_id, tmp_path):
    words = command("bc", dataset_id, tmp_path / "run", preset="paper", steps=100_000)
    process = subprocess.Popen(
        [*COMMAND, *words], stderr=subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    while not (tmp_path / "run" / "checkpoint.pt").exists():
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.02)
    time.sleep(0.5)
    process.terminate()
    process.communicate(timeout=60)
    assert process.returncode == 130
    assert checkpoint(tmp_path / "run")["step"] > 0


def test_a_folder_belongs_to_one_run_at_a_time(dataset_id, tmp_path):
    config = TrainConfig("bc", dataset_id, preset="paper", **COMMON)
    run = T._Run(config, tmp_path)
    with pytest.raises(OSError, match="another process is training in .*choose another folder"):
        train(config, tmp_path, progress=False)
    run.close()
    train(config, tmp_path, progress=False)


def test_shares_are_the_whole_batch():
    rows = np.arange(12)
    shares = [rows[Processes(rank, 3).share] for rank in range(3)]
    assert sorted(np.concatenate(shares)) == rows.tolist()
    assert {len(s) for s in shares} == {4}
