"""The code blocks of a Markdown document, and how they are run.

A ``python`` block runs in the names that the blocks before it left, a ``sh`` block line by line in
the same folder; a ``text`` block behind one shows what it prints (``...`` stands for anything).
Before a block that cannot run there stands a line in italics that says why to readers:

    *Not run in the tests: it needs pw.x.*

Such a block still has to be Python, or commands that ``crystal-gym`` knows.
"""

from __future__ import annotations

import contextlib
import doctest
import io
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from crystal_gym.cli import main

ROOT = Path(__file__).resolve().parents[1]
RUN = ("python", "sh")
"""Languages of blocks that are run; others are commands for hours, output, or for Sphinx."""

_BLOCK = re.compile(
    r"(?P<before>[^\n]*)\n*^```(?P<language>[\w{}-]*)\n(?P<code>.*?)^```$", re.DOTALL | re.MULTILINE
)
_NOT_RUN = "*Not run in the tests"
_OUTPUT = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


class Block(NamedTuple):
    """One block; ``output`` is what the document says that it prints, if it says anything."""

    language: str
    code: str
    line: int
    runs: bool
    output: str | None


def blocks(document: str) -> list[Block]:
    """Return the blocks of a document, each ``text`` block as the output of the one before."""
    text = (ROOT / document).read_text("utf-8")
    assert text.count("\n```") == 2 * len(_BLOCK.findall("\n" + text)), (
        f"an odd fence in {document}"
    )
    found: list[Block] = []
    for match in _BLOCK.finditer("\n" + text):
        line = text.count("\n", 0, match.start("code")) + 1
        if match["language"] == "text":
            found[-1] = found[-1]._replace(output=match["code"])
        else:
            runs = not _paragraph_before(text, line).startswith(_NOT_RUN)
            found.append(Block(match["language"], match["code"], line, runs, None))
    return found


def _paragraph_before(text: str, line: int) -> str:
    """Return the paragraph above the fence on ``line - 1``."""
    above = "\n".join(text.splitlines()[: line - 2]).rstrip()
    return above.rpartition("\n\n")[2]


def run_document(document: str) -> dict[str, Any]:
    """Run the blocks of a document from top to bottom; return the names they leave."""
    names: dict[str, Any] = {"__name__": "document"}
    for block in blocks(document):
        where = f"{document}:{block.line}"
        if not block.runs:
            continue
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            if block.language == "python":
                # Blank lines in front, so that a traceback names the line of the document.
                code = "\n" * block.line + block.code
                exec(compile(code, where, "exec", dont_inherit=True), names)
            elif block.language == "sh":
                for words in commands(block.code):
                    assert words[0] == "crystal-gym", f"{where}: only crystal-gym is run here"
                    assert main(words[1:]) == 0, f"{where}: {shlex.join(words)}"
        if block.output is not None:
            right = doctest.OutputChecker().check_output(block.output, said.getvalue(), _OUTPUT)
            assert right, f"{where} shows\n{block.output}\nand printed\n{said.getvalue()}"
    return names


def commands(code: str) -> Iterator[list[str]]:
    """Return the words of every command in a block."""
    for line in code.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if words:
            yield words
