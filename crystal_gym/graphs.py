"""Graphs and symmetry of bare skeletons: everything derived from geometry alone.

Conventions, here and everywhere: ``lattice`` holds row vectors in Å, ``frac_coords`` are
fractional in ``[0, 1)``, ``edge_image`` is the lattice translation of an edge's target.
Nothing in this module ever sees an element.
"""

from __future__ import annotations

import hashlib
import sqlite3
import struct
import warnings
from collections.abc import Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from crystal_gym.neighbors import crystal_nn_edges

__all__ = [
    "Geometry",
    "GeometryCache",
    "adjacency",
    "analyse_geometry",
    "breadth_first_order",
    "canonical_order",
    "geometry_key",
    "lattice_parameters",
    "symmetry_permutations",
]

SYMPREC = 0.01
"""Tolerance (Å) of the symmetry search: spglib's and pymatgen's usual value."""

# Names the cache's table: raise it whenever the analysis below could give another answer.
_ANALYSIS_VERSION = 1
_TABLE = f"geometry_{_ANALYSIS_VERSION}"


@dataclass(frozen=True, eq=False)
class Geometry:
    """What :func:`analyse_geometry` derives from the sites of a cell.

    Attributes:
        edge_index: Source and target site of every directed edge, int16 ``(2, n_edges)``.
        edge_image: Lattice translation of the target, int16 ``(n_edges, 3)``.
        edge_length: Å, float32 ``(n_edges,)``.
        permutations: Every distinct way the symmetry operations of the bare skeleton permute its
            sites, int16 ``(n_operations, n_sites)``; row 0 is the identity.
        space_group_number: Of the bare skeleton (all sites alike), 1 to 230.
    """

    edge_index: NDArray[np.int16]
    edge_image: NDArray[np.int16]
    edge_length: NDArray[np.float32]
    permutations: NDArray[np.int16]
    space_group_number: int


