"""From crystals as people have them (files, pymatgen, ASE) to reduced, numbered cells."""

from __future__ import annotations

import re
import sqlite3
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from io import StringIO, TextIOWrapper
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import numpy as np

from crystal_gym.cdvae import read_cdvae_csv
from crystal_gym.elements import EMPTY, symbol_to_token
from crystal_gym.files import DAMAGED_GZIP, first_line, open_file, read_text
from crystal_gym.skeletons import Cell

if TYPE_CHECKING:
    from pymatgen.core import Structure

__all__ = [
    "EMPTY_SYMBOLS",
    "MIN_DISTANCE",
    "cell_from_structure",
    "parse_cif",
    "read_structures",
    "site_symbols",
    "to_structure",
]

EMPTY_SYMBOLS = ("X", "X0")
"""What ASE and pymatgen call a site without an element."""

MIN_DISTANCE = 0.5
"""Å. Closer sites overlap: the shortest bond of all, in H2, is 0.74 Å."""

MAX_SITES = 500
"""Larger cells are refused: symmetry and distances take time and memory with the square."""

_FARTHEST = 1e6
"""Å, or cells. Products of larger numbers run over, and no crystal needs them."""

_LONGEST_VECTOR = 1_000
"""Å, of a reduced cell. spglib takes seconds where the tolerance is lost in rounding."""

_MOST_IMAGES = 200_000
"""Sites in a sphere as wide as the longest vector, which reduction and bonds look at. MP-20's most
have 16,000, ten in a slab of 3 x 3 x 200 Å 125,000."""

_LONGEST_FILE = 1_000_000
"""Bytes of a CIF or POSCAR, far more than ``MAX_SITES`` take."""

_LONGEST_EXPANDED = 100_000_000
_LARGEST_FILE = 10_000_000_000
"""Bytes of what is read frame by frame or row by row, a gzipped file's after expanding."""

_LONGEST_XYZ_LINE = 1_000_000

# pymatgen compares every position that symmetry makes with all before it: 0.4 s for so many.
_MOST_POSITIONS = 2_500
_MOST_OPERATIONS = 192
_MOST_QUOTES = 200  # in a line: its tokenizer takes the square of their number
_LONGEST_VALUE = 2_048
"""Characters of a line in a CIF, by the standard; no number or name in one is longer."""

_LONGEST_WORD = 100  # in a POSCAR, behind its title
_MOST_COLUMNS = 100  # of a property in an extended XYZ: nine are a tensor

SUFFIXES = (".cif", ".vasp", ".poscar", ".xyz", ".extxyz", ".db", ".csv")
"""Of structure files; all but ``.db`` may be followed by ``.gz``."""

_UNREADABLE = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    RecursionError,
    RuntimeError,
    StopIteration,
    SyntaxError,  # pymatgen reads properties of a species as Python literals
    TypeError,
    ValueError,
    Warning,  # pymatgen raises one of its own
)
"""What parsers raise on text that no program wrote."""


