"""What is installed only on demand, and what to say where it is missing."""

from __future__ import annotations

import contextlib
import importlib.util
import io
from collections.abc import Sequence

__all__ = ["EXTRAS", "missing_modules", "require_agents", "require_extra"]

EXTRAS: dict[str, tuple[str, ...]] = {
    "agents": ("torch", "torch_geometric", "d3rlpy", "tensorboardX"),
    "cluster": ("distributed",),
    "hub": ("huggingface_hub",),
    "postgresql": ("ase_db_backends", "psycopg2"),
    "relax": ("chgnet",),
    "render": ("matplotlib", "moviepy"),
    "report": ("matplotlib", "plotly"),
}
"""Modules that the code imports, by the extra of ``pyproject.toml`` that brings them."""


def missing_modules(extra: str) -> tuple[str, ...]:
    """Return which modules of an extra are not there; none of them is imported."""
    return tuple(m for m in EXTRAS[extra] if importlib.util.find_spec(m) is None)


def require_extra(extra: str, what: str, modules: Sequence[str] | None = None) -> None:
    """Refuse to go on without the packages of an extra.

    Args:
        extra: A key of :data:`EXTRAS`.
        what: That needs it, in words: the beginning of the sentence.
        modules: Those of its modules that are needed; all by default.

    Raises:
        ImportError: If one of them is not installed; the message names the command to install it.
    """
    missing = [m for m in missing_modules(extra) if modules is None or m in modules]
    if missing:
        raise ImportError(
            f"{what} needs {', '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not "
            f"installed: run `pip install 'crystal-gym[{extra}]'`",
            name=missing[0],
        )


def require_agents(what: str = "training") -> None:
    """Refuse to go on without the extra ``agents``, and import d3rlpy without its banner.

    Args:
        what: That needs it, in words.

    Raises:
        ImportError: If it is not installed.
    """
    require_extra("agents", what)
    # gym, which d3rlpy still imports beside gymnasium, prints a banner that means nothing here.
    with contextlib.redirect_stderr(io.StringIO()):
        import d3rlpy  # noqa: F401
