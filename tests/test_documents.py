"""What the documents show must run."""

import re
from pathlib import Path

import pytest

from crystal_gym.datasets import build_mini

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


def test_the_readme_names_its_two_commands():
    text = (ROOT / "README.md").read_text("utf-8")
    assert "make quickstart" in text
    assert "make test" in text
