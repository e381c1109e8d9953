"""Offline datasets: fetching, building, and loading them into d3rlpy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from crystal_gym.datasets.build import build_mini, build_mp20, build_tabular
    from crystal_gym.datasets.replay import CrystalReplayBuffer, load_d3rlpy

__all__ = ["CrystalReplayBuffer", "build_mini", "build_mp20", "build_tabular", "load_d3rlpy"]

_HOMES = {
    "CrystalReplayBuffer": "replay",
    "load_d3rlpy": "replay",
    "build_mini": "build",
    "build_mp20": "build",
    "build_tabular": "build",
}


def __getattr__(name: str) -> Any:
    # d3rlpy and torch are heavy and optional: they are imported when something needs them.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
