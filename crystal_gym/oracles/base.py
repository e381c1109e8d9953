"""What every oracle takes and gives: the seam between environment and physics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from pymatgen.core import Structure

    from crystal_gym.skeletons import Skeleton

__all__ = ["Filling", "FillingOracle", "Oracle", "Properties", "Status"]


class Status(str, Enum):
    """How an evaluation ended: the same words in a table, a cache and ``info``."""

    OK = "ok"
    UNKNOWN = "unknown"
    """The oracle holds no answer for this crystal (a table it is not in)."""
    UNSUPPORTED_ELEMENT = "unsupported_element"
    """An element has no pseudopotential here."""
    ODD_ELECTRONS = "odd_electrons"
    """No magnetization that was tried suits the number of electrons."""
    GEOMETRY = "geometry"
    """Atoms overlap, the cell is singular, or far too empty or too large."""
    BANDS = "bands"
    """The bands that the settings ask for, or an empty one beside the occupied, do not fit."""
    NOT_CONVERGED = "not_converged"
    """The self-consistency cycle did not converge."""
    NO_GAP_INFORMATION = "no_gap_information"
    """The calculation ended well but names no lowest unoccupied level: no gap, which is not 0."""
    TIMEOUT = "timeout"
    """The calculation ran into its time limit."""
    MEMORY_OR_SIGNAL = "memory_or_signal"
    """The calculation ran out of memory or was killed."""
    IO_OR_TRUNCATED = "io_or_truncated"
    """A file could not be read or written, or the output breaks off."""
    UNPHYSICAL_ENERGY = "unphysical_energy"
    """The total energy is not a negative number."""
    CONFIGURATION = "configuration"
    """The program, its settings or its files are at fault, not the crystal."""

    def __str__(self) -> str:
        return self.value

    @property
    def is_final(self) -> bool:
        """Whether the same calculation would end the same way again: worth remembering."""
        return self not in _PASSING


_PASSING = frozenset(
    {Status.UNKNOWN, Status.TIMEOUT, Status.MEMORY_OR_SIGNAL, Status.IO_OR_TRUNCATED}
    | {Status.CONFIGURATION}
)


@dataclass(frozen=True)
class Properties:
    """What an oracle knows of one crystal; None where it does not know.

    Attributes:
        total_energy_ry: Total energy of the cell, Ry.
        formation_energy_ev_per_atom: eV/atom (eqn 15 of the paper for DFT values).
        band_gap_ev: Kohn-Sham gap, eV, not below 0.
        status: How the evaluation ended.
        provenance: Where the numbers come from, or why there are none.
        wall_s: Seconds the calculation took, None where nothing was calculated.
        details: Whatever else the oracle tells of the evaluation, JSON-ready, units in the keys;
            no part of equality.
    """

    total_energy_ry: float | None = None
    formation_energy_ev_per_atom: float | None = None
    band_gap_ev: float | None = None
    status: Status = Status.OK
    provenance: str = ""
    wall_s: float | None = None
    details: Mapping[str, Any] = field(default_factory=dict, compare=False)


class Filling(NamedTuple):
    """A filled skeleton: what the environment asks about, without making a Structure of it."""

    skeleton: Skeleton
    tokens: NDArray[np.int16]


@runtime_checkable
class Oracle(Protocol):
    """Anything that gives properties of crystals, in batches."""

    def evaluate(self, structures: Sequence[Structure]) -> list[Properties]:
        """Return the properties of each structure, in order; a failure is a status."""


@runtime_checkable
class FillingOracle(Oracle, Protocol):
    """An oracle that also answers for fillings of skeletons directly, which is much faster."""

    def evaluate_fillings(self, fillings: Sequence[Filling]) -> list[Properties]:
        """Return the properties of each filling, in order."""
