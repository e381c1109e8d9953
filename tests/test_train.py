"""Training runs: settings, folders, resuming, faults; and that what is learned is real."""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import shutil
import signal
import threading

import numpy as np
import pytest

torch = pytest.importorskip("torch")
d3rlpy = pytest.importorskip("d3rlpy")

from crystal_gym.agents import (  # noqa: E402
    SiteTransformer,
    SurrogateConfig,
    TrainConfig,
    load_policy,
    rows_to_batch,
    train,
)
from crystal_gym.agents import training as T  # noqa: E402
from crystal_gym.cli import main  # noqa: E402
from crystal_gym.commands.arguments import TRAIN_SETTINGS  # noqa: E402
from crystal_gym.datasets import build_mini, load_d3rlpy  # noqa: E402


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def dataset_id():
    return build_mini().dataset_id


def settings(dataset_id, **changes):
    return TrainConfig(
        **{
            "dataset": dataset_id,
            "steps": 6,
            "batch_size": 8,
            "evaluate_every": 3,
            "validation_crystals": 5,
            "warmup": 2,
            **changes,
        }
    )


def rows(folder):
    with (folder / "log.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def weights(folder):
    return torch.load(folder / "checkpoint.pt", weights_only=True)["averaged"]


@pytest.mark.parametrize(
    ("algorithm", "preset"),
    [("bc", "paper"), ("goal-bc", "default"), ("u-cql", "paper"), ("c-cql", "default")]
    + [("discrete_bcq", "paper"), ("dqn", "default")],
)
def test_a_run_leaves_what_repeats_it(algorithm, preset, dataset_id, tmp_path):
    config = settings(dataset_id, algorithm=algorithm, preset=preset)
    scores = train(config, tmp_path / "run", progress=False)
    written = json.loads((tmp_path / "run" / "config.json").read_text())
    assert TrainConfig.from_dict(written["settings"]) == config
    assert "torch" in written["versions"]
    log = rows(tmp_path / "run")
    assert [int(row["step"]) for row in log] == [3, 6]
    assert max(float(row["val_accuracy"]) for row in log) == pytest.approx(
        scores.accuracy, abs=1e-4
    )
    assert list((tmp_path / "run" / "tensorboard").iterdir())
    policy = load_policy(tmp_path / "run")
    assert policy.metadata["settings"]["algorithm"] == algorithm


def test_an_interrupted_run_ends_as_an_undisturbed_one(dataset_id, tmp_path, monkeypatch):
    config = settings(dataset_id, algorithm="c-cql", preset="default")
    train(config, tmp_path / "whole", progress=False)
    update = T.CrystalCQLConfig().create().__class__.update
    calls = []

    def interrupted(self, batch):
        calls.append(1)
        if len(calls) == 5:
            os.kill(os.getpid(), signal.SIGINT)
        return update(self, batch)

    cls = T.CrystalCQLConfig().create().__class__
    monkeypatch.setattr(cls, "update", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "parts", progress=False)
    monkeypatch.undo()
    train(config, tmp_path / "parts", progress=False)
    whole, parts = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert all(torch.equal(whole[k], parts[k]) for k in whole)
    strip = [{k: v for k, v in r.items() if k.startswith("val")} for r in rows(tmp_path / "whole")]
    assert [r["step"] for r in rows(tmp_path / "parts")] == ["3", "6"]
    assert strip == [
        {k: v for k, v in r.items() if k.startswith("val")} for r in rows(tmp_path / "parts")
    ]


def test_a_killed_run_goes_on_from_its_last_checkpoint(dataset_id, tmp_path):
    config = settings(dataset_id, algorithm="bc", preset="paper")
    train(config, tmp_path / "whole", progress=False)
    train(settings(dataset_id, algorithm="bc", preset="paper"), tmp_path / "killed", progress=False)
    # What a kill after the first checkpoint leaves: the log may be ahead of it.
    run = T._Run(config, tmp_path / "fresh")
    steps = run.steps(threading.Event())
    next(steps)
    next(steps)  # the checkpoint of step 3 is written, step 6 is logged but not saved
    run.close()
    assert len(rows(tmp_path / "fresh")) == 2
    train(config, tmp_path / "fresh", progress=False)
    whole, parts = weights(tmp_path / "whole"), weights(tmp_path / "fresh")
    assert all(torch.equal(whole[k], parts[k]) for k in whole)
    assert [r["step"] for r in rows(tmp_path / "fresh")] == ["3", "6"]


def test_another_runs_folder_is_refused(dataset_id, tmp_path):
    config = settings(dataset_id, preset="paper")
    train(config, tmp_path / "run", progress=False)
    with pytest.raises(ValueError, match=r"seed=0, this one has 1.*choose another folder"):
        train(settings(dataset_id, preset="paper", seed=1), tmp_path / "run", progress=False)


def test_a_damaged_checkpoint_is_refused(dataset_id, tmp_path):
    config = settings(dataset_id, preset="paper")
    train(config, tmp_path / "run", progress=False)
    path = tmp_path / "run" / "checkpoint.pt"
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(ValueError, match=r"checkpoint\.pt is damaged"):
        train(config, tmp_path / "run", progress=False)
    assert load_policy(tmp_path / "run").metadata["settings"]["seed"] == 0


def test_a_loss_that_is_not_finite_ends_the_run(dataset_id, tmp_path):
    config = settings(
        dataset_id, algorithm="u-cql", preset="paper", learning_rate=1e30, steps=20, warmup=1
    )
    with pytest.raises(ValueError, match=r"not finite at step \d+.*lower --learning-rate"):
        train(config, tmp_path / "run", progress=False)


def test_too_little_memory_is_one_sentence(dataset_id, tmp_path, monkeypatch):
    def fails(self, batch_size):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(T.CrystalReplayBuffer, "sample_transition_batch", fails)
    monkeypatch.setattr(T._Run, "__init__", _without_sampling(T._Run.__init__))
    config = settings(dataset_id, preset="paper")
    with pytest.raises(MemoryError, match="smaller --batch-size"):
        train(config, tmp_path / "run", progress=False)


def _without_sampling(init):
    """Building the network samples a transition; only the steps shall fail."""

    def patched(self, config, folder, *others):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                T.CrystalReplayBuffer,
                "sample_transition_batch",
                lambda self, n: self.transitions(np.arange(n), None),
            )
            init(self, config, folder, *others)

    return patched


