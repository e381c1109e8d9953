"""Skeletons: periodic cells with numbered sites and no elements, and sets of them.

A :class:`SkeletonSet` is columnar: the sites, edges and symmetry permutations of all its
skeletons lie end to end in a few arrays, so that a set of thousands loads in milliseconds from
one ``.npz`` file, and one skeleton is a few views into it. The arrays of a large file are mapped:
of a set of a hundred thousand only the skeletons that are looked at are read.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from crystal_gym.columns import (
    require_columns,
    require_range,
    require_range_of_runs,
    require_starts,
)
from crystal_gym.elements import N_ELEMENTS, tokens_to_symbols
from crystal_gym.files import DAMAGED_NPZ, first_line, open_npz, save_npz
from crystal_gym.graphs import (
    Geometry,
    GeometryCache,
    adjacency,
    analyse_geometry,
    canonical_order,
    geometry_key,
    lattice_parameters,
)
from crystal_gym.merged_edges import MergedEdges
from crystal_gym.pools import cores, process_pool
from crystal_gym.ragged import run_starts, take_runs

if TYPE_CHECKING:
    from pymatgen.core import Structure

__all__ = [
    "Cell",
    "Skeleton",
    "SkeletonSet",
    "build_skeletons",
    "filled_structure",
    "registered_set",
]

_FORMAT = 1


@dataclass(frozen=True, eq=False)
class Cell:
    """A reduced, canonically numbered cell, before its graph is known.

    Attributes:
        name: Where it comes from, such as a material id.
        key: Content hash of the geometry and the numbering of its sites.
        lattice: Row vectors in Å, float64 ``(3, 3)``, Niggli-reduced.
        frac_coords: float64 ``(n_sites, 3)``, in canonical order.
        source_rank: Position of every site in the source file, int16 ``(n_sites,)``.
        reference: Element tokens of the source crystal, int16 ``(n_sites,)``, 0 where it has none.
    """

    name: str
    key: str
    lattice: NDArray[np.float64]
    frac_coords: NDArray[np.float64]
    source_rank: NDArray[np.int16]
    reference: NDArray[np.int16]

    @classmethod
    def from_sites(
        cls,
        name: str,
        lattice: NDArray[np.float64],
        frac_coords: NDArray[np.float64],
        tokens: Sequence[int],
    ) -> Cell:
        """Number the sites canonically (:func:`crystal_gym.graphs.canonical_order`)."""
        lattice = np.asarray(lattice, dtype=np.float64)
        frac_coords = np.asarray(frac_coords, dtype=np.float64) % 1.0
        order = canonical_order(lattice, frac_coords)
        return cls(
            name,
            geometry_key(lattice, frac_coords),
            lattice,
            frac_coords[order],
            order.astype(np.int16),
            np.asarray(tokens, dtype=np.int16)[order],
        )


@dataclass(frozen=True, eq=False)
class Skeleton:
    """One skeleton: views into a :class:`SkeletonSet`.

    Attributes:
        index: Its number in the set.
        name: Where it comes from, such as a material id.
        key: Content hash of the geometry and the numbering of its sites.
        lattice: Row vectors in Å, float64 ``(3, 3)``.
        lattice_parameters: a, b, c (Å), alpha, beta, gamma (degrees), float64 ``(6,)``.
        frac_coords: float64 ``(n_sites, 3)``.
        space_group_number: Of the bare skeleton.
        edge_index: int16 ``(2, n_edges)``.
        edge_image: int16 ``(n_edges, 3)``.
        edge_length: Å, float32 ``(n_edges,)``.
        permutations: Symmetry of the bare skeleton, int16 ``(n_operations, n_sites)``.
        source_rank: Position of every site in the source file, int16 ``(n_sites,)``.
        reference: Tokens of the source crystal, int16 ``(n_sites,)``, 0 where it has none.
    """

    index: int
    name: str
    key: str
    lattice: NDArray[np.float64]
    lattice_parameters: NDArray[np.float64]
    frac_coords: NDArray[np.float64]
    space_group_number: int
    edge_index: NDArray[np.int16]
    edge_image: NDArray[np.int16]
    edge_length: NDArray[np.float32]
    permutations: NDArray[np.int16]
    source_rank: NDArray[np.int16]
    reference: NDArray[np.int16]

    @property
    def n_sites(self) -> int:
        """Number of sites."""
        return len(self.frac_coords)

    @property
    def n_edges(self) -> int:
        """Number of directed edges."""
        return len(self.edge_length)

    @cached_property
    def neighbours(self) -> list[list[int]]:
        """Adjacency lists for breadth-first orders."""
        return adjacency(self.edge_index, self.n_sites)

    def canonical_tokens(self, tokens: NDArray[np.integer]) -> bytes:
        """Return one name for all fillings that symmetry makes the same crystal.

        Args:
            tokens: Element tokens, shape ``(n_sites,)``.

        Returns:
            The smallest of the relabelled fillings, one byte a site.
        """
        n_sites = len(tokens)
        orbit = np.asarray(tokens, dtype=np.uint8)[self.permutations].tobytes()
        return min(orbit[i : i + n_sites] for i in range(0, len(orbit), n_sites))

    def structure(self, tokens: NDArray[np.integer]) -> Structure:
        """Return the pymatgen Structure of a filling; empty sites hold the dummy species X."""
        return filled_structure(self.lattice, self.frac_coords, tokens)

    def __repr__(self) -> str:
        return (
            f"Skeleton({self.name!r}, {self.n_sites} sites, {self.n_edges} edges, "
            f"space group {self.space_group_number})"
        )


def filled_structure(
    lattice: NDArray[np.float64], frac_coords: NDArray[np.float64], tokens: NDArray[np.integer]
) -> Structure:
    """Return the pymatgen Structure of a filling.

    Args:
        lattice: Row vectors in Å, ``(3, 3)``.
        frac_coords: ``(n_sites, 3)``.
        tokens: ``(n_sites,)``; 0 becomes the dummy species X.

    Returns:
        A structure with its sites in the order of ``frac_coords``.
    """
    from pymatgen.core import DummySpecies, Structure

    species = [s if s is not None else DummySpecies("X") for s in tokens_to_symbols(tokens)]
    return Structure(lattice, species, frac_coords)


@dataclass(frozen=True, eq=False)
class SkeletonSet(Sequence[Skeleton]):
    """Skeletons end to end. ``S`` skeletons, ``N`` sites, ``E`` directed edges in all.

    Attributes:
        names: str ``(S,)``.
        keys: Content hashes, str ``(S,)``.
        site_ptr: First site of every skeleton, int64 ``(S + 1,)``.
        edge_ptr: First edge, int64 ``(S + 1,)``.
        permutation_ptr: First entry of ``permutations``, int64 ``(S + 1,)``.
        lattice: Å, float64 ``(S, 3, 3)``.
        space_group_number: int16 ``(S,)``.
        frac_coords: float64 ``(N, 3)``.
        source_rank: int16 ``(N,)``.
        reference: Tokens of the source crystals, int16 ``(N,)``.
        edge_index: Site numbers within the skeleton, int16 ``(2, E)``.
        edge_image: int16 ``(E, 3)``.
        edge_length: Å, float32 ``(E,)``.
        permutations: Rows of all skeletons, flat int16.
    """

    names: NDArray[np.str_]
    keys: NDArray[np.str_]
    site_ptr: NDArray[np.int64]
    edge_ptr: NDArray[np.int64]
    permutation_ptr: NDArray[np.int64]
    lattice: NDArray[np.float64]
    space_group_number: NDArray[np.int16]
    frac_coords: NDArray[np.float64]
    source_rank: NDArray[np.int16]
    reference: NDArray[np.int16]
    edge_index: NDArray[np.int16]
    edge_image: NDArray[np.int16]
    edge_length: NDArray[np.float32]
    permutations: NDArray[np.int16]

    @classmethod
    def from_cells(cls, cells: Sequence[Cell], geometries: Sequence[Geometry]) -> SkeletonSet:
        """Lay cells and their geometries end to end.

        Args:
            cells: One or more; they keep their numbering.
            geometries: One for each cell, with its numbering.

        Returns:
            The set, in the order of the cells.

        Raises:
            ValueError: If there are no cells.
        """
        if not cells:
            raise ValueError("a skeleton set needs at least one structure; none was given")

        return cls(
            names=np.array([c.name for c in cells]),
            keys=np.array([c.key for c in cells]),
            site_ptr=run_starts([len(c.frac_coords) for c in cells]),
            edge_ptr=run_starts([len(g.edge_length) for g in geometries]),
            permutation_ptr=run_starts([g.permutations.size for g in geometries]),
            lattice=np.stack([c.lattice for c in cells]),
            space_group_number=np.array([g.space_group_number for g in geometries], np.int16),
            frac_coords=np.concatenate([c.frac_coords for c in cells]),
            source_rank=np.concatenate([c.source_rank for c in cells]),
            reference=np.concatenate([c.reference for c in cells]),
            edge_index=np.concatenate([g.edge_index for g in geometries], axis=1),
            edge_image=np.concatenate([g.edge_image for g in geometries]),
            edge_length=np.concatenate([g.edge_length for g in geometries]),
            permutations=np.concatenate([g.permutations.ravel() for g in geometries]),
        )

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: Any) -> Any:
        """Return skeleton ``index``, or the subset that a slice or an array of numbers names."""
        if isinstance(index, (slice, list, np.ndarray)):
            return self._subset(np.arange(len(self))[index])
        i = range(len(self))[index]
        sites = slice(int(self.site_ptr[i]), int(self.site_ptr[i + 1]))
        edges = slice(int(self.edge_ptr[i]), int(self.edge_ptr[i + 1]))
        rows = slice(int(self.permutation_ptr[i]), int(self.permutation_ptr[i + 1]))
        return Skeleton(
            index=i,
            name=str(self.names[i]),
            key=str(self.keys[i]),
            lattice=self.lattice[i],
            lattice_parameters=self.lattice_parameters[i],
            frac_coords=self.frac_coords[sites],
            space_group_number=int(self.space_group_number[i]),
            edge_index=self.edge_index[:, edges],
            edge_image=self.edge_image[edges],
            edge_length=self.edge_length[edges],
            permutations=self.permutations[rows].reshape(-1, sites.stop - sites.start),
            source_rank=self.source_rank[sites],
            reference=self.reference[sites],
        )

    def __repr__(self) -> str:
        return f"SkeletonSet({len(self)} skeletons, {len(self.frac_coords)} sites)"

    def __iter__(self) -> Iterator[Skeleton]:
        return (self[i] for i in range(len(self)))

    @property
    def n_sites(self) -> NDArray[np.int64]:
        """Sites of every skeleton, ``(S,)``."""
        return np.diff(self.site_ptr)

    @property
    def n_edges(self) -> NDArray[np.int64]:
        """Directed edges of every skeleton, ``(S,)``."""
        return np.diff(self.edge_ptr)

    @cached_property
    def max_sites(self) -> int:
        """Sites of the largest skeleton."""
        return int(self.n_sites.max())

    @cached_property
    def max_edges(self) -> int:
        """Edges of the best connected skeleton, at least 1 so that no array is empty."""
        return max(1, int(self.n_edges.max()))

    @cached_property
    def lattice_parameters(self) -> NDArray[np.float64]:
        """a, b, c (Å) and alpha, beta, gamma (degrees) of every skeleton, ``(S, 6)``."""
        return lattice_parameters(self.lattice)

    @cached_property
    def table_id(self) -> int:
        """Content hash of the whole set in 24 bits: an integer that float32 holds exactly.

        Rows of numbers that refer to skeletons by number carry it, so that a row is never
        silently read against another set.
        """
        digest = hashlib.sha256()
        for part in (np.char.encode(self.keys), self.site_ptr, self.edge_index, self.source_rank):
            digest.update(np.ascontiguousarray(part).reshape(-1).view(np.uint8).data)
        return int.from_bytes(digest.digest()[:3], "big") or 1

    @cached_property
    def merged(self) -> MergedEdges:
        """Equal bonds merged, as a graph network reads them."""
        return MergedEdges.of(self.site_ptr, self.edge_ptr, self.edge_index, self.edge_length)

    @cached_property
    def _by_code(self) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
        """Numbers that stand for the keys, ascending, and the skeletons they are of, ``(S,)``."""
        codes = np.fromiter(map(_code, self.keys), np.uint64, len(self))
        order = np.argsort(codes, kind="stable")
        return codes[order], order

    def with_key(self, key: str) -> NDArray[np.int64]:
        """Return the numbers of the skeletons that have this key, ascending."""
        codes, order = self._by_code
        code = np.uint64(_code(key))
        same = order[np.searchsorted(codes, code) : np.searchsorted(codes, code, "right")]
        return same[self.keys[same] == key]

    def _subset(self, which: NDArray[np.integer]) -> SkeletonSet:
        sites, site_ptr = take_runs(self.site_ptr, which)
        edges, edge_ptr = take_runs(self.edge_ptr, which)
        rows, permutation_ptr = take_runs(self.permutation_ptr, which)
        return SkeletonSet(
            names=self.names[which],
            keys=self.keys[which],
            site_ptr=site_ptr,
            edge_ptr=edge_ptr,
            permutation_ptr=permutation_ptr,
            lattice=self.lattice[which],
            space_group_number=self.space_group_number[which],
            frac_coords=self.frac_coords[sites],
            source_rank=self.source_rank[sites],
            reference=self.reference[sites],
            edge_index=self.edge_index[:, edges],
            edge_image=self.edge_image[edges],
            edge_length=self.edge_length[edges],
            permutations=self.permutations[rows],
        )

    def in_source_order(self) -> SkeletonSet:
        """Return the same skeletons with sites numbered as in their source files.

        This numbering **leaks the elements**: in MP-20 the sites of every file are grouped by
        element and sorted by electronegativity. Its only use is to reproduce the published
        protocol.
        """
        return SkeletonSet.from_cells(*zip(*map(_source_ordered, self), strict=True))

    def register(self) -> int:
        """Make the set known to :func:`registered_set` in this process; return its table id."""
        other = _REGISTERED.setdefault(self.table_id, self)
        if other is not self and not np.array_equal(other.keys, self.keys):
            raise ValueError(
                f"two different skeleton sets share the table id {self.table_id} (one chance in "
                "16 million): drop or reorder a skeleton of one of them"
            )
        return self.table_id

    def columns(self) -> dict[str, NDArray[Any]]:
        """Return the arrays that a file of the set holds; see :meth:`of_columns`."""
        merged = {f"merged_{name}": array for name, array in vars(self.merged).items()}
        return {f.name: getattr(self, f.name) for f in fields(self)} | merged

    @classmethod
    def of_columns(cls, columns: Mapping[str, NDArray[Any]]) -> SkeletonSet:
        """Return the set of which these are the :meth:`columns`.

        Args:
            columns: Arrays by name; further ones are ignored.

        Returns:
            The set as it is: only :meth:`load` checks it.

        Raises:
            KeyError: If one is missing. Merged edges may be: earlier releases wrote none.
        """
        skeletons = cls(**{f.name: columns[f.name] for f in fields(cls)})
        names = [f.name for f in fields(MergedEdges)]
        if f"merged_{names[0]}" in columns:
            merged = MergedEdges(**{name: columns[f"merged_{name}"] for name in names})
            skeletons.__dict__["merged"] = merged  # where cached_property keeps it
        return skeletons

    def save(self, path: Path | str) -> None:
        """Write the set to an ``.npz`` file, whole or not at all."""
        save_npz(path, format=_FORMAT, **self.columns())

    @classmethod
    def load(cls, path: Path | str) -> SkeletonSet:
        """Read a set.

        Args:
            path: Of a file that :meth:`save` wrote.

        Returns:
            The set, checked; arrays of a large file are mapped.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If the file is no skeleton set of this version.
        """
        try:
            with open_npz(path) as file:
                found = int(file["format"])
                if found != _FORMAT:
                    raise ValueError(
                        f"{path} holds skeleton format {found}, expected {_FORMAT}: build it again"
                    )
                skeletons = cls.of_columns(file)
            _require_sound(vars(skeletons))
            if "merged" in vars(skeletons):
                skeletons.merged.require_sound(skeletons.site_ptr)
            return skeletons
        except DAMAGED_NPZ as error:
            if isinstance(error, FileNotFoundError) or f"{path} holds" in str(error):
                raise
            raise ValueError(
                f"{path} is not a readable skeleton set ({first_line(error)}): "
                "expected an .npz file written "
                "by SkeletonSet.save; build it again"
            ) from error


def _code(key: str) -> int:
    return int(key[:16], 16)


def _require_sound(columns: Mapping[str, NDArray[Any]]) -> None:
    """Refuse columns of a set that do not fit together.

    Raises:
        ValueError: If they do not.
    """
    sets, sites = columns["names"].size, columns["source_rank"].size
    edges, entries = columns["edge_length"].size, columns["permutations"].size
    require_columns(
        columns,
        {
            "names": ("U", (sets,)),
            "keys": ("U", (sets,)),
            "site_ptr": ("i", (sets + 1,)),
            "edge_ptr": ("i", (sets + 1,)),
            "permutation_ptr": ("i", (sets + 1,)),
            "lattice": ("f", (sets, 3, 3)),
            "space_group_number": ("i", (sets,)),
            "frac_coords": ("f", (sites, 3)),
            "source_rank": ("i", (sites,)),
            "reference": ("i", (sites,)),
            "edge_index": ("i", (2, edges)),
            "edge_image": ("i", (edges, 3)),
            "edge_length": ("f", (edges,)),
            "permutations": ("i", (entries,)),
        },
    )
    for name, end in (("site_ptr", sites), ("edge_ptr", edges), ("permutation_ptr", entries)):
        require_starts(name, columns[name], end)
    n_sites = np.diff(columns["site_ptr"])
    sizes = np.diff(columns["permutation_ptr"])
    if np.any(n_sites < 1) or np.any(sizes < 1) or np.any(sizes % np.maximum(n_sites, 1)):
        raise ValueError("a skeleton without sites, or with symmetry operations of another number")
    require_range("reference", columns["reference"], 0, N_ELEMENTS + 1)
    require_range("space_group_number", columns["space_group_number"], 1, 231)
    for name, starts in (
        ("source_rank", "site_ptr"),
        ("edge_index", "edge_ptr"),
        ("permutations", "permutation_ptr"),
    ):
        require_range_of_runs(name, columns[name], columns[starts], n_sites)
    for name in ("lattice", "frac_coords", "edge_length"):
        require_range(name, columns[name], -1e6, 1e6)  # above all, finite


_REGISTERED: dict[int, SkeletonSet] = {}


def registered_set(table_id: int) -> SkeletonSet:
    """Return the set whose rows carry ``table_id``.

    Args:
        table_id: Of the set (:attr:`SkeletonSet.table_id`).

    Returns:
        The first set that this process registered under it.

    Raises:
        KeyError: If this process has not loaded that set.
    """
    try:
        return _REGISTERED[table_id]
    except KeyError:
        known = ", ".join(map(str, _REGISTERED)) or "none"
        raise KeyError(
            f"compact rows of skeleton table {table_id} need that skeleton set in memory (loaded: "
            f"{known}): load the dataset or call register() on the set the rows were made with"
        ) from None


def _source_ordered(skeleton: Skeleton) -> tuple[Cell, Geometry]:
    order = np.argsort(skeleton.source_rank)
    number = np.argsort(order)  # canonical number -> place in the source file
    cell = Cell(
        skeleton.name,
        skeleton.key + ":source",  # a filling numbered this way must never meet a canonical one
        skeleton.lattice,
        skeleton.frac_coords[order],
        np.arange(len(order), dtype=np.int16),
        skeleton.reference[order],
    )
    geometry = Geometry(
        number[skeleton.edge_index].astype(np.int16),
        skeleton.edge_image,
        skeleton.edge_length,
        number[skeleton.permutations[:, order]].astype(np.int16),
        skeleton.space_group_number,
    )
    return cell, geometry


def _analyse(cell: Cell) -> Geometry | str:
    """Return a cell's geometry, or what is wrong with it: a failure must not end a pool."""
    try:
        return analyse_geometry(cell.lattice, cell.frac_coords)
    except ValueError as error:
        return str(error)


