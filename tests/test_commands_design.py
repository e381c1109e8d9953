"""`crystal-gym design` from a file to files, with the bundled policy and surrogate."""

from __future__ import annotations

import json
import re
import warnings

import numpy as np
import pytest
from chromium import shown
from made_crystals import perovskite, rocksalt, wurtzite
from pymatgen.core import Lattice, Structure
from pymatgen.io.ase import AseAtomsAdaptor

from crystal_gym.cli import main

pytest_plugins = ["espresso_fixtures"]

pytest.importorskip("torch", reason="design needs the extra `agents`")


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_inputs(folder):
    perovskite().to(filename=str(folder / "perovskite.cif"))
    wurtzite().to(filename=str(folder / "POSCAR"), fmt="poscar")
    AseAtomsAdaptor.get_atoms(rocksalt()).write(folder / "rocksalt.extxyz", format="extxyz")


def designed(folder, capsys, *words):
    assert main(["design", *words]) == 0
    return json.loads((folder / "design.json").read_text("utf-8")), capsys.readouterr().out


def test_three_kinds_of_files(here, capsys):
    write_inputs(here)
    for file, n_sites in (("perovskite.cif", 5), ("POSCAR", 4), ("rocksalt.extxyz", 2)):
        folder = here / f"out-{n_sites}"
        results, printed = designed(
            folder, capsys, file, "--target-gap", "3", "-n", "6", "-o", str(folder)
        )
        assert len(results["candidates"]) == 6
        assert "not DFT" in printed
        assert "surrogate" in printed.splitlines()[0]
        for candidate in results["candidates"]:
            assert candidate["formula"] in printed
            charges = candidate["charges"]
            assert sum(charges[s] for s in candidate["symbols"]) == 0
            predicted = candidate["predicted"]
            assert predicted["band_gap_ev"] >= 0
            assert predicted["band_gap_std_ev"] > 0
            assert predicted["provenance"].startswith("surrogate")
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # pymatgen rounds thirds
                written = Structure.from_file(folder / candidate["cif"])
            assert sorted(s.specie.symbol for s in written) == sorted(candidate["symbols"])
            assert len(written) == n_sites
    with shown(folder / "report.html") as page:
        assert page.locator("section:first-of-type tbody tr").count() == 6


def test_candidates_are_sensible_for_an_oxide_perovskite(here, capsys):
    write_inputs(here)
    results, _ = designed(
        here / "out",
        capsys,
        "perovskite.cif",
        "--target-gap",
        "3",
        "--rank",
        "likelihood",
        "-n",
        "10",
        "-o",
        "out",
    )
    formulas = {c["formula"] for c in results["candidates"]}
    # What everyone would think of first: titanates and aluminates with this cell.
    assert len(formulas & {"CaTiO3", "SrTiO3", "BaTiO3", "LaAlO3", "SrZrO3", "NaNbO3"}) >= 2
    gaps = [
        c["predicted"]["band_gap_ev"] for c in results["candidates"] if c["formula"] == "SrTiO3"
    ]
    assert not gaps or 1.0 < gaps[0] < 3.5


def test_a_second_run_replaces_what_the_first_wrote(here, capsys):
    write_inputs(here)
    words = ["POSCAR", "--target-gap", "2", "4", "-o", "out"]
    designed(here / "out", capsys, *words, "-n", "9")
    (here / "out" / "001-mine.cif").write_text("mine")
    results, _ = designed(here / "out", capsys, *words, "-n", "3")
    names = sorted(p.name for p in (here / "out").glob("*.cif"))
    assert names == sorted([*(c["cif"] for c in results["candidates"]), "001-mine.cif"])
    assert results["goal"] == "2 to 4 eV"
    again, _ = designed(here / "out", capsys, *words, "-n", "3")
    assert again["candidates"] == results["candidates"]


def test_each_target_has_a_folder_of_its_own(here, capsys):
    write_inputs(here)
    for gap in (["3"], ["1.12"], ["2", "4"]):
        assert main(["design", "POSCAR", "--target-gap", *gap, "-n", "2"]) == 0
    folders = sorted(p.name for p in here.glob("design-*"))
    assert folders == ["design-POSCAR-1.12eV", "design-POSCAR-2-4eV", "design-POSCAR-3eV"]


