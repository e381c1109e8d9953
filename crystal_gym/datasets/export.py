"""From a database of results to a property table, and so to a dataset."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from crystal_gym.datasets.minari_io import DatasetCard, left_out, write_dataset
from crystal_gym.datasets.trajectories import plan_trajectories
from crystal_gym.oracles.base import Properties, Status
from crystal_gym.oracles.cache import ResultStore, StoredResult
from crystal_gym.oracles.espresso.settings import PRESETS
from crystal_gym.oracles.table import PropertyTable, table_of_fillings
from crystal_gym.sets import geometry_cache
from crystal_gym.skeletons import Cell, build_skeletons
from crystal_gym.structures import cell_from_structure

__all__ = ["export_dataset", "export_table", "results_table"]


def results_table(
    store: ResultStore, preset: str | None = None
) -> tuple[PropertyTable, dict[str, str]]:
    """Return the results of one kind of calculation as a table, and what had to be left out.

    Args:
        store: The database.
        preset: Name of the pw.x preset to take, or its settings key; needed only where the
            database holds results of several settings.

    Returns:
        The table, whose skeletons are those of the results, and the reason by the name of every
        result without a usable skeleton.

    Raises:
        ValueError: If the database holds no results, or those of several settings and none is
            chosen.
    """
    groups: dict[str, list[tuple[StoredResult, Any]]] = defaultdict(list)
    for result, atoms in store.rows():
        groups[_kind(result.fingerprint)].append((result, atoms))
    if not groups:
        raise ValueError(f"{store.name} holds no results: expected some; run `crystal-gym label`")
    wanted = None if preset is None else _kind_of_preset(preset)
    if wanted is None and len(groups) > 1:
        listed = ", ".join(f"{_shown(k)} ({len(rows):,})" for k, rows in groups.items())
        raise ValueError(
            f"{store.name} holds results of several settings, {listed}: choose one with --preset"
        )
    rows = groups.get(wanted, []) if wanted is not None else next(iter(groups.values()))
    if not rows:
        raise ValueError(
            f"{store.name} holds no results of {preset!r}: expected one of "
            f"{', '.join(map(_shown, groups))}"
        )
    return _table(rows)


def _kind(fingerprint: str) -> str:
    """Return what results must share to stand in one table: for pw.x, its settings."""
    try:
        return str(json.loads(fingerprint)["settings"])
    except (KeyError, TypeError, ValueError):
        return fingerprint


def _kind_of_preset(preset: str) -> str:
    return PRESETS[preset].key if preset in PRESETS else preset


def _shown(kind: str) -> str:
    return next((name for name, settings in PRESETS.items() if settings.key == kind), kind)


def _table(rows: Iterable[tuple[StoredResult, Any]]) -> tuple[PropertyTable, dict[str, str]]:
    problems: dict[str, str] = {}
    found: list[tuple[Cell, Properties]] = []
    for result, atoms in rows:
        name = f"{atoms.get_chemical_formula(mode='hill')}-{result.row_id}"
        try:
            found.append((cell_from_structure(atoms, name), result.properties))
        except ValueError as error:
            problems[name] = str(error)
    skeletons_of: dict[str, Cell] = {}
    for cell, _ in found:
        skeletons_of.setdefault(cell.key, cell)
    skeletons, failed = build_skeletons(list(skeletons_of.values()), cache=geometry_cache())
    number = {str(key): i for i, key in enumerate(skeletons.keys)}
    left_out = {list(skeletons_of)[i]: reason for i, reason in failed.items()}
    problems.update((c.name, left_out[c.key]) for c, _ in found if c.key in left_out)
    entries = [(number[c.key], c.reference, p) for c, p in found if c.key in number]
    return table_of_fillings(skeletons, entries), problems


def export_table(store: ResultStore, folder: Path | str, preset: str | None = None) -> str:
    """Write ``skeletons.npz`` and ``table.npz``, which ``gym.make(oracle=folder)`` reads.

    Args:
        store: Results; those of one kind of settings are taken.
        folder: Where both go.
        preset: Settings of the results to take, where the store holds several.

    Returns:
        One sentence on what was written.
    """
    table, problems = results_table(store, preset)
    table.save_with_skeletons(folder)
    return f"{folder}: {table!r}{left_out(problems)}"


def export_dataset(
    store: ResultStore, dataset_id: str, preset: str | None = None, *, progress: bool = False
) -> str:
    """Write the results that are ``ok`` as a Minari dataset, in up to five orders each.

    Args:
        store: Results; those of one kind of settings are taken.
        dataset_id: Minari id such as ``crystal-mine-v0``.
        preset: Settings of the results to take, where the store holds several.
        progress: Show a progress bar on standard error.

    Returns:
        One sentence on what was written.

    Raises:
        ValueError: If no result is usable, or the id is not Minari's form.
    """
    table, problems = results_table(store, preset)
    usable = (table.status == Status.OK.value) & ~np.isnan(table.formation_energy_ev_per_atom)
    lacking = int(np.count_nonzero((table.status == Status.OK.value) & ~usable))
    if not usable.any():
        raise ValueError(
            f"{store.name} holds no result with energy, gap and formation energy: expected some; "
            "`crystal-gym label references` gives the last"
        )
    kept = table.of_entries(np.flatnonzero(usable))
    card = DatasetCard(dataset_id, f"Results of {store.name}.")
    trajectories = plan_trajectories(kept)
    path = write_dataset(card, trajectories, kept, progress=progress)
    text = f"{dataset_id}: {len(kept):,} crystals, {len(trajectories):,} episodes in {path}"
    if lacking:
        text += f"\n  left out {lacking} without a formation energy"
    return text + left_out(problems)
