"""What every oracle takes and gives: the seam between environment and physics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from pymatgen.core import Structure

    from crystal_gym.skeletons import Skeleton

__all__ = ["Filling", "FillingOracle", "Oracle", "Properties", "Status"]


class Status(str, Enum):
    """How an evaluation ended."""

    OK = "ok"
    UNKNOWN = "unknown"
    """The oracle holds no answer for this crystal (a table it is not in)."""
    FAILED = "failed"
    """The calculation was tried and gave no answer; ``provenance`` says why."""

    def __str__(self) -> str:
        return self.value


@dataclass(frozen=True)
class Properties:
    """What an oracle knows of one crystal; None where it does not know.

    Attributes:
        total_energy_ry: Total energy of the cell, Ry.
        formation_energy_ev_per_atom: eV/atom (eqn 15 of the paper for DFT values).
        band_gap_ev: Kohn-Sham gap, eV, not below 0.
        status: How the evaluation ended.
        provenance: Where the numbers come from, or why there are none.
        wall_s: Seconds the evaluation took, None for a looked-up value.
    """

    total_energy_ry: float | None = None
    formation_energy_ev_per_atom: float | None = None
    band_gap_ev: float | None = None
    status: Status = Status.OK
    provenance: str = ""
    wall_s: float | None = None


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