def test_training_stops_when_nothing_improves(dataset_id, tmp_path):
    config = settings(dataset_id, preset="paper", learning_rate=1e-9, steps=60, patience=2)
    train(config, tmp_path / "run", progress=False)
    assert int(rows(tmp_path / "run")[-1]["step"]) < 60


def test_training_starts_from_saved_weights(dataset_id, tmp_path):
    train(settings(dataset_id, algorithm="bc"), tmp_path / "bc", progress=False)
    config = settings(dataset_id, algorithm="c-cql", start_from=str(tmp_path / "bc"))
    run = T._Run(config, tmp_path / "cql")
    saved = T.load_weights(tmp_path / "bc")
    for modules in (run.algorithm.impl.modules.q_funcs, run.algorithm.impl.modules.targ_q_funcs):
        assert all(torch.equal(v, saved[k]) for k, v in modules.state_dict().items())
    run.close()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"preset": "big"}, "preset='big' is unknown"),
        ({"algorithm": "best"}, "algorithm='best' is unknown"),
        ({"algorithm": "td3"}, "algorithm='td3' does not learn from transitions with discrete"),
        ({"algorithm": "discrete_decision_transformer"}, "does not learn from transitions"),
        ({"steps": 0}, "steps=0 is not usable"),
        ({"steps": "many"}, "steps='many' is a str: expected a int"),
        ({"learning_rate": -1.0}, "learning_rate=-1.0 is not usable"),
        ({"stepz": 3}, "setting 'stepz' is unknown"),
        ({"device": "cuda:7"}, "device='cuda:7' is not here"),
        ({"validation": "crystal-none-v0"}, "dataset 'crystal-none-v0' is not on this machine"),
        ({"dataset": "crystal-none-v0"}, "dataset 'crystal-none-v0' is not on this machine"),
        ({"target_gap": [-1.0]}, "target_gap"),
    ],
    ids=lambda v: "-".join(v) if isinstance(v, dict) else "",
)
def test_bad_settings_get_one_sentence(changes, message, dataset_id, tmp_path, capsys):
    if torch.cuda.is_available() and "device" in changes:
        pytest.skip("there is a GPU here")
    path = tmp_path / "settings.toml"
    base = {"dataset": dataset_id, "steps": 2, **changes}
    path.write_text("".join(f"{k} = {json.dumps(v)}\n" for k, v in base.items()))
    assert main(["train", "--config", str(path), "-o", str(tmp_path / "run")]) == 1
    assert message in capsys.readouterr().err


