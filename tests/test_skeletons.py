"""`crystal_gym.skeletons` and `crystal_gym.sets`: sets, files, names, paths."""

import zipfile

import numpy as np
import pytest
from made_crystals import NAMES, STRUCTURES, cif_text, edge_set, rocksalt, tokens_of
from pymatgen.io.ase import AseAtomsAdaptor

from crystal_gym.graphs import Geometry, GeometryCache
from crystal_gym.sets import load_skeletons
from crystal_gym.skeletons import SkeletonSet, build_skeletons, registered_set
from crystal_gym.structures import cell_from_structure

ARRAYS = (
    "frac_coords",
    "edge_index",
    "edge_image",
    "edge_length",
    "permutations",
    "source_rank",
    "reference",
    "lattice",
)


def assert_same_skeletons(one, other):
    assert one.name == other.name
    assert one.key == other.key
    assert one.space_group_number == other.space_group_number
    for name in ARRAYS:
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)


def test_a_skeleton_has_the_cells_name_sites_and_species(made_set, made_cells):
    for skeleton, cell in zip(made_set, made_cells, strict=True):
        assert skeleton.name == cell.name
        np.testing.assert_array_equal(skeleton.frac_coords, cell.frac_coords)
        np.testing.assert_array_equal(skeleton.reference, cell.reference)


def test_sizes_are_those_of_the_members(made_set):
    assert made_set.n_sites.tolist() == [s.n_sites for s in made_set] == [2, 4, 3, 5, 6, 6, 4]
    assert made_set.n_edges.tolist() == [s.n_edges for s in made_set]
    assert made_set.max_sites == 6
    assert made_set.max_edges == max(s.n_edges for s in made_set)


def test_the_reference_filling_is_the_source_crystal(made_set):
    from pymatgen.analysis.structure_matcher import StructureMatcher

    matcher = StructureMatcher(scale=False, primitive_cell=False)
    for skeleton in made_set:
        assert matcher.fit(skeleton.structure(skeleton.reference), STRUCTURES[skeleton.name])


def test_source_rank_leads_back_to_the_order_of_the_source(made_set):
    skeleton = made_set[NAMES.index("triclinic")]
    order = np.argsort(skeleton.source_rank)
    expected = tokens_of([s.specie for s in STRUCTURES["triclinic"]])
    np.testing.assert_array_equal(skeleton.reference[order], expected)


def test_negative_numbers_count_from_the_end(made_set):
    assert made_set[-1].name == NAMES[-1]


def test_a_number_beyond_the_set_is_an_index_error(made_set):
    with pytest.raises(IndexError):
        made_set[len(made_set)]


@pytest.mark.parametrize("which", [[4, 1], slice(2, 5), np.array([6, 0])])
def test_a_subset_holds_the_same_skeletons(made_set, which):
    numbers = np.arange(len(made_set))[which]
    for skeleton, number in zip(made_set[which], numbers, strict=True):
        assert_same_skeletons(skeleton, made_set[number])


def test_equivalent_fillings_have_one_canonical_name(made_set):
    skeleton = made_set[NAMES.index("perovskite")]
    names = {
        skeleton.canonical_tokens(skeleton.reference[permutation])
        for permutation in skeleton.permutations
    }
    assert len(names) == 1


def test_different_fillings_have_different_canonical_names(made_set):
    skeleton = made_set[NAMES.index("triclinic")]
    swapped = skeleton.reference.copy()
    swapped[[0, 1]] = swapped[[1, 0]]
    assert skeleton.canonical_tokens(swapped) != skeleton.canonical_tokens(skeleton.reference)


def test_empty_sites_of_a_structure_hold_the_dummy_species(made_set):
    structure = made_set[0].structure(np.array([0, tokens_of(["Na"])[0]]))
    assert [s.specie.symbol for s in structure] == ["X", "Na"]


# -- files --------------------------------------------------------------------------------------


def test_a_saved_set_comes_back_as_it_was(made_set, tmp_path):
    made_set.save(tmp_path / "set.npz")
    again = SkeletonSet.load(tmp_path / "set.npz")
    assert again.table_id == made_set.table_id
    for one, other in zip(made_set, again, strict=True):
        assert_same_skeletons(one, other)


def test_a_missing_file_is_file_not_found(tmp_path):
    with pytest.raises(FileNotFoundError):
        SkeletonSet.load(tmp_path / "none.npz")


