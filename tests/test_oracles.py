"""`crystal_gym.oracles`: the property table and its look-ups."""

from dataclasses import fields, replace

import numpy as np
import pytest
from made_crystals import (
    EXTRA_FILLINGS,
    NAMES,
    STRUCTURES,
    perovskite,
    replaced,
    rocksalt,
    tokens_of,
    triclinic,
    wurtzite,
)
from pymatgen.core import Structure

from crystal_gym.oracles import (
    Filling,
    FillingOracle,
    Oracle,
    Properties,
    PropertyTable,
    Status,
    TableOracle,
    load_table,
)
from crystal_gym.sets import load_skeletons
from crystal_gym.testing import SAME_CRYSTAL, moved


@pytest.fixture(scope="module")
def oracle(table):
    return TableOracle(table)


def entry_of(table, name):
    return table.properties(NAMES.index(name))


# -- structures ---------------------------------------------------------------------------------


def test_the_table_oracle_has_the_protocols(oracle):
    assert isinstance(oracle, Oracle)
    assert isinstance(oracle, FillingOracle)


@pytest.mark.parametrize("name", NAMES)
def test_a_crystal_of_the_table_is_found(oracle, table, name):
    assert oracle.evaluate([STRUCTURES[name]]) == [entry_of(table, name)]


@pytest.mark.parametrize("change", SAME_CRYSTAL.values())
@pytest.mark.parametrize("name", NAMES)
def test_a_crystal_is_found_in_any_setting(oracle, table, name, change):
    assert oracle.evaluate([change(STRUCTURES[name])]) == [entry_of(table, name)]


def test_rounding_in_a_file_does_not_hide_a_crystal(oracle, table):
    structure = triclinic()
    rounded = Structure(
        structure.lattice.matrix.round(4), structure.species, structure.frac_coords.round(4)
    )
    assert oracle.evaluate([rounded]) == [entry_of(table, "triclinic")]


def strained(structure):
    return Structure(
        structure.lattice.matrix * [1.02, 1, 1], structure.species, structure.frac_coords
    )


def larger(structure):
    return Structure(structure.lattice.matrix * 1.02, structure.species, structure.frac_coords)


def with_a_moved_site(structure):
    sites = structure.frac_coords.copy()
    sites[0] += [0.02, 0, 0]
    return Structure(structure.lattice, structure.species, sites)


def with_one_other_element(structure):
    return replaced(structure, ["Rb", *[s.specie for s in structure[1:]]])


def with_two_swapped(structure):
    species = [s.specie for s in structure]
    return replaced(structure, [species[1], species[0], *species[2:]])


@pytest.mark.parametrize(
    "change", [strained, larger, with_a_moved_site, with_one_other_element, with_two_swapped]
)
def test_a_slightly_different_crystal_is_not_found(oracle, change):
    (found,) = oracle.evaluate([change(triclinic())])
    assert found.status is Status.UNKNOWN
    assert found.band_gap_ev is None
    assert "not in the table" in found.provenance


def test_answers_come_in_the_order_of_the_questions(oracle, table):
    asked = [perovskite(), with_one_other_element(triclinic()), rocksalt()]
    found = oracle.evaluate(asked)
    assert [p.status for p in found] == [Status.OK, Status.UNKNOWN, Status.OK]
    assert found[2] == entry_of(table, "rocksalt")


def test_oxidation_states_do_not_hide_a_crystal(oracle, table):
    charged = rocksalt().add_oxidation_state_by_element({"Na": 1, "Cl": -1})
    assert oracle.evaluate([charged]) == [entry_of(table, "rocksalt")]


def test_a_failed_calculation_says_so_and_has_no_properties(oracle):
    (found,) = oracle.evaluate([rocksalt("Xe", "Kr")])
    assert found.status is Status.NOT_CONVERGED
    assert (found.band_gap_ev, found.total_energy_ry) == (None, None)
    assert found.provenance.startswith("made entry")


