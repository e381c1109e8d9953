"""Oracles: where the properties of a finished crystal come from."""

from crystal_gym.oracles.base import Filling, FillingOracle, Oracle, Properties, Status
from crystal_gym.oracles.table import PropertyTable, TableOracle, load_table

__all__ = [
    "Filling",
    "FillingOracle",
    "Oracle",
    "Properties",
    "PropertyTable",
    "Status",
    "TableOracle",
    "load_table",
]
