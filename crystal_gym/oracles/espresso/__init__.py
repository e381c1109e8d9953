"""Live Quantum ESPRESSO: settings, pseudopotentials, process control, and the oracle."""

from crystal_gym.oracles.espresso.oracle import EspressoOracle
from crystal_gym.oracles.espresso.outputs import PwOutput, read_output
from crystal_gym.oracles.espresso.pseudopotentials import Pseudopotential, Pseudopotentials
from crystal_gym.oracles.espresso.settings import PRESETS, PwSettings, make_settings

__all__ = [
    "PRESETS",
    "EspressoOracle",
    "Pseudopotential",
    "Pseudopotentials",
    "PwOutput",
    "PwSettings",
    "make_settings",
    "read_output",
]
