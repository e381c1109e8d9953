"""``CrystalFill-v0``, one and many, what its observations are made of, and its wrapper."""

from crystal_gym.envs.crystal_fill import CrystalFillEnv
from crystal_gym.envs.observations import PackedLayout, compact_rows
from crystal_gym.envs.vector import CrystalFillVectorEnv
from crystal_gym.envs.wrappers import EmbeddedActions

__all__ = [
    "CrystalFillEnv",
    "CrystalFillVectorEnv",
    "EmbeddedActions",
    "PackedLayout",
    "compact_rows",
]
