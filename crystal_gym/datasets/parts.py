"""Datasets of any number of crystals, made part by part from structures with their properties.

A part holds the skeletons, table and trajectories of a few hundred crystals in one file. Parts are
made side by side; those that are finished when a build is interrupted, or killed, are not made
again. In the end their arrays are laid end to end, one array at a time, and the dataset is written
from files that are mapped: at no time is more than a few parts in memory.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray
from tqdm import tqdm

from crystal_gym.datasets.minari_io import (
    BuildReport,
    DatasetCard,
    lock_file,
    publish,
    require_dataset_id,
)
from crystal_gym.datasets.trajectories import Trajectories, plan_trajectories
from crystal_gym.elements import EMPTY
from crystal_gym.envs.crystal_fill import TOLD_PROPERTIES
from crystal_gym.files import DAMAGED_NPZ, Pieces, atomic_path, open_npz, save_npz
from crystal_gym.graphs import Geometry, analyse_geometry
from crystal_gym.oracles import Properties, PropertyTable, Status
from crystal_gym.oracles.table import table_of_fillings
from crystal_gym.pools import cores, process_pool
from crystal_gym.sets import dataset_dir
from crystal_gym.skeletons import Cell, SkeletonSet
from crystal_gym.structures import cell_from_structure, read_structures

__all__ = ["CRYSTALS_A_PART", "build_structures"]

CRYSTALS_A_PART = 500
"""Several seconds of work: what a kill costs at most, for every process."""

_FORMAT = 1  # of parts: raise it whenever other code would make other ones

Named = tuple[str, Any]


def build_structures(
    sources: Sequence[Path | str],
    dataset_id: str,
    *,
    limit: int | None = None,
    workers: int | None = None,
    executor: Executor | None = None,
    progress: bool = False,
) -> BuildReport:
    """Write a Minari dataset of structures whose properties their files give.

    Every frame of an extended XYZ file names ``total_energy_ry`` (of the cell),
    ``formation_energy_ev_per_atom`` and ``band_gap_ev`` in its comment line, every row of an ASE
    database in its key-value pairs. ``material_id`` and ``provenance`` beside them are taken over.

    Args:
        sources: Files, or folders of them.
        dataset_id: Minari id such as ``crystal-mine-v0``.
        limit: Only the first structures, for a try.
        workers: Processes; defaults to the cores at hand.
        executor: Makes the parts instead of processes of this machine; its workers have to see the
            folder of the datasets under the same path.
        progress: Show progress bars on standard error.

    Returns:
        What was made and what was left out.

    Raises:
        FileNotFoundError: If a file does not exist, or workers write to another disk.
        ValueError: If one cannot be read, no structure can be used, the id is not Minari's form, or
            another process builds this dataset.
        OSError: If the dataset cannot be written.
    """
    require_dataset_id(dataset_id)
    paths = [Path(source) for source in sources]
    folder = dataset_dir(dataset_id).parent.with_name(f".{dataset_id.replace('/', '-')}.parts")
    with _owned(folder, paths, limit):
        structures = islice((named for path in paths for named in read_structures(path)), limit)
        parts = _make_parts(structures, folder, workers, executor, progress)
        usable, problems = _outcome(parts)
        if not usable:
            name, reason = next(iter(problems.items()), (str(paths[0]), "it holds no structures"))
            raise ValueError(f"no structure can be used; {name}: {reason}")
        table, trajectories = _joined(usable, folder)
        card = DatasetCard(dataset_id, f"Structures of {', '.join(p.name for p in paths)}.")
        report = publish(card, trajectories, table, problems, progress=progress)
        shutil.rmtree(folder)
    return report


@contextmanager
def _owned(folder: Path, paths: Sequence[Path], limit: int | None) -> Iterator[None]:
    """Hold the folder of parts, emptied where it is of other files than these."""
    asked = json.dumps([_FORMAT, CRYSTALS_A_PART, limit, [_state(path) for path in paths]])
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(lock_file(folder), blocking=False):
            note = folder / "sources.json"
            if not note.exists() or note.read_text(encoding="utf-8") != asked:
                shutil.rmtree(folder, ignore_errors=True)
                with atomic_path(note) as temporary:
                    temporary.write_text(asked, encoding="utf-8")
            yield
    except Timeout as error:
        raise ValueError(
            f"{folder} is in use by another process: expected one build of a dataset at a time; "
            "wait until it is done"
        ) from error


def _state(path: Path) -> list[Any]:
    """Return what changes when the files at a path do."""
    if not path.exists():
        raise FileNotFoundError(
            f"{path} does not exist: expected a set (mini, tabular, mp20, mp20-metals), or files "
            "of structures with their properties"
        )
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    states = [(f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in files]
    return [str(path.absolute()), states]


def _make_parts(
    structures: Iterable[Named],
    folder: Path,
    workers: int | None,
    executor: Executor | None,
    progress: bool,
) -> list[Path]:
    """Make the parts that are missing, a few at a time; return all of them in order."""
    remaining = iter(structures)
    some = list(islice(remaining, CRYSTALS_A_PART))
    own = None
    if executor is None and workers != 1 and len(some) == CRYSTALS_A_PART:
        own = process_pool(workers)
    pool = executor or own
    running: set[Future[None]] = set()
    paths: list[Path] = []
    try:
        with tqdm(desc="crystals", unit="crystal", disable=not progress) as bar:
            while some:
                paths.append(folder / f"part-{len(paths):06d}.npz")
                if not _is_whole(paths[-1]):
                    if pool is None:
                        _make_part(paths[-1], some)
                    else:
                        running.add(pool.submit(_make_part, paths[-1], some))
                        running = _some_done(running, 2 * (workers or cores()))
                bar.update(len(some))
                some = list(islice(remaining, CRYSTALS_A_PART))
            _some_done(running, 1)
    finally:
        for future in running:
            future.cancel()
        if own is not None:
            own.shutdown(cancel_futures=True)
    missing = [path for path in paths if not path.exists()]
    if missing:
        raise FileNotFoundError(
            f"{missing[0]} was made, but is not here: expected workers that see {folder.parent} "
            "under the same path; let MINARI_DATASETS_PATH name a disk that all share"
        )
    return paths


def _some_done(running: set[Future[None]], most: int) -> set[Future[None]]:
    """Wait until fewer than ``most`` are running; what failed in one is raised here."""
    while len(running) >= most:
        done, running = wait(running, return_when=FIRST_COMPLETED)
        for future in done:
            future.result()
    return running


def _is_whole(path: Path) -> bool:
    try:
        with open_npz(path) as arrays:
            return "problems" in arrays
    except DAMAGED_NPZ:
        return False


def _make_part(path: Path, structures: Sequence[Named]) -> None:
    """Analyse some structures and write what a dataset needs of them."""
    good: list[tuple[Cell, Geometry, Properties]] = []
    problems: list[tuple[str, str]] = []
    for name, structure in structures:
        try:
            good.append(_analysed(name, structure))
        except ValueError as error:
            problems.append((name, str(error)))
    columns: dict[str, NDArray[Any]] = {}
    if good:
        skeletons = SkeletonSet.from_cells([c for c, _, _ in good], [g for _, g, _ in good])
        entries = [(number, cell.reference, found) for number, (cell, _, found) in enumerate(good)]
        table = table_of_fillings(skeletons, entries)
        parts = (skeletons.columns(), table.columns(), plan_trajectories(table).columns())
        for kind, arrays in zip(_KINDS, parts, strict=True):
            columns |= {f"{kind}/{name}": array for name, array in arrays.items()}
    save_npz(path, problems=np.array(problems, dtype=np.str_).reshape(-1, 2), **columns)


_KINDS = ("skeletons", "table", "trajectories")


def _analysed(name: str, structure: Any) -> tuple[Cell, Geometry, Properties]:
    given = _given_with(structure)
    cell = cell_from_structure(structure, str(given.get("material_id", name)))
    if (cell.reference == EMPTY).any():
        raise ValueError(f"{cell.name} has sites without an element: expected a whole crystal")
    values: dict[str, float] = {}
    for wanted in TOLD_PROPERTIES:
        try:
            values[wanted] = float(given[wanted])
        except (KeyError, TypeError, ValueError):
            values[wanted] = np.nan
    lacking = [wanted for wanted, value in values.items() if not np.isfinite(value)]
    if lacking:
        raise ValueError(
            f"{cell.name} has no {' and no '.join(lacking)}: expected numbers of these names in "
            "the comment line of its frame (extended XYZ) or the key-value pairs of its row (ASE "
            "database)"
        )
    provenance = str(given.get("provenance", "given with the structure"))
    found = Properties(
        total_energy_ry=values["total_energy_ry"],
        formation_energy_ev_per_atom=values["formation_energy_ev_per_atom"],
        band_gap_ev=values["band_gap_ev"],
        status=Status.OK,
        provenance=provenance,
    )
    return cell, analyse_geometry(cell.lattice, cell.frac_coords), found


def _given_with(structure: Any) -> dict[str, Any]:
    """Return what a file says of a structure beside its sites."""
    found = getattr(structure, "info", None) or getattr(structure, "properties", None) or {}
    return {**found, **found.get("key_value_pairs", {})}


def _outcome(parts: Sequence[Path]) -> tuple[list[Path], dict[str, str]]:
    """Return the parts that hold crystals, and why the others' structures were left out."""
    usable, problems = [], {}
    for path in parts:
        with open_npz(path) as arrays:
            problems.update(arrays["problems"].tolist())
            if "skeletons/names" in arrays:
                usable.append(path)
    return usable, problems


