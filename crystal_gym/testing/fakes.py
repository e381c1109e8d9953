"""Oracles that calculate nothing, for tests of what asks oracles."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from crystal_gym.elements import EMPTY, reduced_formula
from crystal_gym.oracles import Properties, Status

if TYPE_CHECKING:
    from pymatgen.core import Structure

__all__ = ["FixedOracle", "FormulaOracle"]


class FixedOracle:
    """Answers the same whatever it is asked.

    Args:
        properties: The answer.

    Attributes:
        asked: Every structure so far, in order.
        batches: How many came at once, in order.
    """

    def __init__(self, properties: Properties) -> None:
        self.properties = properties
        self.asked: list[Structure] = []
        self.batches: list[int] = []

    def __repr__(self) -> str:
        return f"FixedOracle({self.properties})"

    def evaluate(self, structures: Sequence[Structure]) -> list[Properties]:
        """Return the answer, once for each structure."""
        self.asked.extend(structures)
        self.batches.append(len(structures))
        return [self.properties] * len(structures)


class FormulaOracle:
    """Answers with numbers made up from composition and density; keeps every promise.

    Gaps lie from 0 to 8 eV, formation energies from -4 to 0 eV/atom.
    """

    def __repr__(self) -> str:
        return "FormulaOracle()"

    def evaluate(self, structures: Sequence[Structure]) -> list[Properties]:
        """Return made-up properties; what is no crystal has a status."""
        return [self._answer(structure) for structure in structures]

    def _answer(self, structure: Structure) -> Properties:
        from crystal_gym.structures import cell_from_structure

        try:
            cell = cell_from_structure(structure)
        except ValueError as error:
            return Properties(status=Status.GEOMETRY, provenance=str(error))
        if EMPTY in cell.reference:
            return Properties(status=Status.UNSUPPORTED_ELEMENT, provenance="a site is empty")
        share = zlib.crc32(reduced_formula(cell.reference).encode()) / 2**32
        density = structure.volume / len(structure)
        return Properties(
            total_energy_ry=-len(structure) * (10.0 + share),
            formation_energy_ev_per_atom=-4.0 * share,
            band_gap_ev=8.0 * share * 10.0 / (10.0 + density),
            provenance="made up from the formula",
        )
