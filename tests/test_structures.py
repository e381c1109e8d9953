"""`crystal_gym.structures`: crystals as people have them, and what is wrong with some."""

import gzip
import os
import time

import ase.db
import ase.io
import numpy as np
import pytest
from made_crystals import (
    STRUCTURES,
    cif_text,
    perovskite,
    replaced,
    rocksalt,
    tokens_of,
    triclinic,
    wurtzite,
)
from pymatgen.core import DummySpecies, Lattice, Structure
from pymatgen.io.ase import AseAtomsAdaptor
from pymatgen.io.vasp import Poscar

from crystal_gym.sets import load_skeletons
from crystal_gym.structures import cell_from_structure, parse_cif, read_structures, to_structure

SALT_CIF = cif_text(rocksalt())
HALF = "0.50000000  0.50000000  0.50000000"


def read_one(path):
    ((name, structure),) = read_structures(path)
    return name, cell_from_structure(structure)


def assert_same_cell(cell, structure):
    expected = cell_from_structure(structure)
    np.testing.assert_allclose(cell.lattice @ cell.lattice.T, expected.lattice @ expected.lattice.T)
    assert sorted(cell.reference.tolist()) == sorted(expected.reference.tolist())
    assert len(cell.frac_coords) == len(expected.frac_coords)


# -- formats ------------------------------------------------------------------------------------


def test_a_cif_is_read_under_the_name_of_its_file(tmp_path):
    (tmp_path / "salt.cif").write_text(SALT_CIF)
    name, cell = read_one(tmp_path / "salt.cif")
    assert name == "salt"
    assert_same_cell(cell, rocksalt())


@pytest.mark.parametrize("name", ["POSCAR", "CONTCAR.relaxed", "cell.vasp", "cell.poscar"])
def test_a_poscar_is_read(tmp_path, name):
    (tmp_path / name).write_text(Poscar(triclinic()).get_str())
    assert_same_cell(read_one(tmp_path / name)[1], triclinic())


@pytest.mark.parametrize("name", ["cell.xyz", "cell.extxyz"])
def test_an_extended_xyz_is_read(tmp_path, name):
    atoms = AseAtomsAdaptor.get_atoms(triclinic())
    ase.io.write(tmp_path / name, atoms, format="extxyz")
    assert_same_cell(read_one(tmp_path / name)[1], triclinic())


def test_all_frames_of_an_extended_xyz_are_read_under_numbered_names(tmp_path):
    frames = [AseAtomsAdaptor.get_atoms(s) for s in (rocksalt(), wurtzite(), perovskite())]
    ase.io.write(tmp_path / "frames.xyz", frames, format="extxyz")
    found = list(read_structures(tmp_path / "frames.xyz"))
    assert [name for name, _ in found] == ["frames-0", "frames-1", "frames-2"]
    assert [len(to_structure(s)) for _, s in found] == [2, 4, 5]


def test_all_rows_of_an_ase_database_are_read(tmp_path):
    with ase.db.connect(tmp_path / "crystals.db") as database:
        for structure in (rocksalt(), triclinic()):
            database.write(AseAtomsAdaptor.get_atoms(structure))
    found = list(read_structures(tmp_path / "crystals.db"))
    assert [len(to_structure(s)) for _, s in found] == [2, 6]
    assert_same_cell(cell_from_structure(found[1][1]), triclinic())


def test_a_csv_is_read_under_the_names_of_its_rows(tmp_path):
    text = f'material_id,cif\nmp-1,"{SALT_CIF}"\nmp-2,"{cif_text(wurtzite())}"\n'
    (tmp_path / "some.csv").write_text(text)
    found = list(read_structures(tmp_path / "some.csv"))
    assert [name for name, _ in found] == ["mp-1", "mp-2"]
    assert [len(s) for _, s in found] == [2, 4]


