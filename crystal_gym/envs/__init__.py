"""The environment ``CrystalFill-v0`` and what its observations are made of."""

from crystal_gym.envs.crystal_fill import CrystalFillEnv
from crystal_gym.envs.observations import PackedLayout, compact_rows

__all__ = ["CrystalFillEnv", "PackedLayout", "compact_rows"]
