"""What the documents show must run."""

import re
import runpy
import sys
from pathlib import Path

import pytest

from crystal_gym.datasets import build_mini

pytest_plugins = ["espresso_fixtures"]

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def with_mini(empty_minari, tmp_path, monkeypatch):
    pytest.importorskip("d3rlpy")
    build_mini()
    monkeypatch.chdir(tmp_path)  # d3rlpy writes its logs where it runs


def run_blocks(document, count):
    """Run a document's Python blocks one after another; return the names they leave."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / document).read_text("utf-8"), re.DOTALL)
    assert len(blocks) == count
    names = {}
    for block in blocks:
        exec(compile(block, document, "exec"), names)
    return names


# These train with d3rlpy's fit(), whose progress bar and logger leave files to the collector.
@pytest.mark.filterwarnings("ignore")
def test_the_readme_runs_from_top_to_bottom(with_mini):
    assert 0 <= run_blocks("README.md", 5)["action"] < 88


@pytest.mark.filterwarnings("ignore")
def test_the_document_on_algorithms_runs_from_top_to_bottom(with_mini):
    names = run_blocks("docs/algorithms.md", 4)
    assert names["info"]["formula"]
    assert names["tokens"].shape[0] == 20


def test_the_training_example_runs(with_mini, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["train_and_act.py", "2"])
    runpy.run_path(str(ROOT / "examples" / "train_and_act.py"), run_name="__main__")
    assert capsys.readouterr().out.count("target") == 3


@pytest.mark.dft
def test_the_live_example_calculates_and_remembers(
    pw, pseudopotentials, empty_cache, monkeypatch, capsys
):
    monkeypatch.setenv("CRYSTAL_GYM_PSEUDO", str(pseudopotentials.folder))
    monkeypatch.setattr(sys, "argv", ["live_dft.py", "Mg", "S"])
    for ending in ("64 bands\n", "(stored)\n"):
        runpy.run_path(str(ROOT / "examples" / "live_dft.py"), run_name="__main__")
        said = capsys.readouterr().out
        assert said.startswith("MgS: ok, reward 9.9")
        assert "band_gap_ev = 3.68" in said
        assert said.endswith(ending)


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.py")), ids=lambda p: p.name)
def test_an_example_is_short(path):
    assert len(path.read_text("utf-8").splitlines()) < 80


def test_the_readme_names_its_two_commands():
    text = (ROOT / "README.md").read_text("utf-8")
    assert "make quickstart" in text
    assert "make test" in text