# -- fillings -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_every_relabelling_of_equivalent_sites_is_found(oracle, table, made_set, name):
    skeleton = made_set[NAMES.index(name)]
    relabelled = [skeleton.reference[p] for p in skeleton.permutations]
    found = oracle.evaluate_fillings([Filling(skeleton, t) for t in relabelled])
    assert found == [entry_of(table, name)] * len(relabelled)


def test_an_inequivalent_filling_is_unknown(oracle, made_set):
    skeleton = made_set[NAMES.index("triclinic")]
    swapped = skeleton.reference.copy()
    swapped[[0, 1]] = swapped[[1, 0]]
    (found,) = oracle.evaluate_fillings([Filling(skeleton, swapped)])
    assert found.status is Status.UNKNOWN


def test_further_fillings_of_a_skeleton_are_found(oracle, table, made_set):
    for number, (name, swaps, status) in enumerate(EXTRA_FILLINGS, start=len(NAMES)):
        skeleton = made_set[NAMES.index(name)]
        symbols = [swaps[str(s.specie)] for s in skeleton.structure(skeleton.reference)]
        (found,) = oracle.evaluate_fillings([Filling(skeleton, tokens_of(symbols))])
        assert found == table.properties(number)
        assert found.status is status


def test_a_filling_of_a_foreign_skeleton_is_found_in_another_setting(oracle, table):
    (skeleton,) = load_skeletons([moved(wurtzite())])
    assert skeleton.key not in table.skeletons.keys
    (found,) = oracle.evaluate_fillings([Filling(skeleton, skeleton.reference)])
    assert found == entry_of(table, "wurtzite")


def test_a_foreign_crystal_is_unknown(oracle):
    (skeleton,) = load_skeletons([strained(triclinic())])
    (found,) = oracle.evaluate_fillings([Filling(skeleton, skeleton.reference)])
    assert found.status is Status.UNKNOWN


# -- the table ----------------------------------------------------------------------------------


def test_a_table_with_two_answers_for_one_crystal_is_refused(table):
    skeleton = table.skeletons[NAMES.index("perovskite")]
    twice = replace(
        table,
        skeleton=np.append(table.skeleton, NAMES.index("perovskite")),
        tokens=np.append(table.tokens, skeleton.reference[skeleton.permutations[-1]]),
        **{
            name: np.append(getattr(table, name), value)
            for name, value in {
                "total_energy_ry": -1.0,
                "formation_energy_ev_per_atom": -1.0,
                "band_gap_ev": 1.0,
                "status": "ok",
                "provenance": "another",
            }.items()
        },
    )
    with pytest.raises(ValueError, match="two different entries for one crystal: 3 and 11"):
        TableOracle(twice).evaluate_fillings([Filling(skeleton, skeleton.reference)])


def test_a_saved_table_comes_back_as_it_was(table, tmp_path):
    table.skeletons.save(tmp_path / "skeletons.npz")
    table.save(tmp_path / "table.npz")
    again = PropertyTable.load(tmp_path / "table.npz")
    for field in fields(table):
        if field.name != "skeletons":
            np.testing.assert_array_equal(getattr(again, field.name), getattr(table, field.name))


def test_one_provenance_serves_all_entries(table):
    shared = replace(table, provenance=np.array(["one source"]))
    assert {shared.properties(i).provenance for i in range(3)} == {"one source"}


def test_unknown_values_are_none(table):
    partly = replace(table, band_gap_ev=np.full(len(table), np.nan))
    assert partly.properties(0).band_gap_ev is None
    assert partly.properties(0).total_energy_ry == table.total_energy_ry[0]


def test_a_table_of_another_set_is_refused(table, made_set, tmp_path):
    table.save(tmp_path / "table.npz")
    with pytest.raises(ValueError, match="does not belong to the skeleton set at hand"):
        PropertyTable.load(tmp_path / "table.npz", made_set[[1, 0]])