def test_the_command_line_has_every_setting():
    assert {"algorithm", "target_gap", *TRAIN_SETTINGS} == {
        field.name for kind in (TrainConfig, SurrogateConfig) for field in dataclasses.fields(kind)
    }


def test_the_command_line_wins_over_the_file(dataset_id, tmp_path, capsys):
    path = tmp_path / "settings.toml"
    path.write_text(
        f'algorithm = "goal-bc"\ndataset = "{dataset_id}"\npreset = "paper"\nsteps = 500\n'
        "evaluate_every = 2\nvalidation_crystals = 3\nbatch_size = 4\n"
    )
    run = tmp_path / "run"
    words = ["train", "--config", str(path), "--steps", "2", "--target-gap", "3.0", "hindsight"]
    assert main([*words, "-o", str(run)]) == 0
    found = json.loads((run / "config.json").read_text())["settings"]
    assert (found["steps"], found["algorithm"]) == (2, "goal-bc")
    assert found["target_gap"] == [3.0, "hindsight"]
    assert "goal-bc" in capsys.readouterr().out
    path.write_text("steps = [")
    assert main(["train", "--config", str(path), "-o", str(run)]) == 1
    assert "is not TOML" in capsys.readouterr().err


def test_two_hundred_crystals_are_learned(dataset_id, tmp_path):
    """Learned by heart in a minute; the majority element is right on a tenth of the sites."""
    from crystal_gym.datasets import load_d3rlpy
    from crystal_gym.evaluation import MajorityPolicy, Task, rollout, score

    run = tmp_path / "run"
    config = settings(
        dataset_id,
        algorithm="bc",
        steps=400,
        batch_size=64,
        evaluate_every=400,
        warmup=20,
        averaging=0.98,
    )
    train(config, run, progress=False)
    few = load_d3rlpy(dataset_id).trajectories
    few = few.subset(np.flatnonzero(few.skeleton % 10 != 9))
    few = few.subset(np.unique(few.skeleton, return_index=True)[1][:200])
    task = Task.of_trajectories(few)
    learned = score(rollout(load_policy(run), task, None), task, set())
    majority = score(rollout(MajorityPolicy(few), task, None), task, set())
    assert majority.accuracy < 0.15
    assert learned.accuracy > 0.28
    shutil.rmtree(run)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # torch's own, in inductor
@pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ to compile with")
def test_compiled_layers_calculate_the_same(trajectories):
    rows = load_d3rlpy(trajectories, seed=0).sample_transition_batch(20).observations
    torch.manual_seed(0)
    network = SiteTransformer(width=8, n_layers=1, heads=2).eval()
    more, fewer = (rows_to_batch(torch.from_numpy(rows[:n])) for n in (20, 7))
    with torch.no_grad():
        expected = [network(batch) for batch in (more, fewer)]
        names = list(network.state_dict())
        network.compile_layers()
        for batch, features in zip((more, fewer), expected, strict=True):
            torch.testing.assert_close(network(batch), features, rtol=1e-5, atol=1e-5)
    assert list(network.state_dict()) == names


def test_compiling_without_a_compiler_says_what_is_missing(dataset_id, tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ValueError, match="no-such-compiler is not there: expected g"):
        train(settings(dataset_id, compile="on"), tmp_path / "run", progress=False)
