"""One name for one crystal, whatever cell, origin and site order it is written in."""

from __future__ import annotations

import hashlib
import itertools
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from crystal_gym.graphs import lattice_parameters
from crystal_gym.structures import cell_from_structure

if TYPE_CHECKING:
    from pymatgen.core import Structure

__all__ = ["cell_key", "structure_key"]

_GRID = 20_000
"""Coordinates are rounded to 1/20,000 of the cell: finer than a relaxation, coarser than a file."""


def structure_key(structure: Structure) -> str:
    """Return the name of a crystal.

    Args:
        structure: An ordered crystal; the choice of lattice vectors, origin and site order makes
            no difference.

    Returns:
        32 hex digits (:func:`cell_key`).

    Raises:
        ValueError: If it is no usable crystal (:func:`crystal_gym.structures.cell_from_structure`).
    """
    cell = cell_from_structure(structure)
    return cell_key(cell.lattice, cell.frac_coords, cell.reference)


def cell_key(
    lattice: NDArray[np.float64], frac_coords: NDArray[np.float64], tokens: NDArray[np.integer]
) -> str:
    """Return the name of a crystal in a Niggli-reduced cell.

    Of all ways to write the crystal in that lattice (every change of the vectors that keeps their
    lengths and angles, every origin on a site of the rarest element) the one that sorts first is
    hashed. So site order, origin, symmetric relabelling and mirror images make no difference;
    a larger cell of the same crystal is another calculation and has another name.

    Args:
        lattice: Row vectors, Å, ``(3, 3)``, Niggli-reduced.
        frac_coords: ``(n_sites, 3)``.
        tokens: Elements, 1 to 88, ``(n_sites,)``.

    Returns:
        32 hex digits.
    """
    tokens = np.asarray(tokens, dtype=np.int64)
    counts = np.bincount(tokens)
    rarest = np.flatnonzero(counts == counts[counts > 0].min())[0]
    origins = frac_coords[tokens == rarest]
    operations, size = _of_lattice(np.ascontiguousarray(lattice, dtype=np.float64).tobytes())
    # (operations, origins, sites, 3)
    moved = np.einsum("osx,gxy->gosy", frac_coords - origins[:, None, :], operations)
    grid = _rounded(moved * _GRID) % _GRID
    codes = ((grid[..., 0] * _GRID + grid[..., 1]) * _GRID + grid[..., 2]) * 128 + tokens
    rows = np.sort(codes, axis=-1).reshape(-1, len(tokens))
    first = rows[np.lexsort(rows.T[::-1])[0]]
    return hashlib.sha256(size + first.astype("<i8").tobytes()).hexdigest()[:32]


def _rounded(values: NDArray[np.float64]) -> NDArray[np.int64]:
    """Round to whole numbers, and halves up even where binary noise takes a little from them.

    Coordinates in files have six decimals, of which every fiftieth is half way on the grid. The
    odd offset is no difference of short decimals.
    """
    return np.floor(values + 0.50073106).astype(np.int64)


@lru_cache(maxsize=4096)
def _of_lattice(vectors: bytes) -> tuple[NDArray[np.float64], bytes]:
    """Return every map of fractional coordinates that keeps the metric, and the rounded size.

    In a Niggli-reduced cell the entries of such a change of vectors are -1, 0 or 1.
    """
    lattice = np.frombuffer(vectors, dtype=np.float64).reshape(3, 3)
    tensor = np.round(lattice @ lattice.T, 6)
    changes = _changes_of_vectors()
    images = changes @ tensor @ changes.transpose(0, 2, 1)
    lengths = np.sqrt(np.diag(tensor))
    differences = np.abs(images - tensor) / np.outer(lengths, lengths)
    kept = changes[differences.max(axis=(1, 2)) < 1e-3]
    size = _rounded(lattice_parameters(lattice) * np.array([1e4] * 3 + [1e3] * 3))
    # New vectors L' = M L make the coordinates f' = f M^-1.
    return np.linalg.inv(kept), size.astype("<i8").tobytes()


@lru_cache(maxsize=1)
def _changes_of_vectors() -> NDArray[np.float64]:
    matrices = np.array(list(itertools.product((-1.0, 0.0, 1.0), repeat=9))).reshape(-1, 3, 3)
    return matrices[np.abs(np.round(np.linalg.det(matrices))) == 1]
