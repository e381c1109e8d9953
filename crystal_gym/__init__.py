"""Crystals to be filled, one element at a time: a Gymnasium environment with DFT rewards.

Importing the package registers ``CrystalFill-v0`` and does nothing else.
"""

from gymnasium.envs.registration import register, registry

__all__ = ["__version__"]
__version__ = "0.1.0"

if "CrystalFill-v0" not in registry:
    register(
        id="CrystalFill-v0",
        entry_point="crystal_gym.envs.crystal_fill:CrystalFillEnv",
        vector_entry_point="crystal_gym.envs.vector:CrystalFillVectorEnv",
    )