def cell_from_structure(structure: Any, name: str | None = None) -> Cell:
    """Return the Niggli-reduced, canonically numbered cell of a crystal.

    Args:
        structure: pymatgen Structure or ASE Atoms. The dummy species X stands for an empty site.
        name: Name of the skeleton; defaults to the reduced formula.

    Returns:
        Sites carry their elements, and their positions in ``structure``.

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
    largest = max(np.abs(matrix).max(), np.abs(structure.frac_coords).max())
    if largest > _FARTHEST:
        raise ValueError(
            f"{label} has a coordinate of {largest:.3g}: expected lattice vectors in Å and "
            f"fractional coordinates below {_FARTHEST:g}; correct the file"
        )
    if abs(np.linalg.det(matrix)) < 1e-3:
        raise ValueError(
            f"{label} has a cell of volume {abs(np.linalg.det(matrix)):.2g} Å^3: expected three "
            "independent lattice vectors; molecules need a periodic box"
        )
    # What follows bounds the time of Niggli reduction and of bonds.
    short = structure.lattice.get_lll_reduced_lattice().matrix
    _require_apart(label, float(np.linalg.norm(short, axis=1).min()))
    longest = float(np.linalg.norm(short, axis=1).max())
    if longest > _LONGEST_VECTOR:
        raise ValueError(
            f"{label} has a cell {longest:,.0f} Å long: expected at most {_LONGEST_VECTOR:,} Å; "
            "check the unit of its lattice vectors"
        )
    if len(structure) * _cells_within_reach(short) > _MOST_IMAGES:
        raise ValueError(
            f"{label} has a cell with a vector of {np.linalg.norm(matrix, axis=1).max():,.0f} Å, "
            f"too long for its volume of {abs(np.linalg.det(matrix)):.3g} Å^3: expected a cell "
            "of a crystal; cut a slab or chain shorter"
        )
    if len(structure) * _cells_within_reach(matrix) > _MOST_IMAGES:  # a usual lattice, but skewed
        structure = structure.get_reduced_structure("LLL")
    tokens = [_token(site.specie, label) for site in structure]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # reduction of an already reduced cell
        reduced = structure.get_reduced_structure()
    _require_apart(label, _shortest_distance(reduced.lattice.matrix, reduced.frac_coords))
    return Cell.from_sites(label, reduced.lattice.matrix, reduced.frac_coords, tokens)


def _require_apart(label: str, distance: float) -> None:
    if distance < MIN_DISTANCE:
        raise ValueError(
            f"{label} has overlapping sites, {distance:.2f} Å apart: expected at least "
            f"{MIN_DISTANCE} Å, also between periodic images; remove duplicate atoms or correct "
            "the lattice"
        )


def _cells_within_reach(lattice: np.ndarray) -> float:
    """Return how many cells lie in a sphere as wide as the longest vector."""
    longest = float(np.linalg.norm(lattice, axis=1).max())
    return float(4.19 * longest**3 / max(abs(np.linalg.det(lattice)), 1e-300))


def to_structure(structure: Any) -> Structure:
    """Return a pymatgen Structure for a Structure or ASE Atoms.

    Args:
        structure: Of a crystal; coordinates of Atoms are in Å.

    Returns:
        A Structure as it is; a new one for Atoms, sites in their order.

    Raises:
        TypeError: If it is neither.
        ValueError: If the Atoms are not periodic in all three directions or not finite.
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
        if not (np.isfinite(structure.positions).all() and np.isfinite(structure.cell).all()):
            raise ValueError(
                f"{structure.get_chemical_formula()} has a coordinate that is not a finite number: "
                "expected Å"
            )
        with np.errstate(over="ignore", invalid="ignore"):  # refused by cell_from_structure
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
    if symbol in EMPTY_SYMBOLS:
        return EMPTY
    try:
        return symbol_to_token(symbol)
    except ValueError as error:
        raise ValueError(f"{label}: {error}") from None