def build_skeletons(
    cells: Sequence[Cell],
    *,
    cache: GeometryCache | None = None,
    workers: int | None = None,
    executor: Executor | None = None,
    progress: bool = False,
) -> tuple[SkeletonSet, dict[int, str]]:
    """Analyse cells, in parallel where there are many, and lay them end to end.

    Args:
        cells: Canonically numbered cells.
        cache: Where geometries are looked up first and stored as they are finished, so that an
            interrupted run goes on where it stopped.
        workers: Processes; defaults to the cores at hand, one for fewer than 32 new cells.
        executor: Anything with the :class:`concurrent.futures.Executor` interface, instead.
        progress: Show a progress bar on standard error.

    Returns:
        The set, and for every cell that could not be analysed (and so is not in the set) its
        position in ``cells`` with the reason.

    Raises:
        ValueError: If no cell could be analysed.
    """
    known = cache.get([c.key for c in cells]) if cache is not None else {}
    todo = list({c.key: c for c in cells if c.key not in known}.values())
    workers = workers or (cores() if len(todo) >= 32 else 1)
    failed: dict[str, str] = {}
    fresh: dict[str, Geometry] = {}

    def flush() -> None:
        if cache is not None and fresh:
            cache.put(fresh)
        known.update(fresh)
        fresh.clear()

    pool = executor
    if pool is None and workers > 1 and todo:
        pool = process_pool(workers)
    try:
        results = map(_analyse, todo) if pool is None else pool.map(_analyse, todo, chunksize=8)
        for cell, result in zip(_bar(todo, "graphs", progress), results, strict=True):
            if isinstance(result, str):
                failed[cell.key] = result
            else:
                fresh[cell.key] = result
            if len(fresh) >= 200:
                flush()
    finally:
        flush()
        if pool is not None and executor is None:
            pool.shutdown(cancel_futures=True)
    good = [c for c in cells if c.key in known]
    if not good and cells:
        first = cells[0]
        raise ValueError(f"no structure could be analysed; {first.name}: {failed[first.key]}")
    problems = {i: failed[c.key] for i, c in enumerate(cells) if c.key in failed}
    return SkeletonSet.from_cells(good, [known[c.key] for c in good]), problems


def _bar(items: Sequence[Any], description: str, show: bool) -> Iterator[Any]:
    from tqdm import tqdm

    return iter(tqdm(items, desc=description, disable=not show, unit="crystal"))