def test_a_gzipped_csv_is_read(tmp_path):
    (tmp_path / "some.csv.gz").write_bytes(gzip.compress(f'cif\n"{SALT_CIF}"\n'.encode()))
    name, cell = read_one(tmp_path / "some.csv.gz")
    assert name == "some-0"
    assert_same_cell(cell, rocksalt())


def test_a_folder_is_read_in_the_order_of_its_names(tmp_path):
    (tmp_path / "b.cif").write_text(SALT_CIF)
    (tmp_path / "a.vasp").write_text(Poscar(wurtzite()).get_str())
    (tmp_path / "notes.txt").write_text("not a structure")
    (tmp_path / ".hidden.cif").write_text("not a structure")
    assert [name for name, _ in read_structures(tmp_path)] == ["a", "b"]


def test_a_folder_without_structures_says_what_it_expected(tmp_path):
    (tmp_path / "notes.txt").write_text("nothing")
    with pytest.raises(ValueError, match=r"holds no structure files: expected names ending in"):
        list(read_structures(tmp_path))


def test_a_path_to_nothing_says_so(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist: expected a CIF"):
        list(read_structures(tmp_path / "none.cif"))


def test_oxidation_states_do_not_matter():
    charged = rocksalt().add_oxidation_state_by_element({"Na": 1, "Cl": -1})
    assert cell_from_structure(charged).reference.tolist() == (
        cell_from_structure(rocksalt()).reference.tolist()
    )


def test_the_dummy_species_is_an_empty_site():
    structure = replaced(rocksalt(), [DummySpecies("X"), "Cl"])
    expected = [0, *tokens_of(["Cl"]).tolist()]
    assert sorted(cell_from_structure(structure).reference.tolist()) == expected


def test_atoms_keep_their_elements_on_their_sites():
    structure = STRUCTURES["triclinic"]
    atoms = AseAtomsAdaptor.get_atoms(structure)
    one, other = cell_from_structure(structure), cell_from_structure(atoms)
    np.testing.assert_allclose(one.frac_coords, other.frac_coords, rtol=0, atol=1e-12)
    np.testing.assert_array_equal(one.reference, other.reference)


# -- what is wrong with a crystal ---------------------------------------------------------------


def test_partial_occupancy_is_refused_naming_the_site():
    structure = Structure(Lattice.cubic(4), [{"Na": 0.5}, "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])
    with pytest.raises(ValueError, match=r"is disordered: site Na:0\.5 is partially occupied"):
        cell_from_structure(structure)


def test_a_cif_with_partial_occupancy_is_refused(tmp_path):
    text = SALT_CIF.replace(f"{HALF}  1", f"{HALF}  0.5")
    assert text != SALT_CIF
    (tmp_path / "half.cif").write_text(text)
    with pytest.raises(ValueError, match="half is disordered: site .* is partially occupied"):
        load_skeletons(tmp_path / "half.cif")


def test_a_structure_without_sites_is_refused():
    with pytest.raises(ValueError, match="has no sites: expected at least one atom"):
        cell_from_structure(Structure(Lattice.cubic(4), [], []))


@pytest.mark.parametrize("kept", ["columns", "nothing"])
def test_a_cif_without_sites_is_refused(tmp_path, kept):
    if kept == "columns":
        text = "".join(x for x in SALT_CIF.splitlines(True) if not x.startswith(("  Na", "  Cl")))
    else:
        text = SALT_CIF.split("loop_\n _atom_site")[0]
    (tmp_path / "none.cif").write_text(text)
    with pytest.raises(ValueError, match=r"none\.cif cannot be read"):
        load_skeletons(tmp_path / "none.cif")


def test_overlapping_sites_are_refused_with_their_distance():
    structure = Structure(Lattice.cubic(4), ["Na", "Cl"], [[0, 0, 0], [0.1, 0, 0]])
    with pytest.raises(
        ValueError, match=r"has overlapping sites, 0\.40 Å apart: expected at least"
    ):
        cell_from_structure(structure)


def test_overlap_is_seen_across_the_border_of_the_cell():
    structure = Structure(Lattice.cubic(4), ["Na", "Cl"], [[0.01, 0, 0], [0.95, 0, 0]])
    with pytest.raises(ValueError, match=r"overlapping sites, 0\.24 Å apart"):
        cell_from_structure(structure)


def test_a_site_must_not_overlap_with_its_own_images():
    flat = Structure(
        Lattice([[-2.82, 0, -2.82], [-2.8193, 0, -2.82], [0, -2.82, -2.82]]), ["Cl"], [[0, 0, 0]]
    )
    with pytest.raises(ValueError, match=r"overlapping sites, 0\.00 Å apart: .* periodic images"):
        cell_from_structure(flat)


def test_the_shortest_bond_of_all_is_no_overlap():
    structure = Structure(Lattice.cubic(5), ["H", "H"], [[0, 0, 0], [0.148, 0, 0]])
    assert len(cell_from_structure(structure).reference) == 2


def test_a_cif_with_overlapping_sites_is_refused(tmp_path):
    (tmp_path / "close.cif").write_text(SALT_CIF.replace("0.50000000", "0.01000000"))
    with pytest.raises(ValueError, match=r"close has overlapping sites, 0\.10 Å apart"):
        load_skeletons(tmp_path / "close.cif")


def test_a_cif_with_two_elements_in_one_place_says_why_it_is_refused(tmp_path):
    (tmp_path / "same.cif").write_text(SALT_CIF.replace("0.50000000", "0.00000000"))
    with pytest.raises(ValueError, match=r"same.*([Oo]ccupanc|overlap)"):
        load_skeletons(tmp_path / "same.cif")


@pytest.mark.parametrize("symbol", ["Ar", "Ra", "Qq"])
def test_an_unsupported_element_is_refused_by_name(tmp_path, symbol):
    (tmp_path / "odd.cif").write_text(SALT_CIF.replace("Cl", symbol))
    with pytest.raises(ValueError, match=f"odd: element '{symbol}' is not supported"):
        load_skeletons(tmp_path / "odd.cif")


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("where", ["site", "cell"])
def test_non_finite_coordinates_are_refused(value, where):
    lattice, site = 4 * np.eye(3), np.array([[0.0, 0.0, 0.0]])
    (site if where == "site" else lattice)[0, 0] = value
    with pytest.raises(ValueError, match="not a finite number"):
        cell_from_structure(Structure(lattice, ["Na"], site), "x")


@pytest.mark.parametrize("value", ["nan", "inf", "?"])
def test_a_cif_with_a_coordinate_that_is_no_number_is_refused(tmp_path, value):
    (tmp_path / "odd.cif").write_text(SALT_CIF.replace("0.50000000", value))
    with pytest.raises(ValueError, match=r"odd.*(cannot be read|not a finite number)"):
        load_skeletons(tmp_path / "odd.cif")


def test_a_flat_cell_is_refused():
    flat = np.array([[4.0, 0, 0], [0, 4, 0], [4, 4, 1e-9]])
    with pytest.raises(ValueError, match="three independent lattice vectors"):
        cell_from_structure(Structure(flat, ["Na"], [[0, 0, 0]]), "x")


def test_atoms_without_periodicity_are_refused():
    from ase import Atoms

    with pytest.raises(ValueError, match="not periodic in all directions"):
        cell_from_structure(Atoms("NaCl", [[0, 0, 0], [2, 0, 0]], cell=[5, 5, 5], pbc=[1, 1, 0]))


def test_an_xyz_without_a_lattice_is_refused(tmp_path):
    (tmp_path / "molecule.xyz").write_text("2\n\nNa 0 0 0\nCl 0 0 2.4\n")
    with pytest.raises(ValueError, match="not periodic in all directions"):
        load_skeletons(tmp_path / "molecule.xyz")


def test_another_kind_of_object_is_refused():
    with pytest.raises(TypeError, match="type dict is not understood: expected a pymatgen"):
        to_structure({"lattice": 1})


# -- what is wrong with a file ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("text.cif", b"hello world\n"),
        ("bytes.cif", bytes(range(256))),
        ("empty.cif", b""),
        ("half.cif", SALT_CIF[: len(SALT_CIF) // 2].encode()),
        ("POSCAR", b"hello\n"),
        ("empty.vasp", b""),
        ("text.xyz", b"hello\n"),
        ("text.db", b"hello " * 200),
    ],
)
def test_a_garbage_file_is_refused_by_name(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"{name} cannot be read .*: expected a complete CIF"):
        load_skeletons(tmp_path / name)


@pytest.mark.parametrize("name", ["text.txt", "a.traj", "a.json", "a.py", "a.gz", "a.db.gz", "a"])
def test_what_a_file_holds_is_never_guessed(tmp_path, name):
    (tmp_path / name).write_text(SALT_CIF)
    with pytest.raises(ValueError, match=rf"{name} is of no known kind: expected a name ending"):
        list(read_structures(tmp_path / name))


@pytest.mark.parametrize("name", ["a.cif.gz", "POSCAR.gz", "a.vasp.gz", "a.xyz.gz"])
def test_gzipped_structures_are_read_and_may_not_expand_to_more_than_plain_ones(tmp_path, name):
    atoms = AseAtomsAdaptor.get_atoms(rocksalt())
    ase.io.write(tmp_path / "plain.xyz", atoms, format="extxyz")
    text = {"cif": SALT_CIF, "xyz": (tmp_path / "plain.xyz").read_text()}.get(
        name.split(".")[-2], Poscar(rocksalt()).get_str()
    )
    (tmp_path / name).write_bytes(gzip.compress(text.encode()))
    assert_same_cell(read_one(tmp_path / name)[1], rocksalt())
    (tmp_path / name).write_bytes(gzip.compress(b"0" * 200_000_000))
    with pytest.raises(ValueError, match=r"(holds|a line of) more than 1"):
        list(read_structures(tmp_path / name))


def sites(count):
    return "".join(f"Na Na{i} 0.{i:06d} 0.5 0.5\n" for i in range(count))


ATOMS = "loop_\n" + "\n".join(
    f"_atom_site_{name}" for name in ("type_symbol", "label", "fract_x", "fract_y", "fract_z")
)
OPERATION = "x,y,z\n"
CUBE = "data_x\n" + "".join(
    f"_cell_length_{a} 90\n_cell_angle_{b} 90\n"
    for a, b in zip("abc", ("alpha", "beta", "gamma"), strict=True)
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"{CUBE}{ATOMS}\n{sites(1_000_000)}", "holds more than 1,000,000 bytes"),
        (f"{CUBE}{ATOMS}\n{sites(20_000)}", "20,000 positions .*expected at most 2,500"),
        (f"{CUBE}_symmetry_space_group_name_H-M 'F m -3 m'\n{ATOMS}\n{sites(100)}", "positions"),
        (
            f"{CUBE}loop_\n_symmetry_equiv_pos_as_xyz\n{999 * OPERATION}{ATOMS}\nNa a 0 0 0",
            "999 symmetry operations: expected at most 192",
        ),
        (CUBE + "'a " * 300_000, "a line with 300,000 quotes"),
        (f"data_x\n_cell_length_a\n;\n{'(' * 900_000}\n;\n", "_cell_length_a of 900,001"),
        (CUBE.replace("length_a 90", "length_a nan") + f"{ATOMS}\nNa Na 0 0 0\n", "finite"),
        (CUBE.replace("length_a 90", "length_a 1e308") + f"{ATOMS}\nNa Na 0 0 0\n", "of 1e"),
        (f"{CUBE}{ATOMS}\nNa Na nan 0 0\n", "finite|read|of 1e"),
        (f"{CUBE}{ATOMS}\nNa Na inf 0 0\n", "finite|read|of 1e"),
        (CUBE.replace("length_a 90", "length_a 0") + f"{ATOMS}\nNa Na 0 0 0\n", "volume|read"),
    ],
    ids=[
        "a million sites", "too many sites", "a space group", "operations", "quotes", "a value",
        "nan cell", "1e308 cell", "nan", "inf", "flat cell",
    ],
)  # fmt: skip
def test_a_hostile_cif_is_refused_at_once(tmp_path, text, expected):
    (tmp_path / "a.cif").write_text(text)
    begun = time.monotonic()
    with pytest.raises(ValueError, match=expected) as error:
        load_skeletons(tmp_path / "a.cif")
    assert time.monotonic() - begun < 2
    assert "\n" not in str(error.value)


HEAD = "x\n1.0\n4 0 0\n0 4 0\n0 0 4\n"


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("POSCAR", f"{HEAD}Na\n1000000000\ndirect\n0 0 0\n", "announces 1,000,000,000 sites"),
        ("POSCAR", f"{HEAD}Na\n1\ndirect\n1e308 0 nan\n", "finite|read|of 1e"),
        (
            "POSCAR",
            HEAD.replace("4 0 0", "1e308 0 0") + "Na\n1\ndirect\n0 0 0\n",
            "finite|read|of 1e",
        ),
        ("POSCAR", HEAD.replace("0 4 0", "4 0 0") + "Na\n1\ndirect\n0 0 0\n", "volume"),
        ("POSCAR", HEAD.replace("4 0 0", "999 0 0") + "Na\n1\ndirect\n0 0 0\n", "too long for"),
        (
            "POSCAR",
            HEAD.replace("4 0 0", "9999 0 0") + "Na\n1\ndirect\n0 0 0\n",
            "9,999 Å long: .* unit",
        ),
        ("a.xyz", "1000000000\nx\nNa 0 0 0\n", "frame 0 has 1,000,000,000 sites"),
        ("a.xyz", "1\nProperties=species:S:1:pos:R:99999999\nNa 0 0 0\n", "number of columns"),
        ("a.xyz", '1\nLattice="4 0 0 0 4 0 0 0 nan"\nNa 0 0 0\n', "finite|read|of 1e"),
        ("a.xyz", '1\nLattice="4 0 0 0 4 0 0 0 4"\nNa 1e308 0 inf\n', "finite|read|of 1e"),
    ],
)
def test_other_hostile_structures_are_refused(tmp_path, name, text, expected):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=expected) as error:
        load_skeletons(tmp_path / name)
    assert "\n" not in str(error.value)


