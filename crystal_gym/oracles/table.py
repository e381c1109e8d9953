"""A table of calculated crystals, and the oracle that looks them up."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from crystal_gym.columns import require_columns, require_range
from crystal_gym.elements import N_ELEMENTS, formula_counts
from crystal_gym.files import DAMAGED_NPZ, first_line, open_npz, save_npz
from crystal_gym.oracles.base import Filling, Properties, Status
from crystal_gym.ragged import run_starts, take_runs
from crystal_gym.sets import BUNDLED, DATASETS, TABLES, is_named_set, load_skeleton_file, set_dir
from crystal_gym.skeletons import Skeleton, SkeletonSet

if TYPE_CHECKING:
    from pymatgen.core import Structure

__all__ = ["PropertyTable", "TableOracle", "load_table", "table_of_fillings"]

_FORMAT = 1

_SKELETONS_KEPT = 10_000
"""Of which the fillings are in memory: a few kB each."""

# A structure in another setting (origin, axes, site order) is the same crystal as a filled
# skeleton if it matches within these: rounding in files, not relaxation.
_LENGTH_TOLERANCE, _SITE_TOLERANCE, _ANGLE_TOLERANCE = 1e-3, 1e-3, 0.1


@dataclass(frozen=True, eq=False)
class PropertyTable:
    """Calculated fillings of a skeleton set, ``M`` entries end to end.

    Attributes:
        skeletons: The set the entries fill.
        skeleton: Skeleton number of every entry, int64 ``(M,)``.
        tokens: Element tokens of all entries, one after the other, int16.
        total_energy_ry: Ry per cell, float64 ``(M,)``, NaN where unknown.
        formation_energy_ev_per_atom: float64 ``(M,)``, NaN where unknown.
        band_gap_ev: float64 ``(M,)``, NaN where unknown.
        status: Values of :class:`Status`, str ``(M,)``.
        provenance: str ``(M,)`` or ``(1,)`` where it is the same for all.
    """

    skeletons: SkeletonSet
    skeleton: NDArray[np.int64]
    tokens: NDArray[np.int16]
    total_energy_ry: NDArray[np.float64]
    formation_energy_ev_per_atom: NDArray[np.float64]
    band_gap_ev: NDArray[np.float64]
    status: NDArray[np.str_]
    provenance: NDArray[np.str_]

    def __len__(self) -> int:
        return len(self.skeleton)

    def __repr__(self) -> str:
        ok = int(np.count_nonzero(self.status == Status.OK.value))
        return f"PropertyTable({len(self)} entries, {ok} ok, {len(self.skeletons)} skeletons)"

    @cached_property
    def token_ptr(self) -> NDArray[np.int64]:
        """First token of every entry, ``(M + 1,)``."""
        return run_starts(self.skeletons.n_sites[self.skeleton])

    def entry_tokens(self, entry: int) -> NDArray[np.int16]:
        """Return the filling of one entry, ``(n_sites,)``."""
        return self.tokens[self.token_ptr[entry] : self.token_ptr[entry + 1]]

    def properties(self, entry: int) -> Properties:
        """Return one entry."""
        return Properties(
            total_energy_ry=_known(self.total_energy_ry[entry]),
            formation_energy_ev_per_atom=_known(self.formation_energy_ev_per_atom[entry]),
            band_gap_ev=_known(self.band_gap_ev[entry]),
            status=Status(str(self.status[entry])),
            provenance=str(self.provenance[entry if len(self.provenance) > 1 else 0]),
        )

    def entries_on(self, key: str) -> NDArray[np.int64]:
        """Return the entries on the skeletons that have this key, ascending."""
        order, numbers = self._by_skeleton
        found = [
            order[np.searchsorted(numbers, n) : np.searchsorted(numbers, n, "right")]
            for n in self.skeletons.with_key(key)
        ]
        return np.sort(np.concatenate([np.empty(0, dtype=np.int64), *found]))

    @cached_property
    def _by_skeleton(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Entries in the order of their skeletons, and these, ``(M,)``."""
        order = np.argsort(self.skeleton, kind="stable")
        return order, self.skeleton[order]

    def entry_of(self, skeleton: Skeleton, tokens: NDArray[np.integer]) -> int | None:
        """Return the entry of a crystal under any symmetry of its skeleton; None if unknown.

        Args:
            skeleton: Of this set or of another one.
            tokens: Its filling, ``(n_sites,)``.

        Returns:
            Its number in the table, or None.

        Raises:
            ValueError: If the table has two different entries for one crystal of that skeleton.
        """
        if skeleton.key not in self._fillings:
            if len(self._fillings) == _SKELETONS_KEPT:
                del self._fillings[next(iter(self._fillings))]
            self._fillings[skeleton.key] = self._fillings_of(skeleton)
        known = self._fillings[skeleton.key]
        return known.get(skeleton.canonical_tokens(tokens)) if known else None

    @cached_property
    def _fillings(self) -> dict[str, dict[bytes, int]]:
        """Entries by canonical filling, by key of the skeletons that were last asked about."""
        return {}

    def _fillings_of(self, skeleton: Skeleton) -> dict[bytes, int]:
        found: dict[bytes, int] = {}
        for entry in self.entries_on(skeleton.key).tolist():
            other = found.setdefault(skeleton.canonical_tokens(self.entry_tokens(entry)), entry)
            if other != entry and self.properties(other) != self.properties(entry):
                names = [self.skeletons.names[self.skeleton[e]] for e in (other, entry)]
                raise ValueError(
                    f"the table has two different entries for one crystal: {other} and {entry} "
                    f"({names[0]} and {names[1]}); keep one"
                )
        return found

    def of_entries(self, entries: NDArray[np.integer]) -> PropertyTable:
        """Return the table with only some entries, by number; its skeletons stay."""
        columns = {f.name: getattr(self, f.name) for f in fields(self)}
        for name in set(columns) - {"skeletons", "tokens", "provenance"}:
            columns[name] = columns[name][entries]
        columns["tokens"] = self.tokens[take_runs(self.token_ptr, entries)[0]]
        if len(self.provenance) > 1:
            columns["provenance"] = self.provenance[entries]
        return PropertyTable(**columns)

    def in_source_order(self) -> PropertyTable:
        """Return the table for :meth:`SkeletonSet.in_source_order`; the same warning applies."""
        tokens = []
        for entry, number in enumerate(self.skeleton.tolist()):
            order = np.argsort(self.skeletons[number].source_rank)
            tokens.append(self.entry_tokens(entry)[order])
        columns = {f.name: getattr(self, f.name) for f in fields(self)}
        columns["skeletons"] = self.skeletons.in_source_order()
        columns["tokens"] = np.concatenate(tokens)
        return PropertyTable(**columns)

    def columns(self) -> dict[str, NDArray[Any]]:
        """Return the arrays by name, without the skeletons."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "skeletons"}

    def save(self, path: Path | str) -> None:
        """Write the entries to an ``.npz`` file beside the set's; whole or not at all."""
        save_npz(path, format=_FORMAT, table_id=self.skeletons.table_id, **self.columns())

    def save_with_skeletons(self, folder: Path | str) -> None:
        """Write ``skeletons.npz`` and ``table.npz``, which :func:`load_table` reads."""
        self.skeletons.save(Path(folder) / "skeletons.npz")
        self.save(Path(folder) / "table.npz")

    @classmethod
    def load(cls, path: Path | str, skeletons: SkeletonSet | None = None) -> PropertyTable:
        """Read a table.

        Args:
            path: The ``.npz`` file that :meth:`save` wrote.
            skeletons: Its skeleton set; defaults to ``skeletons.npz`` in the same folder.

        Returns:
            The table, its skeletons with it.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If it is no table of this version, or belongs to another skeleton set.
        """
        path = Path(path)
        if skeletons is None:
            skeletons = SkeletonSet.load(path.with_name("skeletons.npz"))
        try:
            with open_npz(path) as file:
                version, table_id = int(file["format"]), int(file["table_id"])
                columns = {f.name: file[f.name] for f in fields(cls) if f.name != "skeletons"}
        except DAMAGED_NPZ as error:
            if isinstance(error, FileNotFoundError):
                raise
            raise ValueError(
                f"{path} is not a readable property table ({first_line(error)}): "
                "expected an .npz file "
                "written by PropertyTable.save; build it again"
            ) from error
        if version != _FORMAT or table_id != skeletons.table_id:
            raise ValueError(
                f"{path} (format {version}, skeleton set {table_id}) does not belong to the "
                f"skeleton set at hand (format {_FORMAT}, set {skeletons.table_id}): build both "
                "again"
            )
        try:
            _require_sound(columns, skeletons)
        except ValueError as error:
            raise ValueError(
                f"{path} is damaged ({error}): expected an .npz file written by "
                "PropertyTable.save; build it again"
            ) from error
        return cls(skeletons=skeletons, **columns)


