"""`crystal_gym.graphs`: orders, symmetry, hashes and the cache of geometries."""

import sqlite3

import numpy as np
import pytest
from made_crystals import NAMES, STRUCTURES, edge_set, parts, replaced
from pymatgen.core import Lattice, Structure

from crystal_gym.graphs import (
    GeometryCache,
    adjacency,
    analyse_geometry,
    breadth_first_order,
    canonical_order,
    geometry_key,
    lattice_parameters,
    symmetry_permutations,
)
from crystal_gym.structures import cell_from_structure

# Space groups of the bare sites, all alike: rocksalt becomes simple cubic, fluorite too.
BARE_SPACE_GROUPS = {"rocksalt": 221, "fluorite": 225, "perovskite": 221, "triclinic": 1}


def cell_and_graph(structure):
    cell = cell_from_structure(structure, "x")
    return cell, analyse_geometry(cell.lattice, cell.frac_coords)


def assert_same_skeleton(one, other):
    (cell, graph), (other_cell, other_graph) = one, other
    assert cell.key == other_cell.key
    np.testing.assert_array_equal(cell.lattice, other_cell.lattice)
    np.testing.assert_array_equal(cell.frac_coords, other_cell.frac_coords)
    np.testing.assert_array_equal(graph.edge_index, other_graph.edge_index)
    np.testing.assert_array_equal(graph.edge_image, other_graph.edge_image)
    np.testing.assert_array_equal(graph.edge_length, other_graph.edge_length)
    assert graph.space_group_number == other_graph.space_group_number


def with_permuted_species(structure):
    order = np.random.default_rng(len(structure)).permutation(len(structure))
    return replaced(structure, [structure[int(i)].specie for i in order])


def with_one_element(structure):
    return replaced(structure, ["O"] * len(structure))


@pytest.mark.parametrize("change", [with_permuted_species, with_one_element])
@pytest.mark.parametrize("name", NAMES)
def test_graph_and_site_order_are_blind_to_the_species(name, change):
    structure = STRUCTURES[name]
    assert_same_skeleton(cell_and_graph(structure), cell_and_graph(change(structure)))


@pytest.mark.data
def test_graph_and_site_order_of_100_real_crystals_are_blind_to_the_species(real_structures):
    assert len(real_structures) == 100
    for structure in real_structures:
        true = cell_and_graph(structure)
        assert_same_skeleton(true, cell_and_graph(with_permuted_species(structure)))
        assert_same_skeleton(true, cell_and_graph(with_one_element(structure)))


@pytest.mark.parametrize("name", NAMES)
def test_site_numbers_do_not_depend_on_the_order_of_the_source_file(name):
    structure = STRUCTURES[name]
    order = np.random.default_rng(1).permutation(len(structure)).tolist()
    shuffled = replaced(structure, [s.specie for s in structure])
    shuffled = type(structure).from_sites([shuffled[i] for i in order])
    one, other = cell_and_graph(structure), cell_and_graph(shuffled)
    assert_same_skeleton(one, other)
    np.testing.assert_array_equal(one[0].reference, other[0].reference)


def test_the_canonical_order_is_not_the_order_by_position():
    cells = [cell_from_structure(STRUCTURES[name]) for name in NAMES]
    by_position = [np.lexsort(np.round(c.frac_coords, 6).T[::-1]).tolist() for c in cells]
    assert any(order != sorted(order) for order in by_position)


def test_the_canonical_order_is_a_permutation():
    structure = STRUCTURES["layered"]
    order = canonical_order(structure.lattice.matrix, structure.frac_coords)
    assert sorted(order.tolist()) == list(range(len(structure)))


@pytest.mark.parametrize("name", NAMES)
def test_lattice_parameters_are_those_of_pymatgen(name):
    lattice = STRUCTURES[name].lattice
    expected = [*lattice.abc, *lattice.angles]
    np.testing.assert_allclose(lattice_parameters(lattice.matrix), expected, rtol=0, atol=1e-9)


# -- content hash -------------------------------------------------------------------------------


def test_the_key_does_not_depend_on_the_order_of_the_sites():
    structure = STRUCTURES["triclinic"]
    lattice, sites = structure.lattice.matrix, structure.frac_coords
    assert geometry_key(lattice, sites) == geometry_key(lattice, sites[::-1])


def test_the_key_takes_a_site_at_the_upper_face_for_the_one_at_the_lower():
    lattice = 4 * np.eye(3)
    below = np.array([[0.99999999, 0.5, 0.5]])
    assert geometry_key(lattice, below) == geometry_key(lattice, np.array([[0.0, 0.5, 0.5]]))


def test_the_key_survives_eight_decimals():
    structure = STRUCTURES["wurtzite"]
    lattice, sites = structure.lattice.matrix, structure.frac_coords
    rounded = geometry_key(np.round(lattice, 8), np.round(sites, 8))
    assert rounded == geometry_key(lattice, sites)