def _joined(parts: Sequence[Path], folder: Path) -> tuple[PropertyTable, Trajectories]:
    """Lay the arrays of parts end to end in files, and return the objects of these."""
    shapes: dict[str, list[tuple[int, ...]]] = {}
    dtypes: dict[str, np.dtype[Any]] = {}
    for path in parts:
        with open_npz(path) as arrays:
            for key in arrays:
                array = arrays[key]
                shapes.setdefault(key, []).append(array.shape)
                dtypes[key] = np.promote_types(dtypes.get(key, array.dtype), array.dtype)
    counts = [shape[0] for shape in shapes["skeletons/names"]]
    whole: dict[str, dict[str, NDArray[Any]]] = {}
    for kind in _KINDS:
        pieces = {
            key.split("/")[1]: _end_to_end(parts, key, shapes[key], dtypes[key], counts)
            for key in shapes
            if key.startswith(f"{kind}/")
        }
        save_npz(folder / f"{kind}.npz", **pieces)
        with open_npz(folder / f"{kind}.npz") as arrays:
            whole[kind] = {name: arrays[name] for name in pieces}
    skeletons = SkeletonSet.of_columns(whole["skeletons"])
    table = PropertyTable(skeletons=skeletons, **whole["table"])
    return table, Trajectories(skeletons=skeletons, **whole["trajectories"])


