"""The edges of `crystal_gym.neighbors` against pymatgen's CrystalNN."""

import csv
import gzip
import os
import warnings
from pathlib import Path

import numpy as np
import pytest
from pymatgen.analysis.graphs import StructureGraph
from pymatgen.analysis.local_env import CrystalNN
from pymatgen.core import Lattice, Structure

from crystal_gym.neighbors import crystal_nn_edges

FCC = [[0, 0, 0], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]]
HEXAGONAL_PAIR = [[1 / 3, 2 / 3, 0], [2 / 3, 1 / 3, 0.5]]

DISULFIDE_LAYER = [[1 / 3, 2 / 3, 0.25], [1 / 3, 2 / 3, 0.377], [1 / 3, 2 / 3, 0.123]]
CHALCOPYRITE_HALF = [
    [0, 0, 0],
    [0, 0.5, 0.25],
    [0, 0, 0.5],
    [0, 0.5, 0.75],
    [0.257, 0.25, 0.125],
    [0.743, 0.75, 0.125],
    [0.75, 0.257, 0.875],
    [0.25, 0.743, 0.875],
]
TEXTBOOK_COORDINATION = {
    "rocksalt": 6,
    "zinc blende": 4,
    "wurtzite": 4,
    "simple cubic": 6,
    "face-centred cubic": 12,
    "hexagonal close-packed": 12,
}


def shifted(positions, by):
    return ((np.asarray(positions) + by) % 1.0).tolist()


def random_triclinic(seed, n_sites=6):
    rng = np.random.default_rng(seed)
    lattice = Lattice.from_parameters(*rng.uniform(5, 7, 3), *rng.uniform(70, 110, 3))
    return lattice.matrix, rng.random((n_sites, 3))


def crystals():
    """Name -> (lattice vectors in Å, fractional coordinates)."""
    cube = np.eye(3)
    fcc_primitive = np.array([[0, 1, 1], [1, 0, 1], [1, 1, 0]]) / 2
    return {
        "rocksalt": (5.64 * cube, FCC + shifted(FCC, 0.5)),
        "zinc blende": (5.43 * fcc_primitive, [[0, 0, 0], [0.25, 0.25, 0.25]]),
        "wurtzite": (
            Lattice.hexagonal(3.25, 5.21).matrix,
            HEXAGONAL_PAIR + shifted(HEXAGONAL_PAIR, [0, 0, 0.382]),
        ),
        "fluorite": (
            5.46 * fcc_primitive,
            [[0, 0, 0], [0.25, 0.25, 0.25], [0.75, 0.75, 0.75]],
        ),
        "perovskite": (
            3.9 * cube,
            [[0, 0, 0], [0.5, 0.5, 0.5], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]],
        ),
        "face-centred cubic": (3.6 * fcc_primitive, [[0, 0, 0]]),
        "body-centred cubic": (
            2.87 * np.array([[-1, 1, 1], [1, -1, 1], [1, 1, -1]]) / 2,
            [[0, 0, 0]],
        ),
        "hexagonal close-packed": (
            Lattice.hexagonal(2.95, 4.68).matrix,
            [[1 / 3, 2 / 3, 0.25], [2 / 3, 1 / 3, 0.75]],
        ),
        "simple cubic": (3.35 * cube, [[0.3, 0.1, 0.7]]),
        "chalcopyrite": (
            Lattice.tetragonal(5.29, 10.42).matrix,
            CHALCOPYRITE_HALF + shifted(CHALCOPYRITE_HALF, 0.5),
        ),
        "layered": (
            Lattice.hexagonal(3.16, 12.3).matrix,
            DISULFIDE_LAYER + shifted(DISULFIDE_LAYER, [1 / 3, -1 / 3, 0.5]),
        ),
        "monolayer in vacuum": (Lattice.hexagonal(2.46, 15.0).matrix, HEXAGONAL_PAIR[:1]),
        "atom in a box": (12.0 * cube, [[0.5, 0.5, 0.5]]),
        "skewed cell": (
            np.array([[1, 0, 0], [2, 1, 0], [-3, 2, 1]]) @ (4.0 * cube),
            [[0, 0, 0]],
        ),
        "triclinic": random_triclinic(seed=7),
    }


CRYSTALS = crystals()


def pymatgen_finder():
    return CrystalNN(distance_cutoffs=None, x_diff_weight=-1, porous_adjustment=False)


def pymatgen_edges(structure):
    edges = set()
    finder = pymatgen_finder()
    for source in range(len(structure)):
        for neighbor in finder.get_nn_info(structure, source):
            target, image = neighbor["site_index"], tuple(int(x) for x in neighbor["image"])
            edges.add((source, target, *image))
            edges.add((target, source, *(-x for x in image)))
    return sorted(edges)


def edge_rows(lattice, frac_coords):
    index, image, _ = crystal_nn_edges(np.asarray(lattice), np.asarray(frac_coords, dtype=float))
    return [tuple(row) for row in np.column_stack([index.T, image]).tolist()]


def structure_of(name):
    lattice, frac_coords = CRYSTALS[name]
    return Structure(lattice, ["C"] * len(frac_coords), frac_coords)


@pytest.mark.parametrize("name", CRYSTALS)
def test_edges_equal_those_of_pymatgen(name):
    assert edge_rows(*CRYSTALS[name]) == pymatgen_edges(structure_of(name))


@pytest.mark.parametrize("seed", range(8))
def test_edges_equal_those_of_pymatgen_in_random_cells(seed):
    lattice, frac_coords = random_triclinic(seed, n_sites=1 + seed)
    structure = Structure(lattice, ["C"] * len(frac_coords), frac_coords)
    assert edge_rows(lattice, frac_coords) == pymatgen_edges(structure)