@pytest.mark.parametrize("what", ["site", "cell"])
def test_the_key_tells_different_geometries_apart(what):
    structure = STRUCTURES["triclinic"]
    lattice, sites = structure.lattice.matrix.copy(), structure.frac_coords.copy()
    before = geometry_key(lattice, sites)
    (sites if what == "site" else lattice)[0, 0] += 1e-3
    assert geometry_key(lattice, sites) != before


# -- breadth-first orders -----------------------------------------------------------------------

PATH = [[1], [0, 2], [1, 3], [2]]
TWO_PARTS = [[2], [3], [0], [1]]


@pytest.mark.parametrize(
    ("neighbours", "start", "expected"),
    [
        pytest.param(PATH, 0, [0, 1, 2, 3], id="path from its end"),
        pytest.param(PATH, 2, [2, 1, 3, 0], id="path from the middle"),
        pytest.param(TWO_PARTS, 1, [1, 3, 0, 2], id="second part first"),
        pytest.param([[], [], []], 1, [1, 0, 2], id="no bonds"),
    ],
)
def test_breadth_first_orders_by_hand(neighbours, start, expected):
    assert breadth_first_order(neighbours, start).tolist() == expected


def test_rank_decides_between_neighbours():
    star = [[1, 2, 3], [0], [0], [0]]
    assert breadth_first_order(star, 0, rank=[0, 3, 2, 1]).tolist() == [0, 3, 2, 1]


def test_rank_decides_which_part_comes_next():
    assert breadth_first_order([[], [], []], 1, rank=[2, 1, 0]).tolist() == [1, 2, 0]


@pytest.mark.parametrize("name", NAMES)
def test_every_order_reaches_every_site(made_set, name):
    skeleton = made_set[NAMES.index(name)]
    for start in range(skeleton.n_sites):
        order = breadth_first_order(skeleton.neighbours, start).tolist()
        assert order[0] == start
        assert sorted(order) == list(range(skeleton.n_sites))


@pytest.mark.parametrize("name", ["layered", "molecular"])
def test_the_disconnected_crystals_are_disconnected(made_set, name):
    skeleton = made_set[NAMES.index(name)]
    assert len(parts(skeleton.n_sites, skeleton.edge_index)) == 2


@pytest.mark.parametrize("name", ["layered", "molecular"])
def test_a_part_is_finished_before_the_next_begins(made_set, name):
    skeleton = made_set[NAMES.index(name)]
    for start in range(skeleton.n_sites):
        order = breadth_first_order(skeleton.neighbours, start)
        half = skeleton.n_sites // 2
        assert frozenset(order[:half].tolist()) in parts(skeleton.n_sites, skeleton.edge_index)


@pytest.mark.parametrize("name", NAMES)
def test_distance_from_the_start_never_falls_along_an_order(made_set, name):
    import networkx as nx

    skeleton = made_set[NAMES.index(name)]
    graph = nx.Graph(skeleton.edge_index.T.tolist())
    for start in range(skeleton.n_sites):
        distance = nx.single_source_shortest_path_length(graph, start)
        order = breadth_first_order(skeleton.neighbours, start).tolist()
        along = [distance[site] for site in order if site in distance]
        assert along == sorted(along)


@pytest.mark.parametrize("start", [-1, 4])
def test_a_start_outside_the_skeleton_is_refused(start):
    with pytest.raises(ValueError, match=f"start_site={start} is not a site: expected 0 to 3"):
        breadth_first_order(PATH, start)


def test_adjacency_names_each_neighbour_once_and_never_the_site_itself():
    edges = np.array([[0, 0, 0, 1, 2], [1, 1, 0, 0, 0]])
    assert adjacency(edges, 3) == [[1], [0], [0]]


# -- symmetry -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_symmetry_maps_the_graph_onto_itself(made_set, name):
    skeleton = made_set[NAMES.index(name)]
    bonds = sorted(map(tuple, skeleton.edge_index.T.tolist()))
    assert bonds
    for permutation in skeleton.permutations:
        moved = sorted(map(tuple, permutation[skeleton.edge_index].T.tolist()))
        assert moved == bonds


@pytest.mark.parametrize("name", NAMES)
def test_permutations_form_a_group_with_the_identity_first(made_set, name):
    rows = made_set[NAMES.index(name)].permutations
    assert rows[0].tolist() == list(range(rows.shape[1]))
    group = set(map(tuple, rows.tolist()))
    assert len(group) == len(rows)
    assert all(tuple(a[b].tolist()) in group for a in rows for b in rows)