def lattice_parameters(lattice: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return ``(a, b, c, alpha, beta, gamma)`` in Å and degrees, alpha between b and c."""
    lengths = np.linalg.norm(lattice, axis=-1)
    unit = lattice / lengths[..., None]
    cosines = np.stack(
        [
            np.sum(unit[..., 1, :] * unit[..., 2, :], axis=-1),
            np.sum(unit[..., 0, :] * unit[..., 2, :], axis=-1),
            np.sum(unit[..., 0, :] * unit[..., 1, :], axis=-1),
        ],
        axis=-1,
    )
    angles = np.degrees(np.arccos(np.clip(cosines, -1.0, 1.0)))
    return np.concatenate([lengths, angles], axis=-1)


def _rounded_sites(frac_coords: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return coordinates in units of 1e-6 of the cell, wrapped so that 0.9999999 equals 0."""
    return np.round(np.asarray(frac_coords) * 1e6).astype(np.int64) % 1_000_000


def geometry_key(lattice: NDArray[np.float64], frac_coords: NDArray[np.float64]) -> str:
    """Return a content hash (16 hex digits) of the cell and its set of sites.

    Lattice parameters enter rounded to 1e-5 Å and 1e-4 degrees, coordinates to 1e-6, so the key
    survives writing to a file and reading back; the order of the sites does not matter.
    """
    cell = np.round(lattice_parameters(lattice) * np.array([1e5] * 3 + [1e4] * 3))
    sites = _rounded_sites(frac_coords)
    sites = sites[np.lexsort(sites.T[::-1])]
    digest = hashlib.sha256()
    digest.update(cell.astype("<i8").tobytes())
    digest.update(sites.astype("<i8").tobytes())
    return digest.hexdigest()[:16]


def canonical_order(
    lattice: NDArray[np.float64], frac_coords: NDArray[np.float64]
) -> NDArray[np.int64]:
    """Return the order in which a skeleton numbers its sites, shape ``(n_sites,)``.

    The sites are sorted by position and then shuffled by a generator that is seeded with the
    content hash of the geometry. The result depends neither on the elements nor on the order of
    the source file; the shuffle matters because files put the same kind of atom at the origin
    again and again, so that an order sorted by position alone would still give elements away.
    """
    sites = _rounded_sites(frac_coords)
    by_position = np.lexsort(sites.T[::-1])
    seed = int(geometry_key(lattice, frac_coords), 16)
    return by_position[np.random.default_rng(seed).permutation(len(by_position))]


def symmetry_permutations(
    lattice: NDArray[np.float64], frac_coords: NDArray[np.float64]
) -> tuple[NDArray[np.int16], int]:
    """Return the site permutations of the bare skeleton and its space group number.

    Args:
        lattice: Row vectors in Å, ``(3, 3)``.
        frac_coords: ``(n_sites, 3)``.

    Returns:
        Distinct permutations, int16 ``(n_operations, n_sites)``, identity first, such that
        ``tokens[permutation]`` is the same crystal as ``tokens``; and the number, 1 to 230.

    Raises:
        ValueError: If spglib finds no symmetry, as for overlapping sites.
    """
    import spglib

    n_sites = len(frac_coords)
    dataset = spglib.get_symmetry_dataset(
        (lattice.tolist(), frac_coords.tolist(), [1] * n_sites), symprec=SYMPREC
    )
    if dataset is None:
        raise ValueError(
            f"spglib found no symmetry for a cell of {n_sites} sites: expected separate sites in a "
            "cell of positive volume; check the structure for overlapping atoms"
        )
    # A supercell has thousands of operations, each a pure translation after one of at most 48.
    rotations, translations = dataset.rotations, dataset.translations
    pure = np.nonzero((rotations == np.eye(3)).all(axis=(1, 2)))[0]
    _, turns = np.unique(rotations, axis=0, return_index=True)
    by_pure = _site_images(lattice, frac_coords, rotations[pure], translations[pure])
    by_turn = _site_images(lattice, frac_coords, rotations[turns], translations[turns])
    # In lexicographic order, which begins with the identity.
    return np.unique(by_pure[:, by_turn].reshape(-1, n_sites), axis=0), int(dataset.number)


def _site_images(
    lattice: NDArray[np.float64],
    frac_coords: NDArray[np.float64],
    rotations: NDArray[np.integer],
    translations: NDArray[np.float64],
) -> NDArray[np.int16]:
    """Return the site to which each operation sends each site, for those that relabel the crystal.

    Args:
        lattice: Row vectors in Å, reduced, ``(3, 3)``.
        frac_coords: ``(n_sites, 3)``.
        rotations: Acting on fractional coordinates, ``(n_operations, 3, 3)``.
        translations: ``(n_operations, 3)``.

    Returns:
        int16, one row per operation that is a permutation: one that spglib accepts within its
        tolerance may still send two sites to one place in a strongly distorted cell.
    """
    from scipy.spatial import cKDTree

    n_sites = len(frac_coords)
    moved = np.einsum("gij,nj->gni", rotations, frac_coords) + translations[:, None, :]
    # The tree is periodic in a right-angled box only. That leaves the lengths of the axes and skews
    # the angles of a reduced cell: sites that coincide within the tolerance stay the nearest.
    box = np.linalg.norm(lattice, axis=1)
    inside = frac_coords % 1.0 % 1.0  # the first may round up to 1, which the tree refuses
    nearest = cKDTree(inside * box, boxsize=box).query(moved.reshape(-1, 3) * box)[1]
    images = nearest.reshape(len(moved), n_sites).astype(np.int16)
    return images[(np.sort(images, axis=1) == np.arange(n_sites)).all(axis=1)]


def analyse_geometry(lattice: NDArray[np.float64], frac_coords: NDArray[np.float64]) -> Geometry:
    """Return bonds (CrystalNN, see :mod:`crystal_gym.neighbors`) and symmetry of a cell.

    Args:
        lattice: Row vectors in Å, ``(3, 3)``, Niggli-reduced.
        frac_coords: ``(n_sites, 3)``.

    Returns:
        Arrays as :class:`Geometry` lists them, sites numbered as in ``frac_coords``.

    Raises:
        ValueError: If neither can be found, as for overlapping sites.
    """
    edge_index, edge_image, edge_length = crystal_nn_edges(lattice, frac_coords)
    permutations, number = symmetry_permutations(lattice, frac_coords)
    return Geometry(
        edge_index.astype(np.int16),
        edge_image.astype(np.int16),
        edge_length.astype(np.float32),
        permutations,
        number,
    )


def adjacency(edge_index: NDArray[np.integer], n_sites: int) -> list[list[int]]:
    """Return the neighbours of every site, each named once and never itself.

    Args:
        edge_index: Source and target of every directed edge, ``(2, n_edges)``.
        n_sites: Sites of the cell.

    Returns:
        ``n_sites`` lists, ascending.
    """
    neighbours: list[set[int]] = [set() for _ in range(n_sites)]
    for source, target in edge_index.T.tolist():
        if source != target:
            neighbours[source].add(target)
    return [sorted(n) for n in neighbours]


def breadth_first_order(
    neighbours: list[list[int]], start: int, rank: ArrayLike | None = None
) -> NDArray[np.int64]:
    """Return a breadth-first order of *all* sites.

    Args:
        neighbours: Adjacency lists (:func:`adjacency`).
        start: First site.
        rank: Precedence of the sites, shape ``(n_sites,)``: neighbours are visited, and the next
            disconnected part is entered, in ascending rank. Defaults to the site numbers.

    Returns:
        Site numbers as they are visited, int64 ``(n_sites,)``.

    Raises:
        ValueError: If ``start`` is not a site.
    """
    n_sites = len(neighbours)
    if not 0 <= start < n_sites:
        raise ValueError(
            f"start_site={start} is not a site: expected 0 to {n_sites - 1} in this skeleton"
        )
    precedence = np.arange(n_sites).tolist() if rank is None else np.asarray(rank).tolist()
    by_rank = sorted(range(n_sites), key=precedence.__getitem__)
    seen = [False] * n_sites
    order: list[int] = []
    for root in [start, *by_rank]:
        if seen[root]:
            continue
        seen[root] = True
        head = len(order)
        order.append(root)
        while head < len(order):
            nearby = neighbours[order[head]]
            if rank is not None:
                nearby = sorted(nearby, key=precedence.__getitem__)
            for site in nearby:
                if not seen[site]:
                    seen[site] = True
                    order.append(site)
            head += 1
    return np.array(order, dtype=np.int64)


class GeometryCache:
    """Geometries on disk under their content hash: one SQLite file, safe for several processes.

    Args:
        path: The database file; it and its folder are created when first written to.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)

    def _connect(self) -> sqlite3.Connection:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(self.path, timeout=60)
        connection.execute(
            f"CREATE TABLE IF NOT EXISTS {_TABLE} (key TEXT PRIMARY KEY, arrays BLOB NOT NULL)"
        )
        return connection

    def get(self, keys: Iterable[str]) -> dict[str, Geometry]:
        """Return the geometries known under ``keys``; unknown keys are left out."""
        wanted = list(dict.fromkeys(keys))
        if not self.path.exists():
            return {}
        try:
            return self._get(wanted)
        except (sqlite3.Error, OSError, ValueError, struct.error) as error:
            warnings.warn(
                f"graphs cannot be read from {self.path} ({error}); they are computed again. "
                "Delete the file if this goes on.",
                stacklevel=2,
            )
            return {}

    def _get(self, wanted: list[str]) -> dict[str, Geometry]:
        found: dict[str, Geometry] = {}
        with closing(self._connect()) as connection:
            for first in range(0, len(wanted), 500):  # SQLite bounds the variables of a query
                some = wanted[first : first + 500]
                marks = ",".join("?" * len(some))
                query = f"SELECT key, arrays FROM {_TABLE} WHERE key IN ({marks})"
                found.update((key, _decode(blob)) for key, blob in connection.execute(query, some))
        return found

    def put(self, geometries: Mapping[str, Geometry]) -> None:
        """Store geometries in one transaction; what is there already stays as it is.

        A cache that cannot be written (read-only, full disk) costs time, not results: it warns.
        """
        rows = [(key, _encode(g)) for key, g in geometries.items()]
        try:
            with closing(self._connect()) as connection, connection:
                connection.executemany(f"INSERT OR IGNORE INTO {_TABLE} VALUES (?, ?)", rows)
        except (sqlite3.Error, OSError) as error:
            warnings.warn(
                f"graphs cannot be kept in {self.path} ({error}); they will be computed again "
                "next time. Set CRYSTAL_GYM_CACHE to a folder that can be written.",
                stacklevel=2,
            )


_HEADER = struct.Struct("<4i")  # edges, operations, sites, space group number


def _encode(geometry: Geometry) -> bytes:
    header = _HEADER.pack(
        len(geometry.edge_length), *geometry.permutations.shape, geometry.space_group_number
    )
    arrays = geometry.edge_index, geometry.edge_image, geometry.permutations, geometry.edge_length
    return header + b"".join(np.ascontiguousarray(a).tobytes() for a in arrays)


def _decode(blob: bytes) -> Geometry:
    n_edges, n_operations, n_sites, number = _HEADER.unpack_from(blob)
    sizes = [2 * n_edges, 3 * n_edges, n_operations * n_sites]
    ends = _HEADER.size + 2 * np.cumsum([0, *sizes])
    index, image, rows = (
        np.frombuffer(blob, np.int16, count=size, offset=int(start))
        for size, start in zip(sizes, ends, strict=False)
    )
    return Geometry(
        index.reshape(2, n_edges),
        image.reshape(n_edges, 3),
        np.frombuffer(blob, np.float32, offset=int(ends[-1])),
        rows.reshape(n_operations, n_sites),
        number,
    )
