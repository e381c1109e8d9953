"""Building the datasets: source files to skeletons, property table and Minari episodes."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Sequence
from concurrent.futures import Executor
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from crystal_gym.cdvae import CrystalRow, read_cdvae_csv
from crystal_gym.datasets.labels import Label, has_label_table, read_labels
from crystal_gym.datasets.minari_io import (
    STORED_TARGET_EV,
    BuildReport,
    DatasetCard,
    left_out,
    publish,
)
from crystal_gym.datasets.relabel import terminal_rewards
from crystal_gym.datasets.trajectories import (
    MAX_ORDERS,
    joined,
    plan_trajectories,
    sample_boltzmann,
    sample_uniform,
)
from crystal_gym.files import raw_data_dir
from crystal_gym.oracles import Properties, PropertyTable, Status, load_table
from crystal_gym.oracles.table import table_of_fillings
from crystal_gym.pools import process_pool
from crystal_gym.sets import DATASETS, geometry_cache, table_dir
from crystal_gym.skeletons import Cell, SkeletonSet, build_skeletons
from crystal_gym.structures import cell_from_structure, parse_cif

__all__ = [
    "BuildReport",
    "build_metals",
    "build_mini",
    "build_mini_set",
    "build_mp20",
    "build_tabular",
    "labelled_table",
]

_MP20_SOURCE = (
    "MP-20 (Xie et al. 2022, from the Materials Project, CC BY 4.0) with the Quantum ESPRESSO "
    "labels of Govindarajan et al. 2024 (doi 10.1039/d4dd00024b). PBE, gaps on a 3x3x3 mesh; "
    "formation energies by eqn (15). Site order and graph do not depend on the elements."
)
_CARDS = {
    "train": DatasetCard(
        DATASETS["mp20"], f"Training split of {_MP20_SOURCE}", license="cc-by-4.0"
    ),
    "val": DatasetCard(
        DATASETS["mp20-val"], f"Validation split of {_MP20_SOURCE}", license="cc-by-4.0"
    ),
    "mini": DatasetCard(
        "crystal-mini-v0",
        "The crystals bundled with crystal_gym, labelled with pw.x 6.7 at the settings of "
        "Govindarajan et al. 2024 (doi 10.1039/d4dd00024b).",
        license="mit",
    ),
    "tabular": DatasetCard(
        "crystal-tabular-v0",
        "Small skeletons of which every filling that passes SMACT's test (over a palette of "
        "elements) was calculated with pw.x 6.7 at the preset 'fast', so that the best reward is "
        "known for any target. The first half of the episodes chooses uniformly among the "
        "calculated fillings' elements; the second half follows the policy that is optimal for "
        "the reward at 3 eV plus 0.5 times its entropy.",
        algorithm_name="uniform, then Boltzmann at temperature 0.5 for 3 eV",
        mask="table",
        license="mit",
    ),
}
_ORDERS = {"train": MAX_ORDERS, "val": 1}


def build_mp20(
    source: Path | str | None = None,
    *,
    splits: Sequence[str] = ("train", "val"),
    limit: int | None = None,
    workers: int | None = None,
    executor: Executor | None = None,
    progress: bool = False,
) -> list[BuildReport]:
    """Write ``crystal-mp20-v0`` and ``crystal-mp20-val-v0``.

    Args:
        source: Folder with ``mp20/`` and ``qe/``; defaults to :func:`raw_data_dir`.
        splits: Which of ``"train"`` and ``"val"``.
        limit: Use only the first labelled crystals of each split, for a try; the datasets are
            then called ``crystal-mp20-first200-v0`` and so on, so that no full one is replaced.
        workers: Processes; defaults to the cores at hand.
        executor: What parses and analyses instead, such as the workers of a cluster.
        progress: Show progress bars on standard error.

    Returns:
        What was made, one report a split.

    Raises:
        FileNotFoundError: If a source file is missing.
        ValueError: If one is damaged.
    """
    folder = Path(source) if source is not None else raw_data_dir()
    reports: list[BuildReport] = []
    for split in splits:
        if split == "val" and reports and not has_label_table(folder):
            warnings.warn(
                f"{_CARDS[split].dataset_id} is not built: {folder / 'qe'} has no labels.csv.gz, "
                "the only file with labels of the validation split",
                stacklevel=2,
            )
            continue
        table, problems = labelled_table(
            folder, split, limit=limit, workers=workers, executor=executor, progress=progress
        )
        card = _CARDS[split] if limit is None else _limited(_CARDS[split], limit)
        trajectories = plan_trajectories(table, _ORDERS[split])
        reports.append(publish(card, trajectories, table, problems, progress=progress))
    return reports


def _limited(card: DatasetCard, limit: int) -> DatasetCard:
    return replace(
        card,
        dataset_id=card.dataset_id.replace("-v0", f"-first{limit}-v0"),
        description=f"The first {limit} labelled crystals. {card.description}",
    )


def build_mini(progress: bool = False) -> BuildReport:
    """Write ``crystal-mini-v0`` from the bundled set."""
    table = load_table("mini")
    return publish(_CARDS["mini"], plan_trajectories(table), table, {}, progress=progress)


def build_metals(
    source: Path | str | None = None,
    *,
    limit: int | None = None,
    workers: int | None = None,
    executor: Executor | None = None,
    progress: bool = False,
) -> str:
    """Write the property table ``mp20-metals``: gaps of 0, and no energies.

    It is no Minari dataset, since a reward needs an energy; a surrogate learns from it which
    crystals have no gap (``SurrogateConfig.table``).

    Args:
        source: Folder with ``mp20/`` and ``qe/``; defaults to :func:`raw_data_dir`.
        limit: Only the first, for a try; the table is then called ``mp20-metals-first200`` and so
            on.
        workers: Processes; defaults to the cores at hand.
        executor: What parses and analyses instead, such as the workers of a cluster.
        progress: Show progress bars on standard error.

    Returns:
        What was written, in words.

    Raises:
        FileNotFoundError: If a source file is missing.
        ValueError: If one is damaged.
    """
    folder = Path(source) if source is not None else raw_data_dir()
    table, problems = labelled_table(
        folder, "metals", limit=limit, workers=workers, executor=executor, progress=progress
    )
    name = "mp20-metals" if limit is None else f"mp20-metals-first{limit}"
    goal = table_dir(name)
    table.save_with_skeletons(goal)
    text = f"{name}: {len(table):,} crystals with a gap of 0 and no energies in {goal}"
    return text + left_out(problems)


_EPISODES_PER_SKELETON = 200
_TEMPERATURE = 0.5


def build_tabular(progress: bool = False, seed: int = 0) -> BuildReport:
    """Write ``crystal-tabular-v0`` from the bundled set: episodes of a uniform and a good policy.

    For each skeleton 200 episodes choose uniformly among the actions that ``mask="table"`` allows
    (the first half of the dataset), and 200 follow the policy that is optimal for the reward at
    3 eV plus 0.5 times its entropy.

    Args:
        progress: Show a progress bar on standard error.
        seed: Of everything drawn.

    Returns:
        What was made.
    """
    table = load_table("tabular")
    rewards = terminal_rewards(
        "formation",
        table.total_energy_ry,
        table.formation_energy_ev_per_atom,
        table.band_gap_ev,
        np.full(len(table), STORED_TARGET_EV),
    )
    usable = (table.status == Status.OK.value) & ~np.isnan(rewards)
    rewards = np.where(usable, rewards, -np.inf)
    trajectories = joined(
        [
            sample_uniform(table, _EPISODES_PER_SKELETON, seed),
            sample_boltzmann(table, rewards, _EPISODES_PER_SKELETON, _TEMPERATURE, seed + 1),
        ]
    )
    return publish(_CARDS["tabular"], trajectories, table, {}, progress=progress)


def labelled_table(
    folder: Path | str,
    split: str,
    *,
    limit: int | None = None,
    workers: int | None = None,
    executor: Executor | None = None,
    progress: bool = False,
) -> tuple[PropertyTable, dict[str, str]]:
    """Return skeletons and labels of an MP-20 split, and what had to be left out.

    Args:
        folder: With ``mp20/{split}.csv.gz`` (or ``.csv``) and ``qe/``.
        split: ``"train"``, ``"val"``, or ``"metals"`` for those of the training split.
        limit: Only the first labelled crystals.
        workers: Processes.
        executor: What parses and analyses instead, such as the workers of a cluster.
        progress: Show progress bars.

    Returns:
        The table with its skeletons, and the reason by name of each crystal that was left out.
    """
    folder = Path(folder)
    csv_split = "train" if split == "metals" else split
    rows, row_problems = read_cdvae_csv(_csv_path(folder, csv_split))
    by_position = {row.position: row for row in rows}
    labels = read_labels(folder, split)[:limit]
    problems = {
        f"{split}-{label.position}": row_problems.get(label.position, "no such row in the CSV")
        for label in labels
        if label.position not in by_position
    }
    labels = [label for label in labels if label.position in by_position]
    wanted = [by_position[label.position] for label in labels]
    with nullcontext(executor) if executor else _pool(workers, len(wanted)) as pool:
        results = (
            list(pool.map(_parse_row, wanted, chunksize=32))
            if pool
            else [_parse_row(row) for row in wanted]
        )
        pairs: list[tuple[Cell, Label]] = []
        for row, label, result in zip(wanted, labels, results, strict=True):
            if isinstance(result, Cell):
                pairs.append((result, label))
            else:
                problems[f"{split}-{row.position}"] = result
        if not pairs:
            first = next(iter(problems.items()), (split, "it has no labels"))
            raise ValueError(f"no crystal of {folder} can be used; {first[0]}: {first[1]}")
        skeletons, failed = build_skeletons(
            [cell for cell, _ in pairs],
            cache=geometry_cache(),
            executor=pool,
            workers=1,
            progress=progress,
        )
    problems.update((f"{split}-{pairs[i][1].position}", reason) for i, reason in failed.items())
    kept = [pair for i, pair in enumerate(pairs) if i not in failed]
    return _table(skeletons, kept), problems


def _pool(workers: int | None, count: int) -> nullcontext[None] | Executor:
    if workers == 1 or count < 64:
        return nullcontext()
    return process_pool(workers)


def _parse_row(row: CrystalRow) -> Cell | str:
    try:
        return cell_from_structure(parse_cif(row.cif), row.name)
    except ValueError as error:
        return str(error)


def _table(skeletons: SkeletonSet, pairs: list[tuple[Cell, Label]]) -> PropertyTable:
    labels = [label for _, label in pairs]
    return PropertyTable(
        skeletons=skeletons,
        skeleton=np.arange(len(pairs)),
        tokens=np.concatenate([cell.reference for cell, _ in pairs]),
        total_energy_ry=np.array([x.total_energy_ry for x in labels]),
        formation_energy_ev_per_atom=np.array([x.formation_energy_ev_per_atom for x in labels]),
        band_gap_ev=np.array([x.band_gap_ev for x in labels]),
        status=np.full(len(pairs), Status.OK.value),
        provenance=np.array(["pw.x label of Govindarajan et al. 2024 (doi 10.1039/d4dd00024b)"]),
    )


def _csv_path(folder: Path, split: str) -> Path:
    for name in (f"{split}.csv.gz", f"{split}.csv"):
        if (folder / "mp20" / name).exists():
            return folder / "mp20" / name
    raise FileNotFoundError(
        f"{folder / 'mp20' / split}.csv does not exist (nor .csv.gz): run `crystal-gym data fetch "
        "mp20`, or name a folder that holds mp20/ and qe/ with --from or CRYSTAL_GYM_DATA"
    )


def build_mini_set(labels: Path | str, folder: Path | str) -> PropertyTable:
    """Make the bundled set's ``skeletons.npz`` and ``table.npz`` from pw.x results.

    Args:
        labels: ``mini_labels.json`` as ``scripts/make_mini.py`` writes it.
        folder: Where the two files go.

    Returns:
        The table as written, with its skeletons.
    """
    content = json.loads(Path(labels).read_text(encoding="utf-8"))
    entries = content["entries"]
    cells = [_mini_cell(entry) for entry in entries]
    skeletons, problems = build_skeletons(cells, workers=1)
    if problems:
        position, reason = next(iter(problems.items()))
        raise ValueError(f"{cells[position].name} has no usable graph: {reason}")
    table = table_of_fillings(
        skeletons,
        (
            (number, cell.reference, _mini_properties(entry, content["code"]))
            for number, (cell, entry) in enumerate(zip(cells, entries, strict=True))
        ),
    )
    table.save_with_skeletons(folder)
    return table


def _mini_cell(entry: dict[str, Any]) -> Cell:
    from pymatgen.core import Structure

    structure = Structure(entry["lattice"], entry["species"], entry["frac_coords"])
    return cell_from_structure(structure, entry["name"])


def _mini_properties(entry: dict[str, Any], code: str) -> Properties:
    what = entry["reason"] or f"{code}, 30/240 Ry, 3x3x3, {entry['nbnd']} bands"
    return Properties(
        total_energy_ry=entry["total_energy_ry"],
        formation_energy_ev_per_atom=entry["formation_energy_ev_per_atom"],
        band_gap_ev=entry["band_gap_ev"],
        status=Status(entry["status"]),
        provenance=f"{what}; lattice: {entry['lattice_source']}",
    )


if __name__ == "__main__":  # python -m crystal_gym.datasets.build LABELS FOLDER
    build_mini_set(*sys.argv[1:3])
