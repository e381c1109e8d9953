"""``CrystalFill-v0``, one and many, what its observations are made of, and its wrappers."""

from crystal_gym.envs.crystal_fill import CrystalFillEnv
from crystal_gym.envs.observations import PackedLayout, compact_rows
from crystal_gym.envs.vector import CrystalFillVectorEnv
from crystal_gym.envs.wrappers import EmbeddedActions, OneHotObservations, one_hot

__all__ = [
    "CrystalFillEnv",
    "CrystalFillVectorEnv",
    "EmbeddedActions",
    "OneHotObservations",
    "PackedLayout",
    "compact_rows",
    "one_hot",
]
