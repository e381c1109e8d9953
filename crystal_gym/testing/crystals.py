"""Tiny crystals of seven kinds, the same crystals written otherwise, and impossible ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from pymatgen.core import Structure

__all__ = [
    "SAME_CRYSTAL",
    "fluorite",
    "impossible_crystals",
    "layered",
    "molecular",
    "moved",
    "on_other_vectors",
    "perovskite",
    "renumbered",
    "replaced",
    "rocksalt",
    "rotated",
    "tiny_crystals",
    "triclinic",
    "wurtzite",
]

_LAYER = [[1 / 3, 2 / 3, 0.25], [1 / 3, 2 / 3, 0.377], [1 / 3, 2 / 3, 0.123]]
_TRICLINIC = [
    [0.1, 0.2, 0.3],
    [0.6, 0.1, 0.9],
    [0.35, 0.7, 0.15],
    [0.8, 0.55, 0.5],
    [0.05, 0.85, 0.75],
    [0.45, 0.4, 0.6],
]


def tiny_crystals() -> dict[str, Structure]:
    """Return seven crystals of 2 to 6 sites by name; their cells are realistic, some are made up.

    They are those of the functions below: ``rocksalt``, ``wurtzite``, ``fluorite``,
    ``perovskite``, ``triclinic``, ``layered`` and ``molecular``.
    """
    return {name: make() for name, make in _MAKERS.items()}


def rocksalt(cation: str = "Na", anion: str = "Cl", a: float = 5.64) -> Structure:
    """Return the primitive cell of a rocksalt, 2 sites; ``a`` in Å of the cubic one."""
    from pymatgen.core import Lattice, Structure

    sites = [[0.0, 0.0, 0.0], [0.5, 0.5, 0.5]]
    cubic = Structure.from_spacegroup("Fm-3m", Lattice.cubic(a), [cation, anion], sites)
    return cubic.get_primitive_structure()


def wurtzite(cation: str = "Zn", anion: str = "S") -> Structure:
    """Return a wurtzite, 4 sites, in the cell of ZnS."""
    from pymatgen.core import Lattice, Structure

    sites = [[1 / 3, 2 / 3, 0], [1 / 3, 2 / 3, 0.3748]]
    lattice = Lattice.hexagonal(3.81, 6.26)
    return Structure.from_spacegroup("P6_3mc", lattice, [cation, anion], sites)


def fluorite(cation: str = "Ca", anion: str = "F") -> Structure:
    """Return the primitive cell of a fluorite, 3 sites, in that of CaF2."""
    from pymatgen.core import Lattice, Structure

    sites = [[0.0, 0.0, 0.0], [0.25, 0.25, 0.25]]
    cubic = Structure.from_spacegroup("Fm-3m", Lattice.cubic(5.46), [cation, anion], sites)
    return cubic.get_primitive_structure()


def perovskite() -> Structure:
    """Return cubic SrTiO3, 5 sites."""
    from pymatgen.core import Lattice, Structure

    centres = [[0.5, 0.5, 0.0], [0.5, 0.0, 0.5], [0.0, 0.5, 0.5]]
    sites = [[0.0, 0.0, 0.0], [0.5, 0.5, 0.5], *centres]
    return Structure(Lattice.cubic(3.91), ["Sr", "Ti", "O", "O", "O"], sites)


def triclinic() -> Structure:
    """Return six different elements without any symmetry, in a made-up cell."""
    from pymatgen.core import Lattice, Structure

    lattice = Lattice.from_parameters(5.1, 5.9, 6.6, 81, 97, 106)
    return Structure(lattice, ["Li", "O", "Si", "P", "Ca", "F"], _TRICLINIC)


def layered() -> Structure:
    """Return two sheets of MoS2, 6 sites, that no bond joins."""
    from pymatgen.core import Lattice, Structure

    other = (np.array(_LAYER) + [1 / 3, -1 / 3, 0.5]) % 1.0
    lattice = Lattice.hexagonal(3.16, 12.3)
    return Structure(lattice, ["Mo", "S", "S"] * 2, [*_LAYER, *other.tolist()])


def molecular() -> Structure:
    """Return CO and N2 in a box: every part of the graph is one bond."""
    from pymatgen.core import Lattice, Structure

    sites = [[0.2, 0.2, 0.2], [0.2, 0.2, 0.38], [0.7, 0.7, 0.7], [0.7, 0.7, 0.88]]
    return Structure(Lattice.cubic(6.0), ["C", "O", "N", "N"], sites)


_MAKERS: dict[str, Callable[[], Structure]] = {
    "rocksalt": rocksalt,
    "wurtzite": wurtzite,
    "fluorite": fluorite,
    "perovskite": perovskite,
    "triclinic": triclinic,
    "layered": layered,
    "molecular": molecular,
}


def replaced(structure: Structure, symbols: Sequence[str]) -> Structure:
    """Return the same sites with other elements, in the same order."""
    from pymatgen.core import Structure

    return Structure(structure.lattice, list(symbols), structure.frac_coords)


# -- the same crystal, written otherwise -----------------------------------------------------------


def renumbered(structure: Structure) -> Structure:
    """Return the crystal with its sites in the opposite order."""
    from pymatgen.core import Structure

    return Structure.from_sites(list(reversed(structure)))


def moved(structure: Structure) -> Structure:
    """Return the crystal with its origin elsewhere."""
    from pymatgen.core import Structure

    return Structure(
        structure.lattice,
        structure.species,
        structure.frac_coords + [0.13, 0.27, 0.41],
        to_unit_cell=True,
    )


def rotated(structure: Structure) -> Structure:
    """Return the crystal turned in space by 40 degrees about the direction (1, 2, 3)."""
    from pymatgen.core.operations import SymmOp

    turned = structure.copy()
    turned.apply_operation(SymmOp.from_axis_angle_and_translation(np.array([1, 2, 3]), 40))
    return turned


def on_other_vectors(structure: Structure) -> Structure:
    """Return the crystal on other lattice vectors of the same lattice, of the same volume."""
    return structure.make_supercell([[1, 1, 0], [0, 1, 0], [0, 1, 1]], in_place=False)


SAME_CRYSTAL: dict[str, Callable[[Structure], Structure]] = {
    "sites": renumbered,
    "origin": moved,
    "rotation": rotated,
    "vectors": on_other_vectors,
}
"""Ways to write the same crystal otherwise, by the name that :func:`check_oracle` takes."""


def impossible_crystals() -> dict[str, Structure]:
    """Return structures that nothing can calculate, by what is wrong with them."""
    from pymatgen.core import DummySpecies, Lattice, Structure

    box, origin, centre = Lattice.cubic(4.0), [0.0, 0.0, 0.0], [0.5, 0.5, 0.5]
    flat = Lattice([[4.0, 0.0, 0.0], [0.0, 4.0, 0.0], [4.0, 4.0, 1e-9]])
    return {
        "overlapping atoms": Structure(box, ["Na", "Cl"], [origin, [0.0, 0.0, 0.001]]),
        "an empty site": Structure(box, ["Na", DummySpecies("X")], [origin, centre]),
        "a partly occupied site": Structure(box, [{"Na": 0.5, "K": 0.5}], [origin]),
        "a coordinate that is no number": Structure(
            box, ["Na", "Cl"], [origin, [0.5, 0.5, np.nan]]
        ),
        "a flat cell": Structure(flat, ["Na"], [origin]),
    }