@pytest.mark.parametrize("damage", ["truncated", "garbage", "empty", "flipped"])
def test_a_damaged_set_is_refused_by_name(made_set, tmp_path, damage):
    path = tmp_path / "set.npz"
    made_set.save(path)
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle] ^= 0xFF
    path.write_bytes(
        {
            "truncated": path.read_bytes()[:middle],
            "garbage": b"not an archive",
            "empty": b"",
            "flipped": bytes(content),
        }[damage]
    )
    with pytest.raises(ValueError, match=r"set\.npz is not a readable skeleton set"):
        SkeletonSet.load(path)


@pytest.mark.parametrize(("old", "new"), [(b"'<i", b"',8"), (b"}", b"("), (b"(", b"\\")])
def test_a_damaged_type_is_refused_by_name(made_set, tmp_path, old, new):
    """NumPy reads what an array is as Python text, and its checksum may fit."""
    path = tmp_path / "set.npz"
    made_set.save(path)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    damaged = members["edge_index.npy"].replace(old, new, 1)
    assert damaged != members["edge_index.npy"]
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in {**members, "edge_index.npy": damaged}.items():
            archive.writestr(name, content)
    with pytest.raises(ValueError, match=r"set\.npz is not a readable skeleton set"):
        SkeletonSet.load(path)


def test_another_format_is_refused(made_set, tmp_path):
    path = tmp_path / "set.npz"
    made_set.save(path)
    arrays = dict(np.load(path))
    np.savez(path, **{**arrays, "format": np.int64(99)})
    with pytest.raises(ValueError, match="holds skeleton format 99, expected 1"):
        SkeletonSet.load(path)


# -- table ids ----------------------------------------------------------------------------------


def test_a_table_id_is_an_integer_that_float32_holds(made_set):
    assert int(np.float32(made_set.table_id)) == made_set.table_id > 0


def test_subsets_have_other_table_ids(made_set):
    assert made_set[[0, 1]].table_id != made_set.table_id != made_set[[1, 0]].table_id


def test_a_registered_set_is_found_by_its_id(made_set):
    assert registered_set(made_set.register()) is registered_set(made_set.table_id)


def test_an_unregistered_set_is_refused(made_set):
    other = made_set[[3, 2, 1]]
    with pytest.raises(KeyError, match=f"skeleton table {other.table_id} need that skeleton set"):
        registered_set(other.table_id)


# -- the leaking order --------------------------------------------------------------------------


def test_source_order_is_the_same_crystal_numbered_as_in_its_file(made_set):
    source = made_set.in_source_order()
    for one, other in zip(made_set, source, strict=True):
        assert [t.item() for t in other.reference] == tokens_of(
            [s.specie for s in STRUCTURES[one.name]]
        ).tolist()
        number = one.source_rank
        renamed = edge_set(number[one.edge_index], one.edge_image)
        assert edge_set(other.edge_index, other.edge_image) == renamed


def test_symmetry_in_source_order_is_the_renumbered_one(made_set):
    one = made_set[NAMES.index("perovskite")]
    other = made_set.in_source_order()[NAMES.index("perovskite")]
    same = {tuple(other.reference[p].tolist()) for p in other.permutations}
    assert same == {tuple(other.reference.tolist())}
    assert len(other.permutations) == len(one.permutations)


def test_source_order_has_keys_of_its_own(made_set):
    assert not set(made_set.keys) & set(made_set.in_source_order().keys)


# -- building -----------------------------------------------------------------------------------


def test_geometries_are_stored_and_found_again(made_cells, tmp_path, monkeypatch):
    cache = GeometryCache(tmp_path / "geometry.sqlite")
    first, _ = build_skeletons(made_cells, cache=cache, workers=1)

    def refuse(*_):
        raise AssertionError("computed again")

    monkeypatch.setattr("crystal_gym.skeletons.analyse_geometry", refuse)
    second, _ = build_skeletons(made_cells, cache=cache, workers=1)
    for one, other in zip(first, second, strict=True):
        assert_same_skeletons(one, other)


def test_an_interrupted_build_keeps_what_was_finished(made_cells, tmp_path, monkeypatch):
    import crystal_gym.skeletons as module

    cache, done, real = GeometryCache(tmp_path / "g.sqlite"), [], module.analyse_geometry

    def interrupted(lattice, frac_coords):
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append(1)
        return real(lattice, frac_coords)

    monkeypatch.setattr(module, "analyse_geometry", interrupted)
    with pytest.raises(KeyboardInterrupt):
        build_skeletons(made_cells, cache=cache, workers=1)
    assert len(cache.get([c.key for c in made_cells])) == 3


