"""The faults of other packages that docs/upstream.md describes are still there.

A failure here is good news: look at the release notes, and take our own way around it out.
"""

import re
from pathlib import Path

import pytest

pytest.importorskip("d3rlpy", reason="the extra `agents` is not installed")
pytest.importorskip("huggingface_hub", reason="the extra `hub` is not installed")

DOCUMENT = Path(__file__).resolve().parents[1] / "docs" / "upstream.md"
BLOCKS = re.findall(
    r"^## ([^\n]*)\n(?:(?!^## ).)*?```python\n(.*?)```",
    DOCUMENT.read_text("utf-8"),
    re.DOTALL | re.MULTILINE,
)


def test_every_reproduction_is_found():
    assert len(BLOCKS) == DOCUMENT.read_text("utf-8").count("```python") == 5


# Reproductions are written for a report, not for this suite's rules about warnings.
@pytest.mark.filterwarnings("ignore")
def test_the_faults_are_still_there(empty_minari):
    for title, block in BLOCKS:
        try:
            exec(compile(block, f"docs/upstream.md, {title}", "exec"), {})
        except AssertionError as error:
            raise AssertionError(f"mended, or another fault than described: {title}") from error
