"""Relaxation of candidates with a machine-learned potential, CHGNet, where it is installed.

References:
    Deng et al., *CHGNet as a pretrained universal neural network potential for charge-informed
    atomistic modelling*, Nat. Mach. Intell. 2023, 5, 1031, doi 10.1038/s42256-023-00716-3.
"""

from __future__ import annotations

import io
import warnings
from contextlib import redirect_stdout
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from crystal_gym.extras import require_extra
from crystal_gym.files import read_json

if TYPE_CHECKING:
    from pymatgen.analysis.phase_diagram import PhaseDiagram
    from pymatgen.core import Structure
    from pymatgen.entries.computed_entries import ComputedEntry

__all__ = ["Relaxer"]

_FORCE_EV_PER_ANG, _STEPS = 0.1, 300


class Relaxer:
    """Relaxes atoms and cell.

    Args:
        references: JSON of pymatgen ``ComputedEntry`` objects, for energies above the hull; their
            energies have to suit the potential's (Materials Project, PBE/PBE+U with corrections).

    Raises:
        ImportError: If the potential is not installed.
        ValueError: If the references cannot be read.
    """

    def __init__(self, references: Path | None = None) -> None:
        require_extra("relax", "relaxing with CHGNet")
        from chgnet.model import StructOptimizer

        # It prints what it is, whatever is asked of it.
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            self._optimizer = StructOptimizer(use_device="cpu")
        self._hull = None if references is None else _hull(references)
        self.name = f"CHGNet {version('chgnet')}"

    def __call__(self, structure: Structure) -> dict[str, Any]:
        """Return what the relaxation found, JSON-ready.

        Args:
            structure: Ordered, every site filled.

        Returns:
            ``potential``; ``converged`` (forces below 0.1 eV/Å within 300 steps); ``structure``
            (pymatgen's dictionary); ``energy_ev_per_atom``; ``largest_move_ang`` and
            ``volume_change_percent``; ``energy_above_hull_ev_per_atom``, None where references do
            not span its elements.
        """
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            result: dict[str, Any] = self._optimizer.relax(
                structure, fmax=_FORCE_EV_PER_ANG, steps=_STEPS, verbose=False
            )
        after: Structure = result["final_structure"]
        trajectory = result["trajectory"]
        energy = float(trajectory.energies[-1])
        forces = np.linalg.norm(trajectory.forces[-1], axis=1).max()
        return {
            "potential": self.name,
            "converged": bool(forces <= _FORCE_EV_PER_ANG),
            "structure": after.as_dict(),
            "energy_ev_per_atom": energy / len(structure),
            "largest_move_ang": largest_move(structure, after),
            "volume_change_percent": 100.0 * (after.volume / structure.volume - 1.0),
            "energy_above_hull_ev_per_atom": self._above_hull(after, energy),
        }

    def _above_hull(self, structure: Structure, energy_ev: float) -> float | None:
        if self._hull is None or not set(structure.elements) <= set(self._hull.elements):
            return None
        from pymatgen.entries.computed_entries import ComputedEntry

        entry = ComputedEntry(structure.composition, energy_ev)
        above = self._hull.get_e_above_hull(entry, allow_negative=True)
        return None if above is None else float(above)


def _hull(path: Path) -> PhaseDiagram:
    from pymatgen.analysis.phase_diagram import PhaseDiagram

    try:
        return PhaseDiagram([_entry(entry) for entry in read_json(path, _LARGEST_REFERENCES)])
    except _NO_REFERENCES as error:
        raise ValueError(
            f"{path} holds no references ({type(error).__name__}: {str(error)[:200]}): expected a "
            "JSON list of pymatgen ComputedEntry objects with the pure elements among them"
        ) from error


_LARGEST_REFERENCES = 1_000_000_000

# What pymatgen and Qhull raise on entries that are none.
_NO_REFERENCES = (
    ArithmeticError,
    AttributeError,
    LookupError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)


def _entry(stored: dict[str, Any]) -> ComputedEntry:
    """Return an entry from its numbers: pymatgen's own decoder imports whatever JSON names."""
    from pymatgen.core import Composition
    from pymatgen.entries.computed_entries import ComputedEntry

    energy = float(stored["energy"]) + float(stored.get("correction") or 0.0)
    if not np.isfinite(energy):
        raise ValueError(f"an energy is {energy}")
    return ComputedEntry(
        Composition(stored["composition"]), energy, entry_id=stored.get("entry_id")
    )


def largest_move(before: Structure, after: Structure) -> float:
    """Return how far (Å) an atom moved at most, beside the drift of all and the cell's change."""
    moved = np.asarray(after.frac_coords - before.frac_coords)
    moved -= np.round(moved)
    moved -= moved.mean(axis=0)
    return float(np.linalg.norm(moved @ before.lattice.matrix, axis=1).max())
