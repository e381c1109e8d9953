"""`crystal-gym evaluate` from a dataset to files."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from chromium import shown

from crystal_gym.cli import main
from crystal_gym.commands import evaluate as evaluate_command
from crystal_gym.commands.evaluate import EvaluationConfig, evaluate_policies
from crystal_gym.datasets.build import build_mini
from crystal_gym.evaluation import Task
from crystal_gym.oracles import Properties

COMMON = ["--dataset", "crystal-mini-v0", "--oracle", "table", "--crystals", "12"]
COMMON += ["--targets", "1", "3", "--resamples", "50"]


@pytest.fixture(scope="module")
def mini(isolated_folders):
    return build_mini()


@pytest.fixture
def bundled():
    pytest.importorskip("torch", reason="policies need the extra `agents`")


@pytest.mark.usefixtures("mini", "bundled")
def test_a_search_is_judged_beside_its_policy(tmp_path):
    config = EvaluationConfig(
        policies=("bundled",),
        dataset="crystal-mini-v0",
        targets=(1.0, 4.0),
        search=True,
        crystals=6,
        resamples=20,
    )
    text = evaluate_policies(config, tmp_path, progress=False)
    assert "bundled, search: ranked by the bundled surrogate, which judges it as well." in text
    results = json.loads((tmp_path / "results.json").read_text("utf-8"))
    rows = {
        (r["method"], r["target_ev"]): {k: v[0] for k, v in r["measures"].items()}
        for r in results["at_target"]
    }
    for target in (1.0, 4.0):
        greedy, search = rows["bundled", target], rows["bundled, search", target]
        assert search["gap_error_ev"] < greedy["gap_error_ev"]
    alone = {r["method"]: r["measures"] for r in results["designs"]}
    assert alone["bundled, search"]["validity_smact14"][0] == 1.0


@pytest.mark.usefixtures("mini", "bundled")
def test_policies_and_baselines_side_by_side(tmp_path, capsys):
    folder = tmp_path / "out"
    assert main(["evaluate", "bundled", *COMMON, "-o", str(folder)]) == 0
    printed = capsys.readouterr().out
    results = json.loads((folder / "results.json").read_text("utf-8"))
    methods = {row["method"]: row["kind"] for row in results["designs"]}
    assert methods["bundled"] == "policy"
    assert methods["source crystals"] == "ceiling"
    assert list(methods.values()).count("baseline") == 6
    for row in results["designs"]:
        for value, low, high in row["measures"].values():
            if value is not None:
                assert low <= value + 1e-9
                assert value <= high + 1e-9
    ceiling = next(r for r in results["designs"] if r["kind"] == "ceiling")
    assert ceiling["measures"]["accuracy"] == [1.0, 1.0, 1.0]
    assert {r["target_ev"] for r in results["at_target"]} == {1.0, 3.0}
    assert results["settings"]["seed"] == 0
    assert "crystal-gym" in results["versions"]
    assert str(tmp_path) not in json.dumps(results)
    for line in printed.splitlines():
        if line.startswith("## ") and ("Propert" in line or "nu" in line or "gap" in line):
            assert "DFT table" in line
    assert (folder / "tables.md").read_text("utf-8").strip() in printed
    with shown(folder / "report.html", width=390, dark=True) as page:
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        assert page.locator(".plot .main-svg").count() > 0
        assert page.locator(".scene canvas").count() == 2
        assert "DFT table" in page.inner_text(".lead")


@pytest.mark.usefixtures("mini")
def test_an_interrupted_evaluation_goes_on(tmp_path, monkeypatch, capsys):
    config = EvaluationConfig(
        dataset="crystal-mini-v0", oracle="table", crystals=8, targets=(1.0, 3.0), resamples=20
    )
    made = []
    real = evaluate_command.evaluate_designs

    def stop_at_third(oracle, tokens, task, **options):
        made.append(len(tokens))
        if len(made) == 3:
            raise KeyboardInterrupt
        return real(oracle, tokens, task, **options)

    monkeypatch.setattr(evaluate_command, "evaluate_designs", stop_at_third)
    with pytest.raises(KeyboardInterrupt):
        evaluate_policies(config, tmp_path / "cut", progress=False)
    assert not (tmp_path / "cut" / "results.json").exists()
    made.clear()
    monkeypatch.setattr(
        evaluate_command,
        "evaluate_designs",
        lambda *a, **k: made.append(1) or real(*a, **k),
    )
    evaluate_policies(config, tmp_path / "cut", progress=False)
    assert len(made) == 8 - 2  # seven designs and the source crystals, two of them were there
    made.clear()
    whole = evaluate_policies(config, tmp_path / "whole", progress=False)
    assert whole == (tmp_path / "cut" / "tables.md").read_text("utf-8")
    made.clear()
    assert evaluate_policies(config, tmp_path / "cut", progress=False) == whole
    assert made == []


class FixedSurrogate:
    """Says one gap of everything."""

    def __init__(self, gap, weights):
        self.gap, self.metadata = gap, {"weights_sha256": weights}

    def evaluate(self, structures):
        return [Properties(band_gap_ev=self.gap) for _ in structures]


@pytest.mark.usefixtures("mini")
def test_a_surrogate_that_was_trained_again_is_asked_again(tmp_path, monkeypatch):
    config = EvaluationConfig(
        dataset="crystal-mini-v0", crystals=5, targets=(1.0, 3.0), resamples=5
    )
    seen, made = [], []
    draw = evaluate_command.RandomBalanced.__call__
    monkeypatch.setattr(
        evaluate_command.RandomBalanced,
        "__call__",
        lambda self, task, target: made.append(1) or draw(self, task, target),
    )
    for gap, weights in ((1.0, "first"), (3.0, "second")):
        oracle = FixedSurrogate(gap, weights)
        monkeypatch.setattr(evaluate_command, "make_oracle", lambda *_, oracle=oracle: oracle)
        text = evaluate_policies(config, tmp_path, progress=False)
        assert "(surrogate, not DFT)" in text
        results = json.loads((tmp_path / "results.json").read_text("utf-8"))
        seen.append({r["measures"]["mean_gap_ev"][0] for r in results["designs"]})
    assert seen == [{1.0}, {3.0}]
    assert len(made) == 1  # the designs themselves are those that were there


def test_a_policy_of_the_published_order_is_judged_in_canonical_numbering(trajectories):
    task = Task.of_trajectories(trajectories).first_orders()
    leaked = evaluate_command._in_source_order(
        lambda theirs, _: theirs.reference, trajectories, task.rows(np.arange(1, len(task))), None
    )
    np.testing.assert_array_equal(leaked, task.reference[1:])


@pytest.mark.usefixtures("mini")
def test_the_seed_draws_the_skeletons(tmp_path):
    rows = []
    for seed in (0, 1):
        config = EvaluationConfig(
            dataset="crystal-mini-v0", oracle="table", crystals=5, resamples=5, seed=seed
        )
        evaluate_policies(config, tmp_path / str(seed), progress=False)
        with np.load(tmp_path / str(seed) / "crystals.npz") as file:
            rows.append(file["skeleton"].tolist())
    assert len(rows[0]) == 5
    assert rows[0] != rows[1]


@pytest.mark.usefixtures("mini", "bundled")
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere"], "nowhere does not exist"),
        (["bundled", "--targets", "-1"], "expected a number from 0"),
        (["bundled", "--targets", "1", "1"], "one or more different gaps"),
        (["bundled", "--dataset", "crystal-nothing-v0"], "crystal-nothing-v0"),
        (["--oracle", "nowhere.npz"], "nowhere.npz"),
        (["--validation", "crystal-nothing-v0"], "is not on this machine"),
    ],
)
def test_what_cannot_be_evaluated_is_one_sentence(tmp_path, capsys, words, message):
    assert main(["evaluate", *COMMON, *words, "-o", str(tmp_path / "x")]) == 1
    lines = [x for x in capsys.readouterr().err.splitlines() if x.startswith("crystal-gym: ")]
    assert re.search(re.escape(message), lines[-1])


@pytest.mark.usefixtures("mini")
def test_a_composition_split_judges_other_chemical_systems(tmp_path):
    config = EvaluationConfig(
        dataset="crystal-mini-v0", oracle="table", split="composition", resamples=5
    )
    text = evaluate_policies(config, tmp_path, progress=False)
    results = json.loads((tmp_path / "results.json").read_text("utf-8"))
    assert "composition split" in text
    assert results["crystals_of_new_formula"] == results["crystals"]
