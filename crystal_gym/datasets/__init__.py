"""Offline datasets: fetching, building, and loading them into d3rlpy."""

from __future__ import annotations

from typing import TYPE_CHECKING

from crystal_gym.lazy import lazy_names

if TYPE_CHECKING:
    from crystal_gym.datasets.build import build_mini, build_mp20, build_tabular
    from crystal_gym.datasets.minari_io import load_trajectories
    from crystal_gym.datasets.parts import build_structures
    from crystal_gym.datasets.replay import CrystalReplayBuffer, load_d3rlpy

__all__ = [
    "CrystalReplayBuffer",
    "build_mini",
    "build_mp20",
    "build_structures",
    "build_tabular",
    "load_d3rlpy",
    "load_trajectories",
]

# d3rlpy and torch are heavy and optional: they are imported when something needs them.
__getattr__ = lazy_names(
    __name__,
    {
        "CrystalReplayBuffer": "replay",
        "load_d3rlpy": "replay",
        "load_trajectories": "minari_io",
        "build_mini": "build",
        "build_mp20": "build",
        "build_structures": "parts",
        "build_tabular": "build",
    },
)
