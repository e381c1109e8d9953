"""What a command may show to a person, and not to a program that reads it."""

from __future__ import annotations

import os
import sys
from typing import TextIO

__all__ = ["coloured", "shows_progress"]

_CODES = {"bold": "1", "dim": "2", "green": "32", "red": "31", "yellow": "33"}


def coloured(text: str, colour: str, stream: TextIO | None = None) -> str:
    """Return a text in a colour where a person reads it.

    Args:
        text: Without colours.
        colour: ``bold``, ``dim``, ``green``, ``red`` or ``yellow``.
        stream: Where it will be printed (standard output). A pipe, a file, ``NO_COLOR`` (with any
            value but an empty one) and ``TERM=dumb`` get the text as it is.

    Returns:
        The text between ANSI codes, or as it is.
    """
    stream = sys.stdout if stream is None else stream
    plain = bool(os.environ.get("NO_COLOR")) or os.environ.get("TERM") == "dumb"
    if plain or not stream.isatty():
        return text
    return f"\033[{_CODES[colour]}m{text}\033[0m"


def shows_progress() -> bool:
    """Return whether standard error is a terminal: progress bars are for people."""
    return sys.stderr.isatty()