@pytest.mark.parametrize("text", ['{"mine": 1}', "[1]", "not json"])
def test_another_design_json_is_not_replaced(here, capsys, text):
    write_inputs(here)
    (here / "design.json").write_text(text)
    assert main(["design", "POSCAR", "--target-gap", "3", "-n", "2", "-o", "."]) == 1
    assert "is no record of a design, and would be replaced" in capsys.readouterr().err
    assert (here / "design.json").read_text() == text


def test_everything_is_in_the_record(here, capsys):
    write_inputs(here)
    results, _ = designed(
        here / "design-rocksalt-5eV",
        capsys,
        "rocksalt.extxyz",
        "--target-gap",
        "5",
        "--exclude",
        "Pb",
        "--seed",
        "4",
        "-n",
        "2",
    )
    assert results["settings"]["exclude"] == ["Pb"]
    assert results["settings"]["seed"] == 4
    assert results["policy"] == "bundled"
    assert {"crystal-gym", "torch", "pymatgen", "python"} <= set(results["versions"])
    np.testing.assert_allclose(results["source"]["lattice"], rocksalt().lattice.matrix)
    text = (here / "design-rocksalt-5eV" / "design.json").read_text("utf-8")
    assert str(here) not in text


def error_of(capsys, *words):
    assert main(["design", *words]) == 1
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines[-1].startswith("crystal-gym: ")
    return lines[-1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere.cif"], "nowhere.cif does not exist"),
        (["broken.cif"], "broken.cif cannot be read"),
        (["mixed.cif"], "is disordered"),
        (["molecule.cif"], "like a molecule in vacuum"),
        (["large.cif"], "216 sites: expected at most 60; its primitive cell has 2"),
        (["two.extxyz"], "two.extxyz holds 2 structures: expected one"),
        ([".", "-n", "3"], "is a folder"),
        (["good.cif", "--target-gap", "99"], "beyond all solids"),
        (["good.cif", "--target-gap", "3", "1"], "expected the lowest gap"),
        (["good.cif", "--target-gap", "1", "2", "3"], "expected one gap in eV, or two"),
        (["good.cif", "--include", "O", "--exclude", "O"], "O is to be included and excluded"),
        (["good.cif", "--only", "Unobtainium"], "'Unobtainium'"),
        (["good.cif", "--only", "Ne", "--keep", "Na"], "no neutral composition is within reach"),
        (["good.cif", "--keep", "Fe"], "'Fe' cannot be kept"),
        (["good.cif", "--policy", "nowhere"], "nowhere"),
        (["good.cif", "--surrogate", "nowhere"], "nowhere"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(here, capsys, words, message):
    rocksalt().to(filename="good.cif")
    (here / "broken.cif").write_text("data_\n_cell_length_a 3\nloop_\n_atom_site")
    mixed = Structure(Lattice.cubic(4), [{"Na": 0.5, "K": 0.5}, "Cl"], [[0] * 3, [0.5] * 3])
    mixed.to(filename="mixed.cif")
    Structure(Lattice.cubic(18), ["C", "O"], [[0, 0, 0], [0, 0, 0.063]]).to(filename="molecule.cif")
    if words[0] == "large.cif":
        (rocksalt() * (6, 6, 3)).to(filename="large.cif")
    atoms = AseAtomsAdaptor.get_atoms(rocksalt())
    from ase.io import write

    write(here / "two.extxyz", [atoms, atoms])
    if "--target-gap" not in words:
        words = [*words, "--target-gap", "3"]
    assert re.search(re.escape(message), error_of(capsys, *words))


@pytest.mark.dft
def test_verified_candidates_have_dft_beside_the_prediction(here, capsys, pw, pseudopotentials):
    write_inputs(here)
    words = [
        "rocksalt.extxyz",
        "--target-gap",
        "5",
        "--only",
        "Li",
        "Na",
        "Cl",
        "-n",
        "3",
        "--top",
        "2",
        "--verify",
        "dft",
        "--preset",
        "fast",
        "--cache",
        "c.db",
        "-o",
        "out",
        "--pw",
        pw,
        "--pseudo",
        str(pseudopotentials.folder),
    ]
    results, printed = designed(here / "out", capsys, *words)
    first, second, third = results["candidates"]
    for candidate in (first, second):
        assert candidate["calculated"]["status"] == "ok"
        assert candidate["calculated"]["band_gap_ev"] > 3
        assert candidate["calculated"]["formation_energy_ev_per_atom"] < -1
    assert third["calculated"] is None
    assert "gap (eV, DFT)" in printed
