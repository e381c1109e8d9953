"""Skeleton sets by name, path or object: one place that knows where each is kept.

``mini``, ``tabular``
    Bundled with the package.
``mp20``, ``mp20-val``
    In the folder of the Minari dataset ``crystal-mp20-v0`` or ``crystal-mp20-val-v0``, so that a
    dataset and its skeletons travel together.
``mp20-metals``
    In the user's cache: metals of MP-20, gaps of 0 without energies.
the id of a local Minari dataset
    The skeletons in its folder, such as ``crystal-mini-v0``.
a path
    A folder or file of structures, or a ``skeletons.npz``.
objects
    pymatgen Structures or ASE Atoms.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any

from crystal_gym.files import cache_dir
from crystal_gym.graphs import GeometryCache
from crystal_gym.skeletons import SkeletonSet, build_skeletons

__all__ = [
    "BUILDS",
    "DATASETS",
    "bundled_dir",
    "dataset_dir",
    "geometry_cache",
    "is_dataset_id",
    "is_named_set",
    "load_skeleton_file",
    "load_skeletons",
    "set_dir",
    "table_dir",
]

DATASETS = {
    "mp20": "crystal-mp20-v0",
    "mp20-val": "crystal-mp20-val-v0",
}
"""Skeleton sets that come with a Minari dataset, and its id."""

BUNDLED = ("mini", "tabular")

BUILDS = {f"crystal-{name}-v0": name for name in BUNDLED} | dict.fromkeys(DATASETS.values(), "mp20")
"""What ``crystal-gym data build`` makes each Minari dataset from."""

TABLES = ("mp20-metals",)
"""Skeleton sets with a property table that no Minari dataset goes with."""

_DATASET_ID = re.compile(r"([-\w]+/)*[-\w]+-v\d+")


def geometry_cache() -> GeometryCache:
    """Return the cache of graphs and symmetries that all builds of this user share."""
    return GeometryCache(cache_dir() / "geometry.sqlite")


def bundled_dir(name: str) -> Path:
    """Return the folder of a bundled set."""
    return Path(str(resources.files("crystal_gym.data"))) / name


def dataset_dir(dataset_id: str) -> Path:
    """Return the folder in which a local Minari dataset keeps its data.

    Args:
        dataset_id: With its version, such as ``crystal-mine-v0``.

    Returns:
        Its path, whether or not the dataset is there.

    Raises:
        ValueError: If the id is not of Minari's form, and so might lead out of its folder.
    """
    if not is_dataset_id(dataset_id):
        meant = next((i for i, name in BUILDS.items() if name == dataset_id), "crystal-mine-v0")
        raise ValueError(
            f"dataset id {dataset_id!r} is not of Minari's form: expected letters, digits, dashes "
            f"and a version, such as {meant}"
        )
    from minari.storage.datasets_root_dir import get_dataset_path

    return Path(get_dataset_path(dataset_id)) / "data"


def table_dir(name: str) -> Path:
    """Return the folder of a property table that ``crystal-gym data build`` wrote."""
    return cache_dir() / "tables" / name


def _skeleton_file(dataset_id: str) -> Path:
    return dataset_dir(dataset_id) / "skeletons.npz"


def is_dataset_id(text: str) -> bool:
    """Return whether a text has the form of a Minari id with a version."""
    return bool(_DATASET_ID.fullmatch(text))


def is_named_set(source: Any) -> bool:
    """Return whether ``source`` is the name of a set, or of a local dataset with skeletons."""
    if not isinstance(source, str):
        return False
    if source in BUNDLED or source in DATASETS or source in TABLES:
        return True
    return is_dataset_id(source) and _skeleton_file(source).exists()


def set_dir(name: str) -> Path:
    """Return the folder with ``skeletons.npz`` and ``table.npz`` of a named set.

    Args:
        name: Of a bundled or built set, or the id of a local dataset with skeletons.

    Returns:
        In the package, the cache or Minari's folder.

    Raises:
        ValueError: If the set is not built on this machine.
    """
    if name in BUNDLED:
        return bundled_dir(name)
    if name in TABLES:
        folder, what, where = table_dir(name), name, f"in {table_dir(name)}"
    else:
        dataset_id = DATASETS.get(name, name)
        folder, what, where = dataset_dir(dataset_id), "mp20", f"with the dataset {dataset_id}"
    if not (folder / "skeletons.npz").exists():
        raise ValueError(
            f"the skeleton set {name!r} is not built on this machine: expected it {where}; "
            f"run `crystal-gym data build {what}` first"
        )
    return folder


def load_skeletons(source: Any) -> SkeletonSet:
    """Return a skeleton set.

    Args:
        source: A name (``"mini"``, ``"tabular"``, ``"mp20"``, ``"mp20-val"``, ...), a path to
            structures or to a ``skeletons.npz``, a :class:`SkeletonSet`, one Structure or Atoms,
            or a sequence.

    Returns:
        The set itself where one was given; for a name or a ``.npz`` file one that all calls in
        this process share; else a new one, with a graph for each structure.

    Raises:
        ValueError: If the name is unknown, the set not built, or a structure unusable.
        FileNotFoundError: If a path does not exist.
        TypeError: If an object is no structure.
    """
    if isinstance(source, SkeletonSet):
        return source
    if is_named_set(source):
        return load_skeleton_file(set_dir(source) / "skeletons.npz")
    if isinstance(source, Path) or (isinstance(source, str) and source):
        return _load_path(Path(source))
    if _is_structure(source):
        source = [source]
    if not isinstance(source, Sequence) or isinstance(source, str):
        raise TypeError(
            f"skeletons={source!r} of type {type(source).__name__} is not understood: expected one "
            f"of {', '.join([*BUNDLED, *DATASETS, *TABLES])}, a path, or structures (pymatgen "
            "or ASE)"
        )
    if source and all(isinstance(s, (str, Path)) for s in source):
        return _build([pair for path in source for pair in _read(Path(path))])
    return _build([(None, s) for s in source])


def load_skeleton_file(path: Path) -> SkeletonSet:
    """Return the set in a file, read once per process as long as the file stays the same."""
    return _load_unchanged(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=8)
def _load_unchanged(path: Path, modified_ns: int) -> SkeletonSet:
    return SkeletonSet.load(path)


def _is_structure(source: Any) -> bool:
    return hasattr(source, "lattice") or hasattr(source, "get_chemical_symbols")


def _load_path(path: Path) -> SkeletonSet:
    if not path.exists():
        names = ", ".join([*BUNDLED, *DATASETS, *TABLES])
        raise ValueError(
            f"skeletons={str(path)!r} is neither a known set nor an existing path: expected one "
            f"of {names}, a structure file or folder, or a list of structures"
        )
    if path.suffix == ".npz":
        return load_skeleton_file(path)
    return _build(_read(path))


def _read(path: Path) -> list[tuple[str | None, Any]]:
    from crystal_gym.structures import read_structures

    return list(read_structures(path))


def _build(named: Sequence[tuple[str | None, Any]]) -> SkeletonSet:
    from crystal_gym.structures import cell_from_structure

    cells = [cell_from_structure(structure, name) for name, structure in named]
    skeletons, problems = build_skeletons(cells, cache=geometry_cache())
    if problems:
        position, reason = next(iter(problems.items()))
        raise ValueError(f"{cells[position].name} has no usable graph: {reason}")
    return skeletons
