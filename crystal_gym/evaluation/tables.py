"""The results of an evaluation as tables to read; what is surrogate is in every header."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from crystal_gym.evaluation.report import markdown_table

__all__ = ["Table", "all_tables", "tables"]

Table: TypeAlias = tuple[str, list[list[str]]]
"""A heading and rows of text, the first of them the header."""


@dataclass(frozen=True)
class _Column:
    """A measure in a table: its heading, and how its numbers are written."""

    measure: str
    heading: str
    factor: float = 100.0
    digits: int = 1


_AGAINST_SOURCE = (
    _Column("accuracy", "accuracy %"),
    _Column("similarity", "similarity %"),
    _Column("exact_match", "exact match %"),
    _Column("macro_accuracy", "macro accuracy %"),
    _Column("accuracy_new_formula", "accuracy, new formulas %"),
    _Column("top_1_accuracy", "top-1 %"),
    _Column("top_3_accuracy", "top-3 %"),
    _Column("top_5_accuracy", "top-5 %"),
)
_COMPOSITION = (
    _Column("validity_smact14", "valid, smact14 %"),
    _Column("validity_icsd24", "valid, SMACT 4's default %"),
    _Column("novelty", "novel formula %"),
    _Column("uniqueness", "unique formula %"),
)
_PROPERTIES = (
    _Column("success", "success %"),
    _Column("mean_gap_ev", "mean gap (eV)", 1.0, 2),
    _Column("emd_gap_ev", "EMD of gap (eV)", 1.0, 2),
    _Column("mean_formation_energy_ev_per_atom", "mean E_form (eV/atom)", 1.0, 2),
    _Column("emd_formation_energy_ev_per_atom", "EMD of E_form (eV/atom)", 1.0, 2),
    _Column("metals", "metals %"),
    _Column("kappa", "kappa %"),
    _Column("unlike_training", "unlike the surrogate's training %"),
)
_AT_TARGET = (
    _Column("nu", "nu: gap within 0.25 eV, %,"),
    _Column("gap_error_ev", "Mean absolute gap error, eV,", 1.0, 2),
    _Column("valid_unique_novel_in_range", "Valid, unique, novel and in range, %,"),
)
_OVER_TARGETS = (
    _Column("distinct_fillings", "different fillings", 1.0, 2),
    _Column("differing_sites", "differing sites %"),
    _Column("steering", "steering (points)"),
)


def all_tables(results: Mapping[str, Any]) -> list[Table]:
    """Return every table of ``results.json``: its heading, which names the oracle, and its rows."""
    designs, oracle = results["designs"], results["oracle"]
    found = [
        ("Against the source crystals (no oracle)", _rows(designs, _AGAINST_SOURCE)),
        ("Compositions (no oracle)", _rows(designs, _COMPOSITION)),
        (f"Properties ({oracle})", _rows(designs, _PROPERTIES)),
    ]
    for column in _AT_TARGET:
        heading = f"{column.heading} at each target ({oracle})"
        found.append((heading, _by_target(results["at_target"], column)))
    if results["over_targets"]:
        heading = f"Over the targets (fillings: no oracle; steering: {oracle})"
        found.append((heading, _rows(results["over_targets"], _OVER_TARGETS)))
        found += [_matrix(row, oracle) for row in results["over_targets"]]
    if results.get("regret"):
        found.append(("Mean regret on the tabular set (DFT)", _regret(results["regret"])))
    return found


def tables(results: Mapping[str, Any]) -> str:
    """Return the tables of ``results.json`` as Markdown that also reads well as plain text."""
    settings = results["settings"]
    lines = [
        f"{results['crystals']:,} skeletons ({results['crystals_of_new_formula']:,} of a formula "
        f"that is not in training), {settings['split']} split of {settings['dataset']}. In "
        f"brackets: 95% intervals, {settings['resamples']} bootstrap resamples of the skeletons, "
        f"seed {settings['seed']}. docs/evaluation.md defines every measure. kappa: gap above "
        f"{results['rare_gap_ev']:.2f} eV, the 95th percentile in training. EMD: to the DFT labels "
        "of the source crystals. Success: a gap came out; means are of those.",
    ]
    for heading, rows in all_tables(results):
        lines += ["", f"## {heading}", "", markdown_table(rows)]
    if results["notes"]:
        lines.append("")
        lines += [f"{name}: {note}." for name, note in results["notes"].items()]
    return "\n".join(lines) + "\n"


def _rows(rows: Sequence[Mapping[str, Any]], columns: Sequence[_Column]) -> list[list[str]]:
    aimed = any(row.get("target_ev") is not None for row in rows)
    there = [c for c in columns if any(c.measure in row["measures"] for row in rows)]
    head = ["method", *(["target (eV)"] if aimed else []), *(c.heading for c in there)]
    body = []
    for row in rows:
        cells = [_cell(row["measures"].get(c.measure), c) for c in there]
        body.append([row["method"], *([_target(row)] if aimed else []), *cells])
    for name, target, group in _seeds(rows):
        cells = [_over_seeds([row["measures"].get(c.measure) for row in group], c) for c in there]
        body.append([name, *([target] if aimed else []), *cells])
    return [head, *body]


def _by_target(rows: Sequence[Mapping[str, Any]], column: _Column) -> list[list[str]]:
    """Return one measure, methods down and targets across."""
    targets = list(dict.fromkeys(row["target_ev"] for row in rows))
    cells: dict[str, dict[float, str]] = {}
    for row in rows:
        name = row["method"] + ("" if row["aimed"] else " (takes no target)")
        cell = _cell(row["measures"][column.measure], column)
        cells.setdefault(name, {})[row["target_ev"]] = cell
    head = ["method", *(f"{target:g} eV" for target in targets)]
    return [head, *([name, *(found[t] for t in targets)] for name, found in cells.items())]


def _target(row: Mapping[str, Any]) -> str:
    return "none" if row.get("target_ev") is None else f"{row['target_ev']:g}"


def _cell(numbers: Sequence[float | None] | None, column: _Column) -> str:
    if numbers is None or numbers[0] is None:
        return "-"
    value, low, high = (
        "-" if n is None else f"{column.factor * n:.{column.digits}f}" for n in numbers
    )
    return f"{value} [{low}, {high}]"


def _seeds(
    rows: Sequence[Mapping[str, Any]],
) -> list[tuple[str, str, list[Mapping[str, Any]]]]:
    """Return the runs that differ in their seed alone, where there are several."""
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        if row.get("family") is not None:
            groups.setdefault((row["family"], _target(row)), []).append(row)
    return [
        (f"{family.split()[0]}, {len(group)} seeds, mean ± sd", target, group)
        for (family, target), group in groups.items()
        if len(group) > 1
    ]


def _over_seeds(cells: Sequence[Sequence[float | None] | None], column: _Column) -> str:
    values = [c[0] for c in cells if c is not None and c[0] is not None]
    if len(values) < len(cells):
        return "-"
    numbers = column.factor * np.array(values, dtype=np.float64)
    return f"{numbers.mean():.{column.digits}f} ± {numbers.std(ddof=1):.{column.digits}f}"


def _matrix(row: Mapping[str, Any], oracle: str) -> Table:
    targets = [f"{t:g}" for t in row["targets_ev"]]
    head = ["aimed at (eV)", *(f"within 0.25 of {t} %" for t in targets)]
    body = [
        [target, *(f"{100 * share:.1f}" for share in shares)]
        for target, shares in zip(targets, row["hit_matrix"], strict=True)
    ]
    return f"Where {row['method']} aims and what it hits ({oracle})", [head, *body]


def _regret(rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    head = ["method", *(f"{t:g} eV" for t in rows[0]["targets_ev"])]
    return [head, *([row["method"], *(f"{r:.2f}" for r in row["mean_regret"])] for row in rows)]