def _require_sound(columns: Mapping[str, NDArray[Any]], skeletons: SkeletonSet) -> None:
    """Refuse columns of a table that do not fit together or to its skeletons.

    Raises:
        ValueError: If they do not.
    """
    entries = columns["skeleton"].size
    require_columns(
        columns,
        {
            "skeleton": ("i", (entries,)),
            "tokens": ("i", (None,)),
            "total_energy_ry": ("f", (entries,)),
            "band_gap_ev": ("f", (entries,)),
            "formation_energy_ev_per_atom": ("f", (entries,)),
            "status": ("U", (entries,)),
            "provenance": ("U", (1 if columns["provenance"].shape == (1,) else entries,)),
        },
    )
    require_range("skeleton", columns["skeleton"], 0, len(skeletons))
    require_range("tokens", columns["tokens"], 0, N_ELEMENTS + 1)
    filled = int(skeletons.n_sites[columns["skeleton"]].sum())
    if len(columns["tokens"]) != filled:
        raise ValueError(f"tokens has {len(columns['tokens']):,} entries, expected {filled:,}")
    unknown = sorted(set(columns["status"].tolist()) - {status.value for status in Status})
    if unknown:
        raise ValueError(f"status {unknown[0]!r} is none of {', '.join(s.value for s in Status)}")


