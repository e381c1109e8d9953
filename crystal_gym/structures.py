"""From crystals as people have them (files, pymatgen, ASE) to reduced, numbered cells."""

from __future__ import annotations

import sqlite3
import warnings
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from crystal_gym.cdvae import read_cdvae_csv
from crystal_gym.elements import EMPTY, symbol_to_token
from crystal_gym.skeletons import Cell

if TYPE_CHECKING:
    from pymatgen.core import Structure

__all__ = [
    "MIN_DISTANCE",
    "cell_from_structure",
    "parse_cif",
    "read_structures",
    "site_symbols",
    "to_structure",
]

MIN_DISTANCE = 0.5
"""Å. Closer sites overlap: the shortest bond of all, in H2, is 0.74 Å."""

MAX_SITES = 500
"""Larger cells are refused: symmetry and distances take time and memory with the square."""

_LONGEST_CIF = 1_000_000

SUFFIXES = (".cif", ".vasp", ".poscar", ".xyz", ".extxyz", ".db", ".csv", ".gz")


def cell_from_structure(structure: Any, name: str | None = None) -> Cell:
    """Return the Niggli-reduced, canonically numbered cell of a crystal.

    Args:
        structure: pymatgen Structure or ASE Atoms. The dummy species X stands for an empty site.
        name: Name of the skeleton; defaults to the reduced formula.

    Raises:
        TypeError: If it is neither a Structure nor Atoms.
        ValueError: If it has no sites, is not periodic, is disordered, has overlapping or
            non-finite sites, or an element outside the 88.
    """
    structure = to_structure(structure)
    label = name or (structure.composition.reduced_formula if len(structure) else "structure")
    if len(structure) == 0:
        raise ValueError(f"{label} has no sites: expected at least one atom in a periodic cell")
    if len(structure) > MAX_SITES:
        raise ValueError(
            f"{label} has {len(structure):,} sites: expected at most {MAX_SITES}; use the "
            "primitive cell"
        )
    if not structure.is_ordered:
        mixed = next(site for site in structure if not site.is_ordered)
        raise ValueError(
            f"{label} is disordered: site {mixed.species_string} is partially occupied; expected "
            "one element per site, so choose an ordered approximant first"
        )
    matrix = structure.lattice.matrix
    if not (np.isfinite(matrix).all() and np.isfinite(structure.frac_coords).all()):
        raise ValueError(
            f"{label} has a coordinate that is not a finite number: expected finite lattice "
            "vectors in Å and fractional coordinates; correct the file"
        )
    if abs(np.linalg.det(matrix)) < 1e-3:
        raise ValueError(
            f"{label} has a cell of volume {abs(np.linalg.det(matrix)):.2g} Å^3: expected three "
            "independent lattice vectors; molecules need a periodic box"
        )
    tokens = [_token(site.specie, label) for site in structure]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # reduction of an already reduced cell
        reduced = structure.get_reduced_structure()
    shortest = _shortest_distance(reduced.lattice.matrix, reduced.frac_coords)
    if shortest < MIN_DISTANCE:
        raise ValueError(
            f"{label} has overlapping sites, {shortest:.2f} Å apart: expected at least "
            f"{MIN_DISTANCE} Å; remove duplicate atoms"
        )
    return Cell.from_sites(label, reduced.lattice.matrix, reduced.frac_coords, tokens)


def to_structure(structure: Any) -> Structure:
    """Return a pymatgen Structure for a Structure or ASE Atoms.

    Raises:
        TypeError: If it is neither.
        ValueError: If the Atoms are not periodic in all three directions.
    """
    from ase import Atoms
    from pymatgen.core import Structure
    from pymatgen.io.ase import AseAtomsAdaptor

    if isinstance(structure, Structure):
        return structure
    if isinstance(structure, Atoms):
        if not structure.pbc.all():
            raise ValueError(
                f"{structure.get_chemical_formula()} is not periodic in all directions "
                f"(pbc={structure.pbc.tolist()}): expected a crystal; put it in a periodic cell"
            )
        converted: Structure = AseAtomsAdaptor.get_structure(structure)
        return converted
    raise TypeError(
        f"a structure of type {type(structure).__name__} is not understood: expected a pymatgen "
        "Structure or ASE Atoms"
    )


def site_symbols(structure: Structure) -> list[str]:
    """Return the element of every site; oxidation states make no other crystal."""
    return [getattr(site.specie, "symbol", str(site.specie)) for site in structure]


def _token(species: Any, label: str) -> int:
    symbol = getattr(species, "symbol", str(species))
    if symbol in ("X", "X0"):
        return EMPTY
    try:
        return symbol_to_token(symbol)
    except ValueError as error:
        raise ValueError(f"{label}: {error}") from None


