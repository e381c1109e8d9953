"""A set of crystals as large as one likes, for load tests: known ones, tiled and strained.

python benchmarks/scale/make_crystals.py --count 100000 -o crystals.extxyz

Every crystal is a supercell of a calculated one, of at most 60 sites, under a small random strain
of its own, so that each is another skeleton with another graph. **Its labels are made up**: gap and
formation energy are those of the crystal it was made of, the total energy is that times the number
of cells. Crystal ``i`` depends on the seed and on ``i`` alone: the first thousand of a long file
are those of a short one.
"""

import argparse
import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from crystal_gym.elements import tokens_to_symbols
from crystal_gym.files import atomic_path
from crystal_gym.oracles import PropertyTable, Status, load_table
from crystal_gym.sets import DATASETS, dataset_dir

MAX_SITES = 60
LONGEST_TILING = 4
STRAIN = 0.02
"""Standard deviation of the entries of the strain."""


def default_sources() -> list[str]:
    """Return the bundled set, and MP-20 where it is built."""
    built = (dataset_dir(DATASETS["mp20"]) / "table.npz").exists()
    return ["mini", "mp20"] if built else ["mini"]


def made_crystals(tables: list[PropertyTable], count: int, seed: int = 0) -> Iterator[str]:
    """Yield crystals as frames of an extended XYZ file."""
    known = [
        (table, int(entry))
        for table in tables
        for entry in np.flatnonzero(
            (table.status == Status.OK.value) & ~np.isnan(table.formation_energy_ev_per_atom)
        )
    ]
    for number in range(count):
        generator = np.random.default_rng([seed, number])
        table, entry = known[generator.integers(len(known))]
        yield _frame(table, entry, number, generator)


def _frame(table: PropertyTable, entry: int, number: int, generator: np.random.Generator) -> str:
    skeleton = table.skeletons[int(table.skeleton[entry])]
    tilings = [
        t
        for t in itertools.product(range(1, LONGEST_TILING + 1), repeat=3)
        if np.prod(t) * skeleton.n_sites <= MAX_SITES
    ]
    tiling = np.array(tilings[generator.integers(len(tilings))] if tilings else (1, 1, 1))
    strain = generator.normal(scale=STRAIN, size=(3, 3))
    lattice = skeleton.lattice @ (np.eye(3) + (strain + strain.T) / 2)
    cells = np.array(list(itertools.product(*map(range, tiling))))
    coords = (skeleton.frac_coords + cells[:, None]).reshape(-1, 3) @ lattice
    symbols = tokens_to_symbols(np.tile(table.entry_tokens(entry), len(cells)))
    found = table.properties(entry)
    values = {
        "Lattice": '"' + " ".join(f"{x:.9f}" for x in (lattice * tiling[:, None]).ravel()) + '"',
        "Properties": "species:S:1:pos:R:3",
        "pbc": '"T T T"',
        "material_id": f"made-{number:07d}-{skeleton.name}-{'x'.join(map(str, tiling))}",
        "total_energy_ry": found.total_energy_ry * len(cells),
        "formation_energy_ev_per_atom": found.formation_energy_ev_per_atom,
        "band_gap_ev": found.band_gap_ev,
        "provenance": f'"synthetic, for load tests: copied from {skeleton.name}"',
    }
    lines = [str(len(coords)), " ".join(f"{name}={value}" for name, value in values.items())]
    lines += [f"{s} {x:.9f} {y:.9f} {z:.9f}" for s, (x, y, z) in zip(symbols, coords, strict=True)]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=1_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sources", nargs="+", help="sets, or folders with a property table")
    parser.add_argument("-o", "--output", type=Path, default=Path("crystals.extxyz"))
    options = parser.parse_args()
    tables = [load_table(source) for source in options.sources or default_sources()]
    with atomic_path(options.output) as path, open(path, "w", encoding="utf-8") as file:
        file.writelines(made_crystals(tables, options.count, options.seed))
    print(f"{options.count:,} crystals of synthetic labels in {options.output}")


if __name__ == "__main__":
    main()
