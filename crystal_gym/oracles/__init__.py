"""Oracles: where the properties of a finished crystal come from."""

from __future__ import annotations

from typing import TYPE_CHECKING

from crystal_gym.lazy import lazy_names
from crystal_gym.oracles.base import Filling, FillingOracle, Oracle, Properties, Status
from crystal_gym.oracles.chain import ChainOracle
from crystal_gym.oracles.table import PropertyTable, TableOracle, load_table

if TYPE_CHECKING:
    from crystal_gym.oracles.cache import CachedOracle, ResultStore
    from crystal_gym.oracles.espresso import EspressoOracle, PwSettings
    from crystal_gym.oracles.surrogate import SurrogateOracle

__all__ = [
    "CachedOracle",
    "ChainOracle",
    "EspressoOracle",
    "Filling",
    "FillingOracle",
    "Oracle",
    "Properties",
    "PropertyTable",
    "PwSettings",
    "ResultStore",
    "Status",
    "SurrogateOracle",
    "TableOracle",
    "load_table",
]

# ASE's input writer and database, and torch, are needed by those who calculate or predict, not by
# every environment.
__getattr__ = lazy_names(
    __name__,
    {
        "CachedOracle": "cache",
        "ResultStore": "cache",
        "EspressoOracle": "espresso",
        "PwSettings": "espresso",
        "SurrogateOracle": "surrogate",
    },
)