@pytest.mark.parametrize("name", ["rocksalt", "face-centred cubic", "wurtzite", "triclinic"])
def test_edges_equal_both_directions_of_a_structure_graph(name):
    structure = structure_of(name)
    graph = StructureGraph.from_local_env_strategy(structure, pymatgen_finder())
    edges = set()
    for source, target, data in graph.graph.edges(data=True):
        image = tuple(int(x) for x in data["to_jimage"])
        edges.add((source, target, *image))
        edges.add((target, source, *(-x for x in image)))
    assert edge_rows(*CRYSTALS[name]) == sorted(edges)


@pytest.mark.parametrize(("name", "coordination"), TEXTBOOK_COORDINATION.items())
def test_coordination_numbers_of_textbook_structures(name, coordination):
    index, _, _ = crystal_nn_edges(*map(np.asarray, CRYSTALS[name]))
    assert set(np.bincount(index[0]).tolist()) == {coordination}


@pytest.mark.parametrize("name", CRYSTALS)
def test_edges_are_sorted_unique_and_come_in_both_directions(name):
    rows = edge_rows(*CRYSTALS[name])
    assert rows == sorted(set(rows))
    assert {(j, i, -a, -b, -c) for i, j, a, b, c in rows} == set(rows)


@pytest.mark.parametrize("name", ["rocksalt", "triclinic", "layered"])
def test_lengths_are_the_distances_between_the_ends(name):
    structure = structure_of(name)
    index, image, length = crystal_nn_edges(structure.lattice.matrix, structure.frac_coords)
    assert index.dtype == image.dtype == np.int64
    assert index.shape == (2, len(length))
    assert image.shape == (len(length), 3)
    expected = [
        structure.get_distance(i, j, jimage=cell)
        for (i, j), cell in zip(index.T, image, strict=True)
    ]
    np.testing.assert_allclose(length, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", CRYSTALS)
def test_permuting_the_sites_permutes_the_edges(name):
    lattice, frac_coords = CRYSTALS[name]
    order = np.random.default_rng(0).permutation(len(frac_coords))
    place = np.argsort(order)
    permuted = edge_rows(lattice, np.asarray(frac_coords)[order])
    expected = [(place[i], place[j], *cell) for i, j, *cell in edge_rows(lattice, frac_coords)]
    assert permuted == sorted(expected)


@pytest.mark.parametrize("name", CRYSTALS)
def test_moving_sites_by_lattice_vectors_changes_only_the_images(name):
    lattice, frac_coords = CRYSTALS[name]
    cells = np.random.default_rng(1).integers(-3, 4, (len(frac_coords), 3))
    moved = edge_rows(lattice, np.asarray(frac_coords) + cells)
    expected = [
        (i, j, *(np.array(cell) + cells[i] - cells[j]).tolist())
        for i, j, *cell in edge_rows(lattice, frac_coords)
    ]
    assert moved == sorted(expected)


@pytest.mark.parametrize(
    ("lattice", "frac_coords", "message"),
    [
        (np.eye(2), np.zeros((1, 3)), "lattice has shape"),
        (np.eye(3), np.zeros((0, 3)), "frac_coords has shape"),
        (np.eye(3), np.zeros(3), "frac_coords has shape"),
        (3 * np.eye(3), np.full((1, 3), np.nan), "not finite"),
        (np.ones((3, 3)), np.zeros((1, 3)), "volume"),
    ],
)
def test_what_is_no_crystal_is_refused(lattice, frac_coords, message):
    with pytest.raises(ValueError, match=message):
        crystal_nn_edges(lattice, frac_coords)


def test_a_molecule_without_polyhedra_is_refused_as_by_pymatgen():
    corners = np.array([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]])
    lattice, frac_coords = 10.0 * np.eye(3), 0.5 + 0.08 * corners
    with pytest.raises(ValueError, match="No Voronoi neighbors"):
        pymatgen_edges(Structure(lattice, ["P"] * 4, frac_coords))
    with pytest.raises(ValueError, match="Voronoi polyhedron without facets"):
        crystal_nn_edges(lattice, frac_coords)


@pytest.mark.parametrize("seed", [0, 2, 5, 8])
def test_a_molecule_in_a_box_equals_that_of_pymatgen(seed):
    frac_coords = 0.5 + np.random.default_rng(seed).normal(scale=0.12, size=(3 + seed % 3, 3))
    lattice = 10.0 * np.eye(3)
    structure = Structure(lattice, ["C"] * len(frac_coords), frac_coords)
    assert edge_rows(lattice, frac_coords) == pymatgen_edges(structure)


def mp20_train_csv():
    roots = [Path(__file__).resolve().parents[2] / "shared" / "data"]
    if "CRYSTAL_GYM_DATA" in os.environ:
        roots.insert(0, Path(os.environ["CRYSTAL_GYM_DATA"]))
    paths = [root / "mp20" / "train.csv.gz" for root in roots]
    return next((path for path in paths if path.is_file()), None)


@pytest.mark.data
def test_edges_equal_those_of_pymatgen_for_real_crystals():
    path = mp20_train_csv()
    if path is None:
        pytest.skip("mp20/train.csv.gz is neither under CRYSTAL_GYM_DATA nor ../shared/data")
    csv.field_size_limit(10_000_000)
    with gzip.open(path, "rt", newline="") as stream:
        cifs = [row["cif"] for row in csv.DictReader(stream)]
    drawn = np.random.default_rng(11).choice(len(cifs), 50, replace=False)
    for row in drawn:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            structure = Structure.from_str(cifs[row], fmt="cif").get_reduced_structure()
        ours = edge_rows(structure.lattice.matrix, structure.frac_coords)
        assert ours == pymatgen_edges(structure), f"row {row} of {path.name}"
