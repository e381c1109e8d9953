"""The command ``crystal-gym data``: list, fetch, build, show, export and publish."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from crystal_gym.commands.arguments import BUILT_SETS
from crystal_gym.commands.terminal import coloured, shows_progress
from crystal_gym.suggestions import did_you_mean

__all__ = ["ACTIONS"]


@dataclass(frozen=True)
class _Item:
    """Something that ``crystal-gym data list`` shows.

    Attributes:
        kind: Of :data:`_KINDS`.
        name: As other commands take it.
        path: Where it lies.
        skeletons: In it; None where that has no meaning or the file is damaged.
        episodes: In it, for Minari datasets.
        bytes: On disk.
    """

    kind: str
    name: str
    path: str
    skeletons: int | None = None
    episodes: int | None = None
    bytes: int | None = None

    def __str__(self) -> str:
        columns = [f"  {self.name:<30}"]
        columns.append(_counted(self.skeletons, "skeletons"))
        columns.append(_counted(self.episodes, "episodes"))
        columns.append("" if self.bytes is None else f"{self.bytes / 1e6:,.1f} MB")
        return f"{columns[0]}{columns[1]:>17}{columns[2]:>17}{columns[3]:>12}".rstrip()


def _counted(number: int | None, what: str) -> str:
    return "" if number is None else f"{number:,} {what}"


_KINDS = {
    "bundled": "Skeleton sets with a table of DFT results, bundled with the package",
    "minari": "Minari datasets",
    "table": "Property tables",
    "source": "Source files",
}


def _list(options: argparse.Namespace) -> None:
    from minari.storage.datasets_root_dir import get_dataset_path

    from crystal_gym.files import cache_dir, raw_data_dir

    items = [*_bundled(), *_minari(), *_tables(), *_sources()]
    if options.json:
        print(json.dumps([asdict(item) for item in items], indent=1))
        return
    places = {
        "minari": get_dataset_path(),
        "table": cache_dir() / "tables",
        "source": raw_data_dir(),
    }
    absent = {
        "minari": "none; `crystal-gym data build mini` makes the first in seconds",
        "source": "none; `crystal-gym data fetch mp20` brings MP-20 and its DFT labels",
    }
    for kind, title in _KINDS.items():
        found = [item for item in items if item.kind == kind]
        if found or kind in absent:
            where = f" in {places[kind]}" if kind in places else ""
            print(coloured(f"{title}{where}", "bold"))
            for item in found:
                print(item)
            if not found:
                print(f"  {absent[kind]}")


def _bundled() -> Iterator[_Item]:
    from crystal_gym.sets import BUNDLED, bundled_dir, load_skeletons

    for name in BUNDLED:
        yield _Item("bundled", name, str(bundled_dir(name)), len(load_skeletons(name)))


def _minari() -> Iterator[_Item]:
    import minari

    from crystal_gym.files import DAMAGED_NPZ, open_npz
    from crystal_gym.sets import dataset_dir

    for name, metadata in minari.list_local_datasets().items():
        if "CrystalFill-v0" not in str(metadata.get("env_spec")):
            continue
        folder = dataset_dir(name)
        skeletons = None
        if (folder / "skeletons.npz").exists():
            try:
                with open_npz(folder / "skeletons.npz") as arrays:
                    skeletons = len(arrays["space_group_number"])
            except DAMAGED_NPZ:
                name += " (damaged)"
        size = _bytes(folder / "main_data.hdf5")
        episodes = int(metadata.get("total_episodes", 0))
        yield _Item("minari", name, str(folder), skeletons, episodes, size)


def _tables() -> Iterator[_Item]:
    from crystal_gym.sets import TABLES, load_skeletons, table_dir

    for name in TABLES:
        path = table_dir(name) / "table.npz"
        if path.exists():
            skeletons = len(load_skeletons(name))
            yield _Item("table", name, str(path.parent), skeletons, bytes=_bytes(path))


def _sources() -> Iterator[_Item]:
    from crystal_gym.files import raw_data_dir

    raw = raw_data_dir()
    for pattern in ("mp20/*.csv*", "qe/labels*", "qe/*/*.pkl"):
        for path in sorted(raw.glob(pattern)):
            if not path.name.startswith("."):
                name = str(path.relative_to(raw))
                yield _Item("source", name, str(path), bytes=_bytes(path))


def _bytes(path: Path) -> int | None:
    return path.stat().st_size if path.exists() else None


def _fetch(options: argparse.Namespace) -> None:
    from crystal_gym.datasets.fetch import fetch, fetch_pseudopotentials

    bring = fetch_pseudopotentials if options.what == "sssp" else fetch
    for line in bring(source=options.source, progress=shows_progress()):
        print(line)


def _build(options: argparse.Namespace) -> None:
    what = options.what[0]
    if what not in BUILT_SETS or len(options.what) > 1:
        _build_structures(options)
        return
    if options.minari is not None:
        raise ValueError(
            f"--minari {options.minari} does not go with the set {what}, which has its own ids: "
            f"leave it out, or write ./{what} if a file is meant"
        )
    if options.dry_run:
        print(_planned_set(what, options))
        return
    from crystal_gym.cluster import executor_at
    from crystal_gym.datasets.build import build_metals, build_mini, build_mp20, build_tabular

    progress = shows_progress()
    if what in ("mini", "tabular"):
        build = build_mini if what == "mini" else build_tabular
        print(build(progress=progress))
        return
    with executor_at(options.executor) as executor:
        settings = {"limit": options.limit, "workers": options.workers, "executor": executor}
        if what == "mp20-metals":
            print(build_metals(options.source, **settings, progress=progress))
            return
        for report in build_mp20(options.source, **settings, progress=progress):
            print(report)


def _build_structures(options: argparse.Namespace) -> None:
    missing = [name for name in options.what if not Path(name).exists()]
    if missing:
        raise ValueError(
            f"{missing[0]!r} is neither a set nor an existing file"
            f"{did_you_mean(missing[0], BUILT_SETS)}: expected one of {', '.join(BUILT_SETS)}, or "
            "files of structures with their properties"
        )
    if options.minari is None:
        raise ValueError(
            f"{options.what[0]} needs the id of its dataset: add --minari crystal-mine-v0, or "
            "another name with a version"
        )
    if options.dry_run:
        print(_planned_structures(options))
        return
    from crystal_gym.cluster import executor_at
    from crystal_gym.datasets.parts import build_structures

    with executor_at(options.executor) as executor:
        settings = {"limit": options.limit, "workers": options.workers, "executor": executor}
        report = build_structures(
            options.what, options.minari, **settings, progress=shows_progress()
        )
        print(report)


# CPU seconds a crystal, docs/benchmarks.md (MP-20) and docs/scale.md (up to 60 sites).
_MP20_S, _LARGE_S = 210 / 11_297, 0.020


def _planned_set(what: str, options: argparse.Namespace) -> str:
    """Say what building a set would do."""
    if what in ("mini", "tabular"):
        return f"crystal-{what}-v0 from the bundled set {what}: a few seconds; nothing was done"
    from crystal_gym.datasets.labels import has_label_table, read_labels
    from crystal_gym.files import raw_data_dir
    from crystal_gym.sets import table_dir

    folder = options.source or raw_data_dir()
    if what == "mp20-metals":
        places = {"metals": str(table_dir("mp20-metals"))}
    else:
        places = {"train": "crystal-mp20-v0"}
        if has_label_table(folder):
            places["val"] = "crystal-mp20-val-v0"
    counts = {split: len(read_labels(folder, split)[: options.limit]) for split in places}
    listed = "; ".join(f"{counts[s]:,} crystals into {place}" for s, place in places.items())
    if options.limit is not None and what == "mp20":
        listed += f" (under ids with -first{options.limit})"
    return f"{listed}; {_cost(sum(counts.values()), _MP20_S, options)}; nothing was done"


def _planned_structures(options: argparse.Namespace) -> str:
    """Say what building a dataset of files would do; the files are read to their end."""
    from itertools import islice

    from crystal_gym.datasets.minari_io import require_dataset_id
    from crystal_gym.structures import read_structures

    require_dataset_id(options.minari)
    frames = (frame for path in options.what for frame in read_structures(Path(path)))
    count = sum(1 for _ in islice(frames, options.limit))
    return (
        f"{count:,} structures into {options.minari}, as far as they can be used; "
        f"{_cost(count, _LARGE_S, options)} for cells of up to 60 sites; nothing was done"
    )


def _cost(crystals: int, seconds_each: float, options: argparse.Namespace) -> str:
    from crystal_gym.pools import cores

    seconds = crystals * seconds_each
    shown = f"{seconds:.0f} CPU-s" if seconds < 120 else f"{seconds / 60:.0f} CPU-minutes"
    if options.executor:
        return f"about {shown} over the workers of {options.executor}"
    return f"about {shown} over {options.workers or cores()} processes"


def _show(options: argparse.Namespace) -> None:
    import numpy as np

    from crystal_gym.datasets.cards import per_crystal
    from crystal_gym.datasets.minari_io import open_dataset, read_trajectories

    dataset = open_dataset(options.dataset)
    data = read_trajectories(dataset, progress=shows_progress())
    summary = {
        "dataset": options.dataset,
        "crystals": len(data.crystals),
        "skeletons": len(np.unique(data.skeleton)),
        "episodes": len(data),
        "transitions": len(data.actions),
        "per_crystal": per_crystal(data),
        "description": str(dataset.storage.metadata.get("description", "")),
    }
    print(json.dumps(summary, indent=1) if options.json else _shown(summary))


def _shown(summary: dict[str, Any]) -> str:
    """Return what ``data show`` prints for people."""
    import textwrap

    from crystal_gym.datasets.cards import QUANTITIES
    from crystal_gym.evaluation.report import markdown_table

    rows = [["per crystal", "mean", "median", "min", "max"]]
    for name, numbers in summary["per_crystal"].items():
        rows.append([QUANTITIES[name], *(f"{n:.2f}" for n in numbers.values())])
    counts = (
        f"{summary['dataset']}: {summary['crystals']:,} crystals on {summary['skeletons']:,} "
        f"skeletons, {summary['episodes']:,} episodes, {summary['transitions']:,} transitions"
    )
    return "\n\n".join(
        [textwrap.fill(counts, 79), markdown_table(rows), textwrap.fill(summary["description"], 79)]
    )


def _export(options: argparse.Namespace) -> None:
    from crystal_gym.datasets.export import export_dataset, export_table
    from crystal_gym.oracles import ResultStore

    store = ResultStore.existing(options.database)
    if options.table is not None:
        print(export_table(store, options.table, options.preset))
    else:
        print(export_dataset(store, options.minari, options.preset, progress=shows_progress()))


def _publish(options: argparse.Namespace) -> None:
    from crystal_gym.datasets.hub import upload

    for line in upload(options.dataset, options.to, options.published_id, dry_run=options.dry_run):
        print(line, flush=True)


ACTIONS: dict[str, Callable[[argparse.Namespace], None]] = {
    "list": _list,
    "fetch": _fetch,
    "build": _build,
    "show": _show,
    "export": _export,
    "publish": _publish,
}
"""What each word after ``crystal-gym data`` does."""
