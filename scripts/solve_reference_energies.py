#!/usr/bin/env python3
"""Solve the elemental reference energies behind the published formation energies.

Govindarajan et al. 2024 (doi 10.1039/d4dd00024b) publish a total energy and a formation energy for
every labelled crystal, but not the elemental energies that their equation (15) subtracts::

    E_form = (E_tot - sum_i n_i e_i) / N * 13.6057039763 eV/Ry        (eV per atom)

The equation is linear in the ``e_i``, so the labelled training crystals determine them: one
equation per crystal, one unknown per element, solved by least squares.

Example::

    python scripts/solve_reference_energies.py --data "$CRYSTAL_GYM_DATA"
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from crystal_gym.elements import ELEMENTS
from crystal_gym.oracles.espresso.settings import PRESETS

RY_IN_EV = 13.6057039763
"""The authors' conversion: with CODATA 2014's 13.605693009 the largest residual over the labels
grows from 3e-10 to 3e-6 eV/atom."""

DEFAULT_OUTPUT = (
    Path(__file__).resolve().parent.parent / "crystal_gym" / "data" / "reference_energies.json"
)

_FORMULA_SUM = re.compile(r"^_chemical_formula_sum\s+'?([^'\n]+?)'?\s*$", re.MULTILINE)
_FORMULA_TERM = re.compile(r"([A-Z][a-z]?)(\d*)")
_ACTION = {symbol: action for action, symbol in enumerate(ELEMENTS)}


class Labels(NamedTuple):
    """Published labels of one split, row ``i`` of each array being one crystal."""

    counts: NDArray[np.float64]
    """Atoms of every element in the cell, shape ``(rows, 88)``."""
    total_energy_ry: NDArray[np.float64]
    formation_energy_ev: NDArray[np.float64]


def composition(cif: str) -> NDArray[np.float64]:
    """Atom counts of one CIF, read off its ``_chemical_formula_sum`` line.

    The line alone is enough, and a hundred times faster than parsing the structure.
    """
    match = _FORMULA_SUM.search(cif)
    if match is None:
        raise SystemExit("error: a CIF of the data has no _chemical_formula_sum line")
    counts = np.zeros(len(ELEMENTS))
    for symbol, number in _FORMULA_TERM.findall(match.group(1)):
        if symbol not in _ACTION:
            raise SystemExit(f"error: element {symbol} is not one of the {len(ELEMENTS)} elements")
        counts[_ACTION[symbol]] += int(number or 1)
    return counts


def read_rows(path: Path) -> Iterator[dict[str, str]]:
    """Yield the rows of a gzipped CSV file."""
    if not path.is_file():
        raise SystemExit(f"error: {path} does not exist; point --data to the data folder")
    with gzip.open(path, "rt", encoding="utf-8", newline="") as handle:
        yield from csv.DictReader(handle)


def read_labels(data: Path, split: str) -> Labels:
    """Read the labels of one split together with the compositions they belong to."""
    labels = {
        int(row["index"]): (
            float(row["total_energy_ry"]),
            float(row["formation_energy_ev_per_atom"]),
        )
        for row in read_rows(data / "qe" / "labels.csv.gz")
        if row["split"] == split
    }
    counts, energies = [], []
    # Labels are keyed by the row's position; the unnamed first column may hold another number.
    for position, row in enumerate(read_rows(data / "mp20" / f"{split}.csv.gz")):
        if position in labels:
            counts.append(composition(row["cif"]))
            energies.append(labels[position])
    if not labels or len(counts) != len(labels):
        raise SystemExit(f"error: found {len(counts)} crystals for {len(labels)} {split} labels")
    total, formation = np.array(energies).T
    return Labels(np.array(counts), total, formation)


def solve(labels: Labels) -> NDArray[np.float64]:
    """Reference energy of every element (Ry per atom), by least squares over the labels."""
    n_atoms = labels.counts.sum(axis=1)
    elemental = labels.total_energy_ry - labels.formation_energy_ev * n_atoms / RY_IN_EV
    energies, _, rank, _ = np.linalg.lstsq(labels.counts, elemental, rcond=None)
    if rank < len(ELEMENTS):
        raise SystemExit(f"error: the labels determine {rank} of {len(ELEMENTS)} elements only")
    return energies


def largest_residual(labels: Labels, energies: NDArray[np.float64]) -> float:
    """Largest absolute error (eV per atom) of equation (15) on these labels."""
    n_atoms = labels.counts.sum(axis=1)
    predicted = (labels.total_energy_ry - labels.counts @ energies) / n_atoms * RY_IN_EV
    return float(np.abs(predicted - labels.formation_energy_ev).max())


def compare(energies: dict[str, float], path: Path) -> float:
    """Largest difference (Ry) from a table with columns element, total_energy_ry_per_atom."""
    with path.open(encoding="utf-8", newline="") as handle:
        table = {
            row["element"]: float(row["total_energy_ry_per_atom"]) for row in csv.DictReader(handle)
        }
    if set(table) != set(energies):
        raise SystemExit(f"error: {path} and the solution do not cover the same elements")
    return max(abs(table[symbol] - energy) for symbol, energy in energies.items())


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Command line of the script."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    data = os.environ.get("CRYSTAL_GYM_DATA")
    parser.add_argument(
        "--data",
        type=Path,
        default=Path(data) if data else None,
        help="data folder holding mp20/ and qe/ (default: the variable CRYSTAL_GYM_DATA)",
    )
    parser.add_argument("--output", type=Path, default=DEFAULT_OUTPUT, help="JSON file to write")
    arguments = parser.parse_args(argv)
    if arguments.data is None:
        parser.error("give the data folder with --data or the variable CRYSTAL_GYM_DATA")
    return arguments


def belongings(path: Path) -> dict[str, Any]:
    """Return settings and pseudopotentials as the present file names them."""
    present = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    settings = PRESETS["labels"].energy_key
    return {"settings": settings, "pseudopotentials": present.get("pseudopotentials", {})}


def main(argv: list[str] | None = None) -> int:
    """Solve, write the JSON file and report how well equation (15) holds."""
    arguments = parse_arguments(argv)
    train = read_labels(arguments.data, "train")
    solution = solve(train)
    rounded = np.round(solution, 8)
    exact_residual = largest_residual(train, solution)
    rounded_residual = largest_residual(train, rounded)
    energies = {symbol: float(e) for symbol, e in zip(ELEMENTS, rounded, strict=True)}
    result = {
        "unit": "Ry per atom",
        "source": (
            "Least-squares solution of equation (15), E_form = (E_tot - sum_i n_i e_i)/N * "
            f"{RY_IN_EV} eV, for the {len(ELEMENTS)} e_i over the {len(train.counts):,} "
            "nonmetal training labels (total and formation energy) published by "
            "Govindarajan et al. 2024, doi 10.1039/d4dd00024b, on MP-20; largest residual "
            f"{exact_residual:.1e} eV/atom, {rounded_residual:.1e} eV/atom after rounding to "
            "1e-8 Ry. Computed by scripts/solve_reference_energies.py."
        ),
        # What they belong to is found out by scripts/check_references.py, not by this equation.
        **belongings(arguments.output),
        "energies": energies,
    }
    arguments.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(f"wrote {arguments.output}")
    print(f"train: {len(train.counts)} labels, largest residual {rounded_residual:.2e} eV/atom")
    validation = read_labels(arguments.data, "val")
    residual = largest_residual(validation, rounded)
    print(f"val:   {len(validation.counts)} labels, largest residual {residual:.2e} eV/atom")
    table = arguments.data / "qe" / "reference_energies.csv"
    if table.is_file():
        print(f"largest difference from {table.name}: {compare(energies, table):.1e} Ry")
    return 0


if __name__ == "__main__":
    sys.exit(main())