def table_of_fillings(
    skeletons: SkeletonSet, entries: Iterable[tuple[int, NDArray[np.integer], Properties]]
) -> PropertyTable:
    """Return a table of results: skeleton number, filling and properties of every entry.

    Args:
        skeletons: The set.
        entries: Skeleton number, filling ``(n_sites,)`` and properties.

    Returns:
        Entries in their order.

    Raises:
        ValueError: If there are no entries.
    """
    rows = list(entries)
    if not rows:
        raise ValueError("a table needs at least one entry; none was given")

    def column(name: str) -> NDArray[np.float64]:
        values = [getattr(properties, name) for _, _, properties in rows]
        return np.array([np.nan if v is None else v for v in values], dtype=np.float64)

    return PropertyTable(
        skeletons=skeletons,
        skeleton=np.array([number for number, _, _ in rows], dtype=np.int64),
        tokens=np.concatenate([np.asarray(tokens, dtype=np.int16) for _, tokens, _ in rows]),
        total_energy_ry=column("total_energy_ry"),
        formation_energy_ev_per_atom=column("formation_energy_ev_per_atom"),
        band_gap_ev=column("band_gap_ev"),
        status=np.array([str(properties.status) for _, _, properties in rows]),
        provenance=np.array([properties.provenance for _, _, properties in rows]),
    )


