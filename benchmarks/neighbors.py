"""Compare `crystal_gym.neighbors` with pymatgen's CrystalNN in result and in CPU time.

Usage: python benchmarks/neighbors.py --csv train.csv.gz --count 1000

The CSV is one of MP-20's, with a column `cif`. Reading and reducing the structures is not timed.
"""

import argparse
import csv
import gzip
import os
import sys
import time
import warnings
from pathlib import Path

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[variable] = "1"  # before numpy is imported, or it has no effect

import numpy as np  # noqa: E402
from pymatgen.analysis.local_env import CrystalNN  # noqa: E402
from pymatgen.core import Structure  # noqa: E402

from crystal_gym.neighbors import crystal_nn_edges  # noqa: E402


def read_cifs(path: Path, count: int, seed: int) -> list[str]:
    """Read the CIF text of `count` crystals drawn without replacement."""
    csv.field_size_limit(10_000_000)
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", newline="") as stream:
        cifs = [row["cif"] for row in csv.DictReader(stream)]
    drawn = np.random.default_rng(seed).permutation(len(cifs))[:count]
    return [cifs[index] for index in drawn]


def reduced_structure(cif: str) -> Structure:
    """Parse a CIF into the Niggli-reduced structure with all sites in the home cell."""
    structure = Structure.from_str(cif, fmt="cif").get_reduced_structure()
    frac_coords = structure.frac_coords % 1.0
    frac_coords[frac_coords == 1.0] = 0.0
    return Structure(structure.lattice, structure.species, frac_coords)


def own_edges(structure: Structure) -> np.ndarray | None:
    """Rows (source, target, image) by this package, or None where it finds no polyhedron."""
    try:
        index, image, _ = crystal_nn_edges(structure.lattice.matrix, structure.frac_coords)
    except ValueError:
        return None
    return np.column_stack([index.T, image])


def pymatgen_edges(structure: Structure) -> np.ndarray | None:
    """Rows (source, target, image) by pymatgen, or None where it finds no polyhedron."""
    finder = CrystalNN(distance_cutoffs=None, x_diff_weight=-1, porous_adjustment=False)
    edges = set()
    try:
        for source in range(len(structure)):
            for neighbor in finder.get_nn_info(structure, source):
                target, image = neighbor["site_index"], tuple(int(x) for x in neighbor["image"])
                edges.add((source, target, *image))
                edges.add((target, source, *(-x for x in image)))
    except (RuntimeError, ValueError):
        return None
    return np.array(sorted(edges), dtype=np.int64).reshape(-1, 5)


def agree(first: np.ndarray | None, second: np.ndarray | None) -> bool:
    """Tell whether two results are the same, failures included."""
    if first is None or second is None:
        return first is second
    return np.array_equal(first, second)


def main() -> int:
    """Run the comparison and print its summary."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--csv", type=Path, required=True, help="a CSV of MP-20, may be gzipped")
    parser.add_argument("--count", type=int, default=1000, help="number of crystals (1000)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the draw (0)")
    options = parser.parse_args()
    if not options.csv.is_file():
        print(f"There is no file {options.csv}; pass the path of one of MP-20's CSV files.")
        return 1

    warnings.filterwarnings("ignore", module="pymatgen")
    structures = [
        reduced_structure(cif) for cif in read_cifs(options.csv, options.count, options.seed)
    ]
    own_edges(structures[0])
    pymatgen_edges(structures[0])

    own_seconds = pymatgen_seconds = 0.0
    identical = 0
    for structure in structures:
        start = time.process_time()
        own = own_edges(structure)
        middle = time.process_time()
        reference = pymatgen_edges(structure)
        end = time.process_time()
        own_seconds += middle - start
        pymatgen_seconds += end - middle
        identical += agree(own, reference)

    count = len(structures)
    print(f"crystals           {count}")
    print(f"identical          {identical}")
    print(
        f"pymatgen           {pymatgen_seconds:.2f} CPU s, {1e3 * pymatgen_seconds / count:.2f} ms"
    )
    print(f"crystal_gym        {own_seconds:.2f} CPU s, {1e3 * own_seconds / count:.2f} ms")
    print(f"ratio              {pymatgen_seconds / own_seconds:.1f}")
    return 0 if identical == count else 1


if __name__ == "__main__":
    sys.exit(main())