def test_a_cell_without_a_graph_is_reported_by_its_position(made_cells, monkeypatch):
    import crystal_gym.skeletons as module

    real, bad = module.analyse_geometry, made_cells[2]

    def sometimes(lattice, frac_coords) -> Geometry:
        if len(frac_coords) == len(bad.frac_coords):
            raise ValueError("no polyhedra")
        return real(lattice, frac_coords)

    monkeypatch.setattr(module, "analyse_geometry", sometimes)
    skeletons, problems = build_skeletons(made_cells, workers=1)
    assert problems == {2: "no polyhedra"}
    assert skeletons.names.tolist() == [n for n in NAMES if n != NAMES[2]]


def test_an_executor_gives_the_same_set(made_cells, made_set):
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(2) as executor:
        skeletons, _ = build_skeletons(made_cells, executor=executor)
    for one, other in zip(made_set, skeletons, strict=True):
        assert_same_skeletons(one, other)


def test_no_cells_are_refused():
    with pytest.raises(ValueError, match="needs at least one structure"):
        build_skeletons([])


# -- names and paths ----------------------------------------------------------------------------


def test_the_bundled_set_loads_by_name():
    assert len(load_skeletons("mini")) >= 12


def test_a_set_is_itself(made_set):
    assert load_skeletons(made_set) is made_set


def test_one_structure_makes_a_set_of_one():
    assert len(load_skeletons(rocksalt())) == 1


def test_atoms_and_structure_make_the_same_skeleton():
    structure = STRUCTURES["triclinic"]
    atoms = AseAtomsAdaptor.get_atoms(structure)
    (one,), (other,) = load_skeletons([structure]), load_skeletons([atoms])
    assert one.key == other.key
    np.testing.assert_array_equal(one.reference, other.reference)


def test_a_path_to_a_file_makes_a_set(tmp_path):
    path = tmp_path / "salt.cif"
    path.write_text(cif_text(rocksalt()))
    assert load_skeletons(str(path)).names.tolist() == ["salt"]


def test_a_path_to_a_saved_set_loads_it(made_set, tmp_path):
    made_set.save(tmp_path / "set.npz")
    assert load_skeletons(tmp_path / "set.npz").table_id == made_set.table_id


def test_a_changed_file_is_read_anew(made_set, tmp_path):
    import os

    path = tmp_path / "set.npz"
    made_set.save(path)
    load_skeletons(path)
    made_set[[0]].save(path)
    os.utime(path, ns=(1, 1))
    assert len(load_skeletons(path)) == 1


def test_an_unknown_set_is_refused_by_name():
    with pytest.raises(ValueError, match="'no-such-set' is neither a known set nor an existing"):
        load_skeletons("no-such-set")


def test_a_set_that_is_not_built_says_how_to_build_it(empty_minari):
    with pytest.raises(ValueError, match="'mp20' is not built on this machine.*data build mp20"):
        load_skeletons("mp20")


@pytest.mark.parametrize("thing", [[None], [{"lattice": 1}]])
def test_what_is_no_structure_is_refused(thing):
    with pytest.raises(TypeError, match="expected a pymatgen Structure or ASE Atoms"):
        load_skeletons(thing)


@pytest.mark.parametrize("thing", [7, None, ""])
def test_what_is_no_set_is_refused(thing):
    with pytest.raises(TypeError, match="is not understood: expected one of mini, tabular, mp20"):
        load_skeletons(thing)


def test_a_list_of_files_is_a_set(tmp_path):
    for name in ("first", "second"):
        STRUCTURES["rocksalt"].to(str(tmp_path / f"{name}.cif"))
    skeletons = load_skeletons([tmp_path / "second.cif", str(tmp_path / "first.cif")])
    assert skeletons.names.tolist() == ["second", "first"]


def test_a_dataset_id_names_the_skeletons_in_its_folder(made_dataset, made_set):
    assert load_skeletons(made_dataset.id).table_id == made_set.table_id


def test_an_empty_list_is_refused():
    with pytest.raises(ValueError, match="needs at least one structure"):
        load_skeletons([])


def test_cells_are_niggli_reduced():
    conventional = rocksalt().to_conventional()
    skewed = conventional.make_supercell([[1, 0, 0], [2, 1, 0], [0, 0, 1]], in_place=False)
    cell = cell_from_structure(skewed)
    np.testing.assert_allclose(np.linalg.norm(cell.lattice, axis=1), [5.64] * 3, rtol=0, atol=1e-6)
