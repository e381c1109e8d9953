#!/usr/bin/env python3
"""Find out which pseudopotentials are the ones behind the published labels.

For each element the cheapest labelled crystal that holds it is calculated again (preset ``fast``).
The total energies agree within a mRy if all its files are the ones that were used, and differ by
whole Rydbergs if not. The elements that were found to agree belong under ``pseudopotentials`` in
``crystal_gym/data/reference_energies.json``.

A crystal that disagrees convicts the only one of its elements that no other crystal clears.

Examples::

    python scripts/check_references.py --data "$CRYSTAL_GYM_DATA" --elements Mg Cu
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

from crystal_gym.cdvae import read_cdvae_csv
from crystal_gym.datasets.labels import read_labels
from crystal_gym.labelling import label
from crystal_gym.oracles import CachedOracle, EspressoOracle
from crystal_gym.structures import parse_cif

TOLERANCE_RY = 1e-3
_ATOM = re.compile(r"^ +([A-Z][a-z]?) +[A-Z][a-z]?\d+ ", re.MULTILINE)


def cheapest(data: Path, oracle: EspressoOracle, wanted: list[str], most_sites: int) -> dict:
    """Return (structure, published energy in Ry) of one small crystal for each element."""
    found: dict[str, tuple[float, str, float]] = {}
    files = oracle.pseudopotentials
    for split in ("train", "val"):
        path = next((data / "mp20").glob(f"{split}.csv*"))
        rows = {row.position: row for row in read_cdvae_csv(path)[0]}
        for entry in read_labels(data, split):
            cif = rows[entry.position].cif
            atoms = _ATOM.findall(cif)
            if len(atoms) > most_sites or any(a not in files for a in atoms):
                continue
            electrons = sum(files[a].valence for a in atoms)
            cost = electrons**2 * (2 if electrons % 2 else 1)
            for element in set(atoms) & set(wanted):
                if element not in found or cost < found[element][0]:
                    found[element] = cost, cif, entry.total_energy_ry
    return {e: (parse_cif(cif), energy) for e, (_, cif, energy) in found.items()}


def main(argv: list[str] | None = None) -> int:
    """Print one line for each element."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder with mp20/ and qe/")
    parser.add_argument("--pseudo", type=Path, help="folder of pseudopotentials")
    parser.add_argument("--elements", nargs="+", help="only these")
    parser.add_argument("--cache", default="references.db", help="database (%(default)s)")
    parser.add_argument("--most-sites", type=int, default=12)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args(argv)
    calculator = EspressoOracle("fast", pseudopotentials=options.pseudo, references=None)
    wanted = options.elements or list(calculator.pseudopotentials)
    chosen = cheapest(options.data, calculator, wanted, options.most_sites)
    oracle = CachedOracle(calculator, options.cache)
    structures = [structure for structure, _ in chosen.values()]
    results = label(structures, oracle, workers=options.workers, progress=True)
    for (element, (structure, energy)), result in zip(chosen.items(), results, strict=True):
        formula = structure.composition.reduced_formula
        if result.total_energy_ry is None:
            print(f"{element:<2} unknown: {formula} {result.status}")
            continue
        difference = result.total_energy_ry - energy
        verdict = "agrees" if abs(difference) < TOLERANCE_RY else "DIFFERS"
        print(f"{element:<2} {verdict}: {formula} {difference:+.6f} Ry")
    for element in sorted(set(wanted) - set(chosen)):
        print(f"{element:<2} unknown: no labelled crystal of at most {options.most_sites} sites")
    return 0


if __name__ == "__main__":
    sys.exit(main())