def _known(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def load_table(source: Path | str) -> PropertyTable:
    """Return the property table of a named set, or the one at a path.

    Args:
        source: Name of a set such as ``"mini"``, or a path of a table or its folder.

    Returns:
        The table with its skeletons.

    Raises:
        ValueError: If the name is unknown, or the file is no table.
    """
    if is_named_set(source):
        path = set_dir(str(source)) / "table.npz"
    else:
        path = Path(source)
        path = path / "table.npz" if path.is_dir() else path
    if not path.exists() or not path.with_name("skeletons.npz").exists():
        raise ValueError(
            f"{str(source)!r} is neither a known table nor an existing path: expected "
            f"one of table, espresso, surrogate, {', '.join([*BUNDLED, *DATASETS, *TABLES])}, or a "
            "table.npz beside its skeletons.npz"
        )
    return _load_unchanged(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=8)
def _load_unchanged(path: Path, modified_ns: int) -> PropertyTable:
    return PropertyTable.load(path, load_skeleton_file(path.with_name("skeletons.npz")))


class TableOracle:
    """Looks crystals up in a table of DFT results.

    A filled skeleton is found under every symmetry operation of its skeleton: relabelled
    equivalent sites are the same crystal. What the table does not hold has the status
    ``unknown``; nothing is estimated.

    Args:
        table: A :class:`PropertyTable`, a path to one, or the name of a set that has one
            (``"mini"``, the bundled one, by default).
    """

    def __init__(self, table: PropertyTable | Path | str = "mini") -> None:
        if not isinstance(table, PropertyTable):
            table = load_table(table)
        self.table = table
        self._orbits: dict[int, tuple[str, NDArray[np.uint8]]] = {}

    def __repr__(self) -> str:
        return f"TableOracle({self.table!r})"

    def evaluate(self, structures: Sequence[Structure]) -> list[Properties]:
        """Return the properties of each structure, in whatever setting it is given.

        Structures are compared with the table's crystals of the same composition and cell size
        by pymatgen's StructureMatcher, at tolerances for rounding only (0.1%).
        """
        return [self._look_up_structure(s) for s in structures]

    def evaluate_fillings(self, fillings: Sequence[Filling]) -> list[Properties]:
        """Return the properties of each filling; much faster for the table's own skeletons."""
        results = []
        for skeleton, tokens in fillings:
            entry = self.table.entry_of(skeleton, tokens)
            if entry is not None:
                results.append(self.table.properties(entry))
            elif len(self.table.skeletons.with_key(skeleton.key)):
                results.append(_UNKNOWN)
            else:
                results.append(
                    self._look_up(_composition(tokens), partial(skeleton.structure, tokens))
                )
        return results

    @cached_property
    def _by_composition(self) -> dict[tuple[tuple[str, int], ...], list[int]]:
        groups: dict[tuple[tuple[str, int], ...], list[int]] = defaultdict(list)
        for entry in range(len(self.table)):
            groups[_composition(self.table.entry_tokens(entry))].append(entry)
        return groups

    def _look_up_structure(self, structure: Structure) -> Properties:
        counts = structure.composition.get_el_amt_dict()
        composition = tuple(sorted((s, round(n)) for s, n in counts.items()))
        return self._look_up(composition, structure.copy)

    def _look_up(
        self, composition: tuple[tuple[str, int], ...], make: Callable[[], Structure]
    ) -> Properties:
        candidates = self._by_composition.get(composition)
        if not candidates:
            return _UNKNOWN
        from pymatgen.analysis.structure_matcher import ElementComparator, StructureMatcher

        matcher = StructureMatcher(
            ltol=_LENGTH_TOLERANCE,
            stol=_SITE_TOLERANCE,
            angle_tol=_ANGLE_TOLERANCE,
            comparator=ElementComparator(),  # oxidation states make no other crystal
            primitive_cell=False,
            scale=False,
            attempt_supercell=False,
        )
        structure = make()
        for entry in candidates:
            skeleton = self.table.skeletons[int(self.table.skeleton[entry])]
            if matcher.fit(structure, skeleton.structure(self.table.entry_tokens(entry))):
                return self.table.properties(entry)
        return _UNKNOWN

    def extensions(
        self,
        skeleton: Skeleton,
        tokens: NDArray[np.int16],
        focus: int,
        elements: NDArray[np.int8] | None = None,
    ) -> NDArray[np.int8]:
        """Return which elements at ``focus`` some calculated filling agrees with.

        Args:
            skeleton: A skeleton of the table's set.
            tokens: Partial filling, 0 where empty, ``(n_sites,)``.
            focus: The site to fill.
            elements: Elements that a filling may hold, int8 ``(88,)``; None allows all.

        Returns:
            int8 ``(88,)``: 1 for every element that leaves at least one filling of the table with
            properties, under any symmetry operation, within reach.
        """
        orbits = self._all_labellings(skeleton)
        filled = np.flatnonzero(tokens)
        agree = np.all(orbits[:, filled] == tokens[filled].astype(np.uint8), axis=1)
        if elements is not None:  # all sites: else the last ones could be left with nothing
            agree &= elements[orbits.astype(np.int64) - 1].all(axis=1)
        mask = np.zeros(N_ELEMENTS, dtype=np.int8)
        mask[np.unique(orbits[agree, focus]).astype(np.int64) - 1] = 1
        return mask

    def _all_labellings(self, skeleton: Skeleton) -> NDArray[np.uint8]:
        cached = self._orbits.get(skeleton.index)
        if cached is not None and cached[0] == skeleton.key:
            return cached[1]
        entries = self.table.entries_on(skeleton.key)
        entries = entries[self.table.status[entries] == Status.OK.value]
        rows = [
            self.table.entry_tokens(int(e)).astype(np.uint8)[skeleton.permutations] for e in entries
        ]
        empty = np.zeros((0, skeleton.n_sites), dtype=np.uint8)
        orbits = np.unique(np.concatenate(rows), axis=0) if rows else empty
        if len(self._orbits) == _SKELETONS_KEPT:
            del self._orbits[next(iter(self._orbits))]
        self._orbits[skeleton.index] = skeleton.key, orbits
        return orbits


def _composition(tokens: NDArray[np.integer]) -> tuple[tuple[str, int], ...]:
    return tuple(sorted(formula_counts(tokens).items()))


_UNKNOWN = Properties(
    status=Status.UNKNOWN, provenance="this crystal is not in the table of calculated crystals"
)