def _shortest_distance(lattice: np.ndarray, frac_coords: np.ndarray) -> float:
    """Return the shortest distance (Å) between sites, or of one to its own images.

    Args:
        lattice: Reduced vectors as rows in Å, shape (3, 3).
        frac_coords: Shape (n, 3).
    """
    offset = frac_coords[:, None, :] - frac_coords[None, :, :]
    offset -= np.round(offset)
    # In a reduced cell the nearest image is one of the 27 around the rounded difference.
    shifts = np.stack(np.meshgrid(*[[-1, 0, 1]] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    vectors = (offset[:, :, None, :] + shifts) @ lattice
    distance = np.sqrt(np.einsum("ijkx,ijkx->ijk", vectors, vectors))
    sites = np.arange(len(frac_coords))
    distance[sites, sites, len(shifts) // 2] = np.inf  # a site and itself, not its image
    return float(distance.min())


def parse_cif(text: str) -> Structure:
    """Return the one structure in a CIF, its sites as listed.

    Args:
        text: Of the file, at most 1,000,000 characters.

    Returns:
        It, in the cell as written.

    Raises:
        ValueError: If pymatgen cannot read it or would take long to, or if it holds several.
    """
    found = _parse_cifs(text)
    if len(found) > 1:
        raise ValueError(f"the CIF holds {len(found)} structures: expected one")
    return found[0]


def _parse_cifs(text: str) -> list[Structure]:
    """Return the structures of all data blocks of a CIF that have sites; at least one.

    Raises:
        ValueError: If one of them cannot be read, or would take long to.
    """
    from pymatgen.io.cif import CifParser

    if len(text) > _LONGEST_FILE:
        raise ValueError(
            f"the CIF has {len(text):,} characters: expected at most {_LONGEST_FILE:,}, far more "
            f"than {MAX_SITES} sites take; use the primitive cell"
        )
    with warnings.catch_warnings(record=True) as said:  # pymatgen says there what is wrong
        warnings.simplefilter("always")
        try:
            _require_small(text)
            with _pymatgen_s_own_errors():
                found: list[Structure] = CifParser.from_str(text).parse_structures(primitive=False)
        except _TooMuch as error:
            raise ValueError(f"the CIF {error}") from None
        except _UNREADABLE as error:
            reason = _said_by_pymatgen(said) or first_line(error)
            if isinstance(error, ZeroDivisionError) and "modulo" in reason:
                reason = "it lists no atom sites"  # pymatgen counts its coordinates
            raise ValueError(f"the CIF cannot be read ({reason})") from error
    # pymatgen leaves out a block that it cannot read, and the first of two of one name.
    blocks = [block for block in _BLOCK.split(text)[1:] if _SITES.search(block)]
    if len(found) < len(blocks):
        reason = _said_by_pymatgen(said) or "two blocks have one name"
        raise ValueError(
            f"of the {len(blocks)} structures in the CIF only {len(found)} can be read ({reason})"
        )
    return found


_BLOCK = re.compile(r"^\s*data_", re.MULTILINE)
_SITES = re.compile(r"^\s*_atom_site_(fract|cartn)_x\b", re.MULTILINE | re.IGNORECASE)


def _said_by_pymatgen(warned: Sequence[warnings.WarningMessage]) -> str | None:
    """Return why it left out the first block that it left out."""
    why = [str(w.message) for w in warned if "No structure parsed" in str(w.message)]
    return why[0].splitlines()[-1] if why else None


@contextmanager
def _pymatgen_s_own_errors() -> Iterator[None]:
    """Turn exceptions that pymatgen derives from nothing but Exception into a ValueError."""
    from pymatgen.core.composition import CompositionError
    from pymatgen.core.structure import StructureError

    try:
        yield
    except (CompositionError, StructureError) as error:
        raise ValueError(first_line(error)) from error


class _TooMuch(ValueError):
    """A file asks for more work than a crystal is worth."""


def _require_small(text: str) -> None:
    """Refuse a CIF on which pymatgen would spend minutes, before it does.

    A timer would need a process for each of hundreds of files. Three quantities bound its time
    instead: quotes in a line, the length of a value, and the positions that symmetry makes.
    """
    from pymatgen.io.cif import CifFile, CifParser

    most = max((line.count("'") + line.count('"') for line in text.splitlines()), default=0)
    if most > _MOST_QUOTES:
        raise _TooMuch(f"has a line with {most:,} quotes: expected at most {_MOST_QUOTES}")
    positions = 0
    for block in CifFile.from_str(text).data.values():
        for name, value in block.data.items():
            for word in [value] if isinstance(value, str) else value:
                if len(word) > _LONGEST_VALUE and name.startswith(_READ_BY_PYMATGEN):
                    raise _TooMuch(
                        f"has a {name[:50]} of {len(word):,} characters: expected at most "
                        f"{_LONGEST_VALUE:,}"
                    )
        sites = len(block.data.get("_atom_site_fract_x", ()))
        listed = [v for k, v in block.data.items() if "equiv_pos_as_xyz" in k.lower()]
        listed += [v for k, v in block.data.items() if "symop_operation_xyz" in k.lower()]
        operations = max((1 if isinstance(v, str) else len(v) for v in listed), default=0)
        if operations > _MOST_OPERATIONS:
            raise _TooMuch(
                f"lists {operations:,} symmetry operations: expected at most {_MOST_OPERATIONS}, "
                "those of the largest space groups"
            )
        if sites * _MOST_OPERATIONS > _MOST_POSITIONS:  # worth counting those of its space group
            operations = len(CifParser.from_str(text).get_symops(block))
        positions += sites * max(1, operations)
    if positions > _MOST_POSITIONS:
        raise _TooMuch(
            f"has {positions:,} positions (sites times symmetry operations): expected at most "
            f"{_MOST_POSITIONS:,}; write the primitive cell, of at most {MAX_SITES} sites"
        )


_READ_BY_PYMATGEN = ("_atom", "_cell", "_chemical_formula", "_space_group", "_symmetry")


def _parse_poscar(text: str) -> Structure:
    """Return the structure in a POSCAR.

    Raises:
        ValueError: If it does not name its elements, or announces more sites than it has lines.
    """
    from pymatgen.io.vasp import Poscar

    lines = text.split("\n")
    longest = max((len(word) for line in lines[1:] for word in line.split()), default=0)
    if longest > _LONGEST_WORD:
        raise ValueError(f"it has a word of {longest:,} characters, not at most {_LONGEST_WORD}")
    announced = 0
    for line in lines[5:]:  # elements, then their numbers, in one line or several
        try:
            announced += sum(abs(int(word)) for word in line.split())
        except ValueError:
            if announced:
                break
    if announced > len(lines):
        raise ValueError(f"it announces {announced:,} sites and has {len(lines):,} lines")
    with warnings.catch_warnings(), _pymatgen_s_own_errors():
        warnings.simplefilter("ignore")  # what it warns of is refused below
        poscar = Poscar.from_str(text)
    if not poscar.true_names:  # pymatgen would call them H, He, Li in turn
        raise ValueError("it does not name its elements")
    structure: Structure = poscar.structure
    return structure


def _xyz_frames(path: Path) -> Iterator[Any]:
    """Yield the frames of an extended XYZ as ASE Atoms.

    Raises:
        ValueError: If a frame has more than ``MAX_SITES`` sites, or not as many as it says.
    """
    at_most = _LONGEST_EXPANDED if path.suffix.lower() == ".gz" else _LARGEST_FILE
    with open_file(path, at_most) as binary, TextIOWrapper(binary, "utf-8", "replace") as file:
        number = 0
        while (first := _line(file)).strip():
            yield _xyz_frame(first, file, number)
            number += 1
    if number == 0:
        raise ValueError("it has no frames")


def _line(file: TextIO) -> str:
    line = file.readline(_LONGEST_XYZ_LINE)
    if len(line) == _LONGEST_XYZ_LINE:
        raise ValueError(f"it has a line of more than {_LONGEST_XYZ_LINE:,} characters")
    return line


def _xyz_frame(first: str, file: TextIO, number: int) -> Any:
    import ase.io
    from ase.io.extxyz import key_val_str_to_dict

    count = int(first)
    if not 0 < count <= MAX_SITES:
        raise ValueError(
            f"frame {number} has {count:,} sites: expected 1 to {MAX_SITES}; use the primitive cell"
        )
    lines = [line for _ in range(1 + count) if (line := _line(file))]
    if len(lines) <= count:
        raise ValueError(f"frame {number} breaks off before its {count} sites")
    said = str(key_val_str_to_dict(lines[0]).get("Properties", "")).split(":")
    if any(not 0 < int(columns) <= _MOST_COLUMNS for columns in said[2::3]):
        raise ValueError(
            f"frame {number} has a property of another number of columns than 1 to {_MOST_COLUMNS}"
        )
    with np.errstate(all="ignore"):  # absurd coordinates are refused by cell_from_structure
        return ase.io.read(StringIO("".join([first, *lines])), index=0, format="extxyz")


def _database_rows(path: Path) -> Iterator[Any]:
    """Yield the rows of an ASE database as Atoms, a thousand in memory at a time."""
    from ase.db import connect

    with open_file(path, _LARGEST_FILE) as file:
        if file.read(16) != b"SQLite format 3\x00":  # ASE would make its tables in anything
            raise ValueError("it is no ASE database")
    database, last = connect(path, type="db", use_lock_file=False), 0
    while rows := list(database.select(f"id>{last}", sort="id", limit=1_000)):
        for row in rows:
            yield row.toatoms(add_additional_information=True)
        last = rows[-1].id


def read_structures(path: Path | str) -> Iterator[tuple[str, Any]]:
    """Yield ``(name, structure)`` of every crystal in a file or folder.

    CIF (all blocks with sites), POSCAR and extended XYZ files (all frames), ASE databases
    (``.db``), CDVAE's CSV (``.csv``), or a folder of these, in the order of their names. All but
    databases may be gzipped. Frames and rows are read as they are asked for; what a file says of
    one beside its sites is in ``Atoms.info``.

    Args:
        path: A file, or a folder of them.

    Yields:
        Name and Structure (CIF, POSCAR, CSV) or Atoms; the name is a CSV row's id, or that of the
        file without its ending, with a number from 0 if it holds several.

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
    try:
        with np.errstate(all="ignore"):  # absurd coordinates are refused by cell_from_structure
            found = _read_file(path)
        yield from found
    except (*_UNREADABLE, *DAMAGED_GZIP, OSError, sqlite3.Error) as error:
        if isinstance(error, ValueError) and str(path) in str(error):
            raise
        raise ValueError(
            f"{path} cannot be read ({first_line(error)}): expected a complete CIF, POSCAR, "
            "extended XYZ, ASE database or CSV with a cif column; check the file"
        ) from error


def _read_file(path: Path) -> Iterable[tuple[str, Any]]:
    stem, suffix = _kind(path)
    if suffix == ".csv":
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
    if suffix == ".db":
        return _numbered(stem, _database_rows(path))
    if suffix in (".xyz", ".extxyz"):
        return _numbered(stem, _xyz_frames(path))
    text = read_text(path, _LONGEST_FILE, errors="replace")
    if suffix == ".cif":
        return _numbered(stem, iter(_parse_cifs(text)))
    return [(stem, _parse_poscar(text))]


def _numbered(stem: str, crystals: Iterator[Any]) -> Iterator[tuple[str, Any]]:
    """Yield crystals under the name of their file, with numbers if there are several."""
    some = list(islice(crystals, 2))
    many = len(some) > 1
    for number, crystal in enumerate(chain(some, crystals)):
        yield (f"{stem}-{number}" if many else stem), crystal


def _kind(path: Path) -> tuple[str, str]:
    """Return the name without its endings, and the ending that says what a file holds.

    Raises:
        ValueError: If no ending of :data:`SUFFIXES` does. What a file holds is never guessed from
            its content: that would reach readers which run code.
    """
    name = path.name[: -len(".gz")] if path.suffix.lower() == ".gz" else path.name
    stem, suffix = Path(name).stem, Path(name).suffix.lower()
    if suffix in SUFFIXES and not (suffix == ".db" and name != path.name):
        return stem, suffix
    if name.upper().startswith(("POSCAR", "CONTCAR")):
        return stem, ".poscar"
    raise ValueError(
        f"{path} is of no known kind: expected a name ending in {', '.join(SUFFIXES)} (all but .db "
        "also with .gz), or called POSCAR or CONTCAR; rename or convert it"
    )


def _looks_readable(path: Path) -> bool:
    if path.name.startswith("."):
        return False
    try:
        return bool(_kind(path))
    except ValueError:
        return False
