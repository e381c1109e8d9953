"""Published labels calculated again: how far energy and gap are off.

python benchmarks/parity.py --data FOLDER [--pseudo FOLDER]    (FOLDER with mp20/ and qe/)
"""

import argparse
from pathlib import Path

from crystal_gym.cdvae import read_cdvae_csv
from crystal_gym.datasets.labels import read_labels
from crystal_gym.oracles import EspressoOracle
from crystal_gym.structures import parse_cif

# (split, row, total magnetization for odd numbers of electrons): s, p and d elements, a noble gas.
ROWS = [
    ("train", 3476, 1),
    ("train", 12730, 1),
    ("train", 26761, 1),
    ("train", 20385, 1),
    ("train", 2848, 1),
    ("train", 25408, 1),
    ("train", 22532, 1),
    ("val", 5380, 1),
    ("val", 3511, 1),
    ("train", 19289, 1),
    ("train", 24526, 1),
    ("train", 10798, 3),
]


def main() -> None:
    """Print one line of a table for each crystal."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--pseudo", type=Path)
    options = parser.parse_args()
    rows, labels = {}, {}
    for split in ("train", "val"):
        path = next((options.data / "mp20").glob(f"{split}.csv*"))
        rows[split] = {row.position: row for row in read_cdvae_csv(path)[0]}
        labels[split] = {x.position: x for x in read_labels(options.data, split)}
    print("| row | crystal | electrons | energy (mRy/cell) | gap (meV) | wall (s) |")
    print("|---|---|---|---|---|---|")
    for split, row, magnetization in ROWS:
        oracle = EspressoOracle(
            "labels", pseudopotentials=options.pseudo, magnetizations=(magnetization,)
        )
        structure, known = parse_cif(rows[split][row].cif), labels[split][row]
        (found,) = oracle.evaluate([structure])
        name = structure.composition.reduced_formula
        if found.total_energy_ry is None or found.band_gap_ev is None:
            print(f"| {split} {row} | {name} | | {found.status} | | |", flush=True)
            continue
        energy = 1e3 * (found.total_energy_ry - known.total_energy_ry)
        gap = 1e3 * (found.band_gap_ev - max(0.0, known.band_gap_ev))
        spin = f", M = {magnetization}" if "magnetization" in found.details else ""
        print(
            f"| {split} {row} | {name} | {found.details['n_electrons']}{spin} | {energy:+.5f} | "
            f"{gap:+.2f} | {found.wall_s:.1f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