def test_a_skewed_cell_of_a_usual_lattice_is_read():
    skewed = rocksalt()
    skewed.make_supercell([[1, 0, 0], [0, 1, 0], [90, 0, 1]])
    assert_same_cell(cell_from_structure(skewed), rocksalt())


@pytest.mark.parametrize("name", ["a.cif", "POSCAR", "a.xyz", "a.db", "a.csv", "a.cif.gz"])
def test_pipes_and_devices_are_refused_instead_of_read_for_ever(tmp_path, name):
    os.mkfifo(tmp_path / name)
    with pytest.raises(ValueError, match=f"{name} is no regular file: expected a file"):
        list(read_structures(tmp_path / name))
    (tmp_path / name).unlink()
    (tmp_path / name).symlink_to("/dev/zero")
    with pytest.raises(ValueError, match=f"{name} is no regular file: expected a file"):
        list(read_structures(tmp_path / name))


def test_an_empty_database_stays_empty(tmp_path):
    (tmp_path / "a.db").write_bytes(b"")
    with pytest.raises(ValueError, match="it is no ASE database"):
        list(read_structures(tmp_path / "a.db"))
    assert (tmp_path / "a.db").stat().st_size == 0


def test_a_truncated_gzip_is_refused(tmp_path):
    whole = gzip.compress(f'cif\n"{SALT_CIF}"\n'.encode())
    (tmp_path / "some.csv.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"some\.csv\.gz is damaged"):
        load_skeletons(tmp_path / "some.csv.gz")


def test_a_csv_without_a_cif_column_is_refused(tmp_path):
    (tmp_path / "some.csv").write_text("name,formula\na,NaCl\n")
    with pytest.raises(ValueError, match=r"has no column called cif \(found: name, formula\)"):
        load_skeletons(tmp_path / "some.csv")


BROKEN_ROWS = {
    "no cif": "nonsense",
    "empty": "",
    "unreadable coordinate": SALT_CIF.replace("0.50000000", "?"),
    "unsupported element": SALT_CIF.replace("Cl", "Ar"),
    "partial occupancy": SALT_CIF.replace(f"{HALF}  1", f"{HALF}  0.5"),
}


@pytest.mark.parametrize("broken", BROKEN_ROWS.values(), ids=BROKEN_ROWS)
def test_a_broken_row_is_named_by_its_number_and_the_others_are_kept(tmp_path, broken):
    rows = [SALT_CIF, broken, cif_text(wurtzite())]
    text = "material_id,cif\n" + "".join(f'mp-{i},"{cif}"\n' for i, cif in enumerate(rows))
    (tmp_path / "some.csv").write_text(text)
    with pytest.warns(UserWarning, match="1 of 3 rows .* row 1"):
        skeletons = load_skeletons(tmp_path / "some.csv")
    assert skeletons.names.tolist() == ["mp-0", "mp-2"]


def test_a_cif_without_atoms_is_a_value_error():
    with pytest.raises(ValueError, match="the CIF cannot be read"):
        parse_cif("data_x\n")


def test_every_structure_of_a_cif_is_read(tmp_path):
    blocks = ["data_global\n_journal_year 2024\n", SALT_CIF, cif_text(wurtzite())]
    (tmp_path / "two.cif").write_text("\n".join(blocks))
    found = [(n, s.composition.reduced_formula) for n, s in read_structures(tmp_path / "two.cif")]
    assert found == [("two-0", "NaCl"), ("two-1", "ZnS")]
    with pytest.raises(ValueError, match="the CIF holds 2 structures: expected one"):
        parse_cif("\n".join(blocks))


@pytest.mark.parametrize(
    ("second", "reason"),
    [
        (SALT_CIF, "two blocks have one name"),
        (cif_text(wurtzite()).replace("_cell_length_a", "_cell_length_x"), "reshape"),
    ],
    ids=["one name", "no length"],
)
def test_no_structure_of_a_cif_is_left_out_in_silence(tmp_path, second, reason):
    (tmp_path / "two.cif").write_text(SALT_CIF + "\n" + second)
    with pytest.raises(
        ValueError, match=f"of the 2 structures in the CIF only 1 can be read .*{reason}"
    ):
        load_skeletons(tmp_path / "two.cif")


def test_a_cell_of_too_many_sites_is_refused():
    many = STRUCTURES["rocksalt"].copy() * (7, 7, 6)
    with pytest.raises(ValueError, match="588 sites: expected at most 500"):
        cell_from_structure(many)


def test_a_huge_cif_is_refused_before_it_is_parsed():
    with pytest.raises(ValueError, match="2,000,000 characters: expected at most"):
        parse_cif("x" * 2_000_000)


def test_a_poscar_without_elements_is_refused(tmp_path):
    text = "no names\n1.0\n3 0 0\n0 3 0\n0 0 3\n1 1\nDirect\n0 0 0\n0.5 0.5 0.5\n"
    (tmp_path / "POSCAR").write_text(text)
    with pytest.raises(ValueError, match="does not name its elements"):
        list(read_structures(tmp_path / "POSCAR"))
