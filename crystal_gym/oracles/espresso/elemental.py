"""Pure elements: the structures and settings behind reference energies.

Structures come from the libraries at hand: the prototypes that ship with pymatgen where one is
the element itself (AFLOW, Mehl et al., Comput. Mater. Sci. 2017, 136, S1, doi
10.1016/j.commatsci.2017.01.017), else ASE's simple metals, and diatomic molecules in a box.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING

from crystal_gym.oracles.espresso.settings import PwSettings

if TYPE_CHECKING:
    from pymatgen.core import Structure

__all__ = ["elemental_settings", "elemental_structure"]

_BOX = 7.0  # Å
_MOLECULES = {"H": 0.741, "N": 1.098, "O": 1.208, "F": 1.412}
"""Bond lengths, Å."""

_PROTOTYPES = {
    "B": "A_hR12_166_2h",
    "P": "A_oC8_64_f",
    "S": "A_oF128_70_4h",
    "Cl": "A_tP16_138_j",
    "Mn": "A_cP20_213_cd",
    "Ga": "A_oC8_64_f",
    "As": "A_hR2_166_c",
    "Se": "A_hP3_152_a",
    "In": "A_tI2_139_a",
    "Sn": "A_tI4_141_a",
    "I": "A_oC8_64_f",
    "La": "A_hP4_194_ac",
    "Sm": "A_hR3_166_ac",
    "Hg": "A_hR1_166_a",
}
_SIMPLE = ("fcc", "bcc", "hcp", "diamond")
_WRONG_IN_ASE = ("Te", *_PROTOTYPES)  # called hcp there

_K_LENGTH = 24.0  # Å: points along a direction times the length of its vector
_SMEARING_RY = 0.02


def elemental_structure(element: str) -> Structure:
    """Return a pure element's crystal, or its molecule in a box.

    Args:
        element: Symbol.

    Returns:
        One cell; Å.

    Raises:
        ValueError: If no library at hand has it.
    """
    from ase import Atoms
    from ase.build import bulk
    from ase.data import atomic_numbers, reference_states
    from pymatgen.io.ase import AseAtomsAdaptor

    state = reference_states[atomic_numbers[element]] or {}
    if element in _MOLECULES:
        bond = _MOLECULES[element]
        atoms = Atoms([element] * 2, [[0, 0, 0], [0, 0, bond]], cell=[_BOX] * 3, pbc=True)
    elif element == "He":  # ASE has it as a single atom
        atoms = bulk("He", "fcc", a=4.24)
    elif element in _PROTOTYPES:
        return _prototypes()[element, _PROTOTYPES[element]].copy()
    elif state.get("symmetry") in _SIMPLE and element not in _WRONG_IN_ASE:
        atoms = bulk(element)
    else:
        raise ValueError(
            f"no structure of the element {element} is at hand: give one, such as "
            f"`crystal-gym label references {element}.cif`"
        )
    structure: Structure = AseAtomsAdaptor.get_structure(atoms)
    return structure


@lru_cache(maxsize=1)
def _prototypes() -> dict[tuple[str, str], Structure]:
    from pymatgen.analysis.prototypes import AFLOW_PROTOTYPE_LIBRARY

    found: dict[tuple[str, str], Structure] = {}
    for prototype in AFLOW_PROTOTYPE_LIBRARY:
        structure = prototype["snl"].structure
        if len(structure.composition) == 1:
            element = structure.composition.elements[0].symbol
            found.setdefault((element, prototype["tags"]["aflow"]), structure)
    return found


def elemental_settings(settings: PwSettings, structure: Structure) -> PwSettings:
    """Return settings for a pure element with the same Hamiltonian: smearing and a dense mesh."""
    is_molecule = structure.volume / len(structure) > 100.0
    a, b, c = (max(1, round(_K_LENGTH / length)) for length in structure.lattice.abc)
    return replace(
        settings,
        n_bands=None,
        smearing_ry=_SMEARING_RY,
        k_mesh=(1, 1, 1) if is_molecule else (a, b, c),
        k_offset=(0, 0, 0),
    )