def _end_to_end(
    parts: Sequence[Path],
    key: str,
    shapes: Sequence[tuple[int, ...]],
    dtype: np.dtype[Any],
    counts: Sequence[int],
) -> Pieces:
    """Return an array of all parts, of which one at a time is in memory.

    Args:
        parts: Their files.
        key: Name of the array.
        shapes: In each part.
        dtype: That holds it of all parts.
        counts: Skeletons of each part.
    """

    def arrays() -> Iterator[NDArray[Any]]:
        for path in parts:
            with open_npz(path) as file:
                yield file[key]

    def starts() -> Iterator[NDArray[Any]]:
        total = 0
        yield np.zeros(1, dtype=np.int64)
        for array in arrays():
            yield array[1:] + total
            total += int(array[-1])

    def numbers() -> Iterator[NDArray[Any]]:
        first = 0
        for array, count in zip(arrays(), counts, strict=True):
            yield array + first
            first += count

    def rows() -> Iterator[NDArray[Any]]:
        for row in range(2):
            for array in arrays():
                yield array[row]

    name = key.split("/")[1]
    total, rest = sum(shape[0] for shape in shapes), shapes[0][1:]
    if name.endswith("_ptr"):
        return Pieces((total - len(shapes) + 1,), dtype, starts)
    if name == "skeleton":
        return Pieces((total,), dtype, numbers)
    if name == "edge_index":
        return Pieces((2, sum(shape[1] for shape in shapes)), dtype, rows)
    return Pieces((total, *rest), dtype, arrays)
