"""Oracles: where the properties of a finished crystal come from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from crystal_gym.oracles.base import Filling, FillingOracle, Oracle, Properties, Status
from crystal_gym.oracles.chain import ChainOracle
from crystal_gym.oracles.table import PropertyTable, TableOracle, load_table

if TYPE_CHECKING:
    from crystal_gym.oracles.cache import CachedOracle, ResultStore
    from crystal_gym.oracles.espresso import EspressoOracle, PwSettings

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
    "TableOracle",
    "load_table",
]

_HOMES = {
    "CachedOracle": "cache",
    "ResultStore": "cache",
    "EspressoOracle": "espresso",
    "PwSettings": "espresso",
}


def __getattr__(name: str) -> Any:
    # ASE's input writer and database are needed by those who calculate, not by every environment.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