def _shortest_distance(lattice: np.ndarray, frac_coords: np.ndarray) -> float:
    """Return the shortest distance (Å) between sites, in a reduced cell; infinite for one site."""
    offset = frac_coords[:, None, :] - frac_coords[None, :, :]
    offset -= np.round(offset)
    # In a reduced cell the nearest image is one of the 27 around the rounded difference.
    shifts = np.stack(np.meshgrid(*[[-1, 0, 1]] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    vectors = (offset[:, :, None, :] + shifts) @ lattice
    distance = np.sqrt(np.einsum("ijkx,ijkx->ijk", vectors, vectors)).min(axis=-1)
    distance[np.diag_indices(len(distance))] = np.inf
    return float(distance.min())


def parse_cif(text: str) -> Structure:
    """Return the structure in a CIF, its sites as listed.

    Raises:
        ValueError: If pymatgen cannot read it.
    """
    from pymatgen.core import Structure

    if len(text) > _LONGEST_CIF:
        raise ValueError(
            f"the CIF has {len(text):,} characters: expected at most {_LONGEST_CIF:,}, far more "
            f"than {MAX_SITES} sites take; use the primitive cell"
        )
    with warnings.catch_warnings(record=True) as said:  # pymatgen says there what is wrong
        warnings.simplefilter("always")
        try:
            return Structure.from_str(text, fmt="cif")
        except (
            ArithmeticError,
            AssertionError,
            IndexError,
            KeyError,
            TypeError,
            ValueError,
        ) as error:
            why = [str(w.message) for w in said if "No structure parsed" in str(w.message)]
            reason = why[0].splitlines()[-1] if why else _first_line(error)
            if isinstance(error, ZeroDivisionError) and "modulo" in reason:
                reason = "it lists no atom sites"  # pymatgen counts its coordinates
            raise ValueError(f"the CIF cannot be read ({reason})") from error


def read_structures(path: Path | str) -> Iterator[tuple[str, Any]]:
    """Yield ``(name, structure)`` of every crystal in a file or folder.

    CIF, POSCAR and extended XYZ files (all frames), ASE databases (``.db``), CDVAE's CSV
    (``.csv``, ``.csv.gz``), or a folder of these, in the order of their names. Frames and rows are
    read as they are asked for; what a file says of one beside its sites is in ``Atoms.info``.

    Raises:
        FileNotFoundError: If there is nothing at ``path``.
        ValueError: If a file cannot be read, naming it.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(
            f"{path} does not exist: expected a CIF, POSCAR, extended XYZ, ASE database, CSV or a "
            "folder of these"
        )
    if path.is_dir():
        files = sorted(p for p in path.iterdir() if p.is_file() and _looks_readable(p))
        if not files:
            raise ValueError(
                f"{path} holds no structure files: expected names ending in "
                f"{', '.join(SUFFIXES)} or called POSCAR"
            )
        for file in files:
            yield from read_structures(file)
        return
    from ase.io.formats import UnknownFileTypeError

    try:
        yield from _read_file(path)
    except (
        ValueError,
        IndexError,
        KeyError,
        AssertionError,
        TypeError,
        OSError,
        sqlite3.Error,
        UnknownFileTypeError,
    ) as error:
        if isinstance(error, ValueError) and str(path) in str(error):
            raise
        raise ValueError(
            f"{path} cannot be read ({_first_line(error)}): expected a complete CIF, POSCAR, "
            "extended XYZ, ASE database or CSV with a cif column; check the file"
        ) from error


def _read_file(path: Path) -> Iterable[tuple[str, Any]]:
    suffix = path.suffix.lower()
    if suffix == ".csv" or path.name.endswith(".csv.gz"):
        rows, problems = read_cdvae_csv(path)
        total, found = len(rows) + len(problems), []
        for row in rows:
            try:
                structure = parse_cif(row.cif)
                cell_from_structure(structure, row.name)
                found.append((row.name, structure))
            except ValueError as error:
                problems[row.position] = str(error)
        if problems:
            number, reason = min(problems.items())
            warnings.warn(
                f"{path}: {len(problems)} of {total} rows could not be read "
                f"and were left out; the first is row {number}: {reason}",
                stacklevel=2,
            )
        return found
    if suffix == ".cif":
        return [(path.stem, parse_cif(path.read_text(encoding="utf-8", errors="replace")))]
    if suffix in (".vasp", ".poscar") or path.name.upper().startswith(("POSCAR", "CONTCAR")):
        from pymatgen.io.vasp import Poscar

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what it warns of is refused below
            poscar = Poscar.from_file(str(path), check_for_potcar=False)
        if not poscar.true_names:  # pymatgen would call them H, He, Li in turn
            raise ValueError("it does not name its elements")
        return [(path.stem, poscar.structure)]
    if suffix == ".db":
        return _numbered(path, _database_rows(path))
    import ase.io

    kind = {".xyz": "extxyz", ".extxyz": "extxyz"}.get(suffix)
    return _numbered(path, ase.io.iread(path, index=":", format=kind))


def _database_rows(path: Path) -> Iterator[Any]:
    """Yield the rows of an ASE database as Atoms, a thousand in memory at a time."""
    from ase.db import connect

    database, last = connect(path, use_lock_file=False), 0
    while rows := list(database.select(f"id>{last}", sort="id", limit=1_000)):
        for row in rows:
            yield row.toatoms(add_additional_information=True)
        last = rows[-1].id


def _numbered(path: Path, frames: Iterator[Any]) -> Iterator[tuple[str, Any]]:
    """Yield frames under the name of their file, with numbers if there are several."""
    some = list(islice(frames, 2))
    many = len(some) > 1
    for number, atoms in enumerate(chain(some, frames)):
        yield (f"{path.stem}-{number}" if many else path.stem), atoms


def _looks_readable(path: Path) -> bool:
    named = path.name.upper().startswith(("POSCAR", "CONTCAR"))
    return not path.name.startswith(".") and (named or path.suffix.lower() in SUFFIXES)


def _first_line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return (text[0] if text else type(error).__name__)[:200]