@pytest.mark.parametrize(
    ("name", "count"), [("rocksalt", 2), ("perovskite", 6), ("triclinic", 1), ("fluorite", 2)]
)
def test_the_number_of_permutations_is_the_one_counted_by_hand(made_set, name, count):
    # perovskite: all 3! orders of the face centres; fluorite: the two anions.
    assert len(made_set[NAMES.index(name)].permutations) == count


@pytest.mark.parametrize(("name", "number"), BARE_SPACE_GROUPS.items())
def test_the_space_group_is_that_of_the_bare_sites(made_set, name, number):
    assert made_set[NAMES.index(name)].space_group_number == number


def test_a_supercell_has_each_translation_after_each_rotation_once():
    structure = Structure(Lattice.cubic(3), ["Po"], [[0, 0, 0]])
    structure.make_supercell([3, 3, 3])
    structure.translate_sites(range(27), [-1e-17, 0.999999999999, 0.2], to_unit_cell=False)
    rows, number = symmetry_permutations(structure.lattice.matrix, structure.frac_coords)
    assert number == 221
    assert len(rows) == 27 * 48
    apart = structure.distance_matrix
    for row in rows:
        np.testing.assert_allclose(apart[np.ix_(row, row)], apart, atol=1e-6)


def test_overlapping_sites_have_no_symmetry():
    with pytest.raises(ValueError, match="spglib found no symmetry"):
        symmetry_permutations(4 * np.eye(3), np.zeros((2, 3)))


# -- cache --------------------------------------------------------------------------------------


@pytest.fixture
def geometry():
    structure = STRUCTURES["wurtzite"]
    return analyse_geometry(structure.lattice.matrix, structure.frac_coords)


def test_a_cached_geometry_comes_back_as_it_was(tmp_path, geometry):
    cache = GeometryCache(tmp_path / "new" / "geometry.sqlite")
    cache.put({"a": geometry})
    found = cache.get(["a", "b"])
    assert list(found) == ["a"]
    for name in ("edge_index", "edge_image", "edge_length", "permutations"):
        expected, value = getattr(geometry, name), getattr(found["a"], name)
        assert value.dtype == expected.dtype
        np.testing.assert_array_equal(value, expected)
    assert found["a"].space_group_number == geometry.space_group_number


def test_what_is_in_the_cache_stays(tmp_path, geometry):
    cache = GeometryCache(tmp_path / "geometry.sqlite")
    cache.put({"a": geometry})
    structure = STRUCTURES["triclinic"]
    cache.put({"a": analyse_geometry(structure.lattice.matrix, structure.frac_coords)})
    np.testing.assert_array_equal(cache.get(["a"])["a"].edge_index, geometry.edge_index)


def test_an_empty_cache_knows_nothing_and_makes_no_file(tmp_path):
    cache = GeometryCache(tmp_path / "geometry.sqlite")
    assert cache.get(["a"]) == {}
    assert not cache.path.exists()


def test_more_keys_than_a_query_holds_are_found(tmp_path, geometry):
    cache = GeometryCache(tmp_path / "geometry.sqlite")
    cache.put({"last": geometry})
    assert list(cache.get([*map(str, range(1200)), "last"])) == ["last"]


def test_a_cache_that_cannot_be_written_only_warns(tmp_path, geometry):
    (tmp_path / "file").write_text("in the way")
    with pytest.warns(UserWarning, match="graphs cannot be kept in"):
        GeometryCache(tmp_path / "file" / "geometry.sqlite").put({"a": geometry})


def test_a_damaged_cache_costs_time_not_results(tmp_path):
    from crystal_gym.skeletons import build_skeletons

    path = tmp_path / "geometry.sqlite"
    path.write_bytes(b"this is no database" * 100)
    with pytest.warns(UserWarning, match=r"geometry\.sqlite"):
        skeletons, _ = build_skeletons(
            [cell_from_structure(STRUCTURES["rocksalt"])], cache=GeometryCache(path), workers=1
        )
    assert len(skeletons) == 1


def test_an_interrupted_write_to_the_cache_leaves_no_half_entry(tmp_path, geometry):
    cache = GeometryCache(tmp_path / "geometry.sqlite")
    cache.put({"a": geometry})
    connection = sqlite3.connect(cache.path)
    (name,) = connection.execute("SELECT name FROM sqlite_master WHERE type='table'").fetchone()
    connection.execute(f"INSERT INTO {name} SELECT 'b', arrays FROM {name}")
    connection.close()  # a kill before the commit
    assert list(cache.get(["a", "b"])) == ["a"]


def test_bonds_do_not_depend_on_a_shift_of_the_origin():
    structure = STRUCTURES["wurtzite"]
    lattice, sites = structure.lattice.matrix, structure.frac_coords
    one = analyse_geometry(lattice, sites)
    shifted = analyse_geometry(lattice, sites + [0.01, 0.02, 0.03])
    assert edge_set(one.edge_index, one.edge_image) == edge_set(
        shifted.edge_index, shifted.edge_image
    )