@pytest.mark.parametrize("damage", ["truncated", "garbage", "empty"])
def test_a_damaged_table_is_refused_by_name(table, made_set, tmp_path, damage):
    path = tmp_path / "table.npz"
    table.save(path)
    whole = path.read_bytes()
    path.write_bytes({"truncated": whole[: len(whole) // 2], "garbage": b"x", "empty": b""}[damage])
    with pytest.raises(ValueError, match=r"table\.npz is not a readable property table"):
        PropertyTable.load(path, made_set)


def test_source_order_asks_the_same_table(table):
    source = TableOracle(table.in_source_order())
    fillings = [Filling(s, s.reference) for s in source.table.skeletons]
    assert source.evaluate_fillings(fillings) == [entry_of(table, name) for name in NAMES]


def test_an_unknown_table_is_refused_by_name():
    with pytest.raises(ValueError, match="'no-table' is neither a known table"):
        TableOracle("no-table")


def test_a_table_without_its_skeletons_is_refused(table, tmp_path):
    table.save(tmp_path / "table.npz")
    with pytest.raises((ValueError, FileNotFoundError), match=r"skeletons\.npz"):
        load_table(tmp_path / "table.npz")


def test_a_table_is_loaded_from_its_folder(table, tmp_path):
    table.skeletons.save(tmp_path / "skeletons.npz")
    table.save(tmp_path / "table.npz")
    assert len(load_table(tmp_path)) == len(table)


def test_the_bundled_table_answers_for_its_own_crystals():
    bundled = load_table("mini")
    oracle = TableOracle()
    for number in np.flatnonzero(bundled.status == "ok")[:5]:
        skeleton = bundled.skeletons[int(bundled.skeleton[number])]
        structure = skeleton.structure(bundled.entry_tokens(int(number)))
        assert oracle.evaluate([structure]) == [bundled.properties(int(number))]


def test_the_bundled_set_holds_at_least_a_dozen_crystals_of_four_structure_types():
    names = load_table("mini").skeletons.names.tolist()
    assert len(names) >= 12
    assert len({name.split("-", 1)[1] for name in names}) >= 4


# -- extensions (the table mask) ----------------------------------------------------------------


def brute_force_extensions(table, skeleton, tokens, focus):
    allowed = set()
    for entry, number in enumerate(table.skeleton.tolist()):
        if table.skeletons[number].key != skeleton.key or table.status[entry] != "ok":
            continue
        for permutation in skeleton.permutations:
            filling = table.entry_tokens(entry)[permutation]
            if all(f == t for f, t in zip(filling, tokens, strict=True) if t):
                allowed.add(int(filling[focus]))
    return allowed


@pytest.mark.parametrize("name", NAMES)
def test_extensions_are_those_of_a_brute_force_search(oracle, table, made_set, name):
    skeleton = made_set[NAMES.index(name)]
    generator = np.random.default_rng(0)
    for _ in range(5):
        order = generator.permutation(skeleton.n_sites)
        tokens = np.zeros(skeleton.n_sites, dtype=np.int16)
        for focus in order.tolist():
            mask = oracle.extensions(skeleton, tokens, focus)
            allowed = (np.flatnonzero(mask) + 1).tolist()
            assert set(allowed) == brute_force_extensions(table, skeleton, tokens, focus)
            tokens[focus] = generator.choice(allowed)


def test_failed_entries_are_no_extensions(oracle, made_set):
    mask = oracle.extensions(made_set[0], np.zeros(2, dtype=np.int16), 0)
    assert mask[tokens_of(["Xe"])[0] - 1] == 0
    assert mask[tokens_of(["Na"])[0] - 1] == 1


def test_a_foreign_skeleton_has_no_extensions(oracle):
    (skeleton,) = load_skeletons([strained(triclinic())])
    assert not oracle.extensions(skeleton, np.zeros(6, dtype=np.int16), 0).any()


def test_statuses_print_as_their_values():
    assert [str(s) for s in Status] == (
        "ok unknown unsupported_element odd_electrons geometry bands not_converged "
        "no_gap_information timeout memory_or_signal io_or_truncated unphysical_energy "
        "configuration"
    ).split()


def test_properties_default_to_unknown_numbers():
    assert Properties().band_gap_ev is None
