"""`crystal-gym label`, `data export` and `doctor`, with a stand-in for the executable alone."""

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest
from made_crystals import cif_text, rocksalt, wurtzite
from stub_pw import Stub

from crystal_gym.cli import main
from crystal_gym.commands.label import parse_changes, read_fillings
from crystal_gym.oracles import ResultStore, TableOracle, load_table
from crystal_gym.oracles.espresso.settings import PRESETS
from crystal_gym.oracles.references import ReferenceEnergies, references_path


@pytest.fixture
def stub(tmp_path, empty_cache):
    return Stub(tmp_path / "stub", ["Na", "Cl", "Zn", "S", "Mg", "Si", "O"])


@pytest.fixture
def files(tmp_path):
    folder = tmp_path / "structures"
    folder.mkdir()
    for name, structure in (("salt", rocksalt()), ("blende", wurtzite())):
        (folder / f"{name}.cif").write_text(cif_text(structure))
    return folder


@pytest.fixture
def run(stub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def call(*words):
        given = [str(w) for w in words]
        tools = ["--pw", str(stub.pw), "--pseudo", str(stub.pseudopotentials)]
        return main(["label", *given, *tools, "--cache", "results.db", "--workers", "1"])

    return call


def rows_of(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_a_folder_becomes_a_table_with_units(run, files, stub):
    assert run(files) == 0
    rows = rows_of("labels.csv")
    assert [row["name"] for row in rows] == ["blende", "salt"]
    assert {row["status"] for row in rows} == {"ok"}
    assert float(rows[0]["band_gap_ev"]) == 0.5
    assert sorted(row["total_energy_ry"] for row in rows) == sorted(
        str(float(e)) for e in stub.done
    )


def test_what_was_done_is_written_beside_the_results(run, files):
    run(files, "--preset", "fast", "--set", "k_mesh=2,2,2", "-o", "my.csv")
    record = json.loads(Path("my.json").read_text())
    assert record["settings"]["k_mesh"] == [2, 2, 2]
    assert record["settings"]["n_bands"] is None
    assert record["pw.x"] == "6.7MaX"
    assert record["count"] == 2


def test_a_second_run_calculates_nothing(run, files, stub):
    run(files)
    before = len(stub.started)
    assert run(files) == 0
    assert len(stub.started) == before == 2


def test_results_of_an_earlier_run_stay_until_there_are_new_ones(run, files, monkeypatch):
    Path("labels.csv").write_text("of the last week")

    def interrupted(*arguments, **named):
        assert Path("labels.csv").read_text() == "of the last week"
        raise KeyboardInterrupt

    monkeypatch.setattr("crystal_gym.commands.label.label_as_told", interrupted)
    assert run(files) == 130
    assert Path("labels.csv").read_text() == "of the last week"
    assert sorted(p.name for p in Path().glob(".labels*")) == []


@pytest.mark.parametrize(
    ("name", "output", "message"),
    [
        ("salt.cif", "structures/salt.cif", "is one of the files to read"),
        ("salt.cif", "new.json", r"expected another ending for the results, such as new\.csv"),
        (".", "structures/labels.csv", "is in a folder of structures"),
        ("salt.cif", "structures", "structures is a folder: expected the name of a file"),
    ],
)
def test_results_never_replace_what_is_read(run, files, capsys, stub, name, output, message):
    before = (files / "salt.cif").read_text()
    assert run(files / name, "-o", output) == 1
    assert re.search(message, capsys.readouterr().err)
    assert stub.started == []
    assert (files / "salt.cif").read_text() == before


def test_a_dry_run_says_what_is_missing_and_does_nothing(run, files, stub, capsys, tmp_path):
    run(files / "salt.cif")
    (tmp_path / "labels.csv").unlink()
    assert run(files, "--dry-run") == 0
    assert "2 structures, 1 of them in" in capsys.readouterr().out
    assert len(stub.started) == 1
    assert not (tmp_path / "labels.csv").exists()


def test_settings_without_references_give_energies_and_say_so(run, files, capsys):
    assert run(files, "--preset", "paper") == 0
    assert "`crystal-gym label references` calculates them" in capsys.readouterr().out
    assert all(row["formation_energy_ev_per_atom"] == "" for row in rows_of("labels.csv"))
    assert all(row["total_energy_ry"] for row in rows_of("labels.csv"))


def test_references_make_formation_energies(run, files, stub, capsys):
    assert run("references", "--preset", "paper", "--elements", "Na", "Cl") == 0
    assert "2 reference energies for 30/245 Ry" in capsys.readouterr().out
    known = ReferenceEnergies.load(references_path(PRESETS["paper"].energy_key))
    assert set(known.energies_ry) == {"Na", "Cl"}
    assert all(e < 0 for e in known.energies_ry.values())
    run(files, "--preset", "paper")
    blende, salt = rows_of("labels.csv")
    total = float(salt["total_energy_ry"])
    expected = (total - known.energies_ry["Na"] - known.energies_ry["Cl"]) / 2 * 13.6057039763
    assert float(salt["formation_energy_ev_per_atom"]) == pytest.approx(expected)
    assert blende["formation_energy_ev_per_atom"] == ""
    assert "no reference for S, Zn" in blende["provenance"]


def test_references_are_added_to_those_there(run):
    run("references", "--preset", "paper", "--elements", "Na")
    run("references", "--preset", "paper", "--elements", "Si")
    known = ReferenceEnergies.load(references_path(PRESETS["paper"].energy_key))
    assert set(known.energies_ry) == {"Na", "Si"}


def test_a_reference_may_come_from_ones_own_structure(run, stub, tmp_path):
    from pymatgen.core import Lattice, Structure

    sulphur = Structure(Lattice.cubic(3.0), ["S"], [[0, 0, 0]])
    (tmp_path / "S.cif").write_text(cif_text(sulphur))
    assert run("references", tmp_path / "S.cif", "--preset", "paper") == 0
    known = ReferenceEnergies.load(references_path(PRESETS["paper"].energy_key))
    assert list(known.energies_ry) == ["S"]
    assert known.energies_ry["S"] == float(stub.done[-1])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "nothing to calculate"),
        (["none.cif"], "none.cif does not exist"),
        (["--skeletons", "mini"], "belong together"),
        (["--set", "k_mesh", "STRUCTURES"], "expected NAME=VALUE"),
        (["--set", "kmesh=2", "STRUCTURES"], "did you mean 'k_mesh'"),
        (["--set", "k_mesh=a,b", "STRUCTURES"], "expected a number"),
        (["--preset", "slow", "STRUCTURES"], "preset 'slow' is unknown"),
        (["--elements", "Na", "--", "STRUCTURES"], "belongs to `crystal-gym label references`"),
        (["--timeout", "0", "STRUCTURES"], "timeout_s=0.0"),
        (["references", "--preset", "labels"], "published reference energies belong"),
        (["references", "--preset", "paper", "--elements", "Xx"], "element 'Xx'"),
        (["references", "--preset", "paper", "--elements", "Ne"], "no pseudopotential"),
        (["references", "STRUCTURES", "--preset", "paper"], "expected one pure element"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_words_get_one_sentence(run, files, stub, capsys, words, message):
    words = [str(files) if w == "STRUCTURES" else w for w in words]
    assert run(*words) == 1
    said = capsys.readouterr().err
    assert message in said
    assert "Traceback" not in said
    assert not stub.started


def test_an_output_that_cannot_be_written_fails_before_the_calculations(run, files, stub, capsys):
    assert run(files, "-o", "/proc/none/labels.csv") == 1
    assert not stub.started


def test_settings_are_read_from_words():
    assert parse_changes(["k_mesh=4,4,4", "ecutwfc_ry=40.5", "magnetizations=3", "n_bands=12"]) == {
        "k_mesh": (4, 4, 4),
        "ecutwfc_ry": 40.5,
        "magnetizations": (3,),
        "n_bands": 12,
    }


class TestFillings:
    """A skeleton set with a list of fillings."""

    def write(self, tmp_path, *rows, header="skeleton,elements"):
        path = tmp_path / "fillings.csv"
        path.write_text("\n".join([header, *rows]) + "\n")
        return path

    def test_rows_name_skeleton_and_elements(self, made_set, tmp_path):
        path = self.write(tmp_path, "rocksalt,Mg O", "0,Si S")
        (first, one), (second, two) = read_fillings(made_set, path)
        assert (first, second) == ("rocksalt:Mg-O", "rocksalt:Si-S")
        assert [s.symbol for s in one.species] == ["Mg", "O"]
        np.testing.assert_allclose(two.lattice.matrix, made_set[0].lattice)

    @pytest.mark.parametrize(
        ("rows", "message"),
        [
            (["nothing,Mg O"], "line 2: skeleton 'nothing' is not in this set"),
            (["99,Mg O"], "line 2: skeleton '99'"),
            (["rocksalt,Mg O", "rocksalt,Mg"], "line 3: 1 elements for rocksalt, which has 2"),
            (["rocksalt,Mg Xx"], "line 2: element 'Xx'"),
        ],
        ids=["name", "number", "sites", "element"],
    )
    def test_a_wrong_row_is_named(self, made_set, tmp_path, rows, message):
        with pytest.raises(ValueError, match=message):
            list(read_fillings(made_set, self.write(tmp_path, *rows)))

    def test_missing_columns_are_named(self, made_set, tmp_path):
        path = self.write(tmp_path, header="skeleton,symbols")
        with pytest.raises(ValueError, match="expected skeleton and elements"):
            list(read_fillings(made_set, path))

    def test_the_command_calculates_them(self, run, tmp_path, stub):
        name = load_table("mini").skeletons.names[0]
        sites = int(load_table("mini").skeletons.n_sites[0])
        path = self.write(tmp_path, f"{name},{' '.join(['Si'] * sites)}")
        assert run("--skeletons", "mini", "--fillings", path) == 0
        assert len(stub.done) == 1


class TestExport:
    """From a database to a table and a dataset."""

    def test_a_table_answers_for_the_same_crystals(self, run, files, tmp_path, capsys):
        run(files, "--preset", "fast")
        assert main(["data", "export", "results.db", "--table", str(tmp_path / "out")]) == 0
        assert "2 entries, 2 ok" in capsys.readouterr().out
        (found,) = TableOracle(tmp_path / "out").evaluate([wurtzite()])
        expected = float(rows_of("labels.csv")[0]["total_energy_ry"])
        assert found.total_energy_ry == expected

    def test_failures_are_in_the_table(self, run, files, stub, tmp_path):
        stub.set(failures={"Zn": "not_converged"})
        run(files, "--preset", "fast")
        main(["data", "export", "results.db", "--table", str(tmp_path / "out")])
        assert sorted(load_table(tmp_path / "out").status.tolist()) == ["not_converged", "ok"]

    def test_a_dataset_has_what_has_formation_energies(self, run, files, tmp_path, empty_minari):
        import minari

        run("references", "--preset", "paper", "--elements", "Na", "Cl")
        run(files, "--preset", "paper")
        words = ["data", "export", "results.db", "--preset", "paper"]
        assert main([*words, "--minari", "crystal-mine-v0"]) == 0
        dataset = minari.load_dataset("crystal-mine-v0")
        assert dataset.total_episodes == 2  # rocksalt from both of its sites
        assert dataset.recover_environment().reset(seed=0)

    def test_several_settings_must_be_chosen_from(self, run, files, tmp_path, capsys):
        run(files, "--preset", "fast")
        run(files, "--preset", "labels")
        assert main(["data", "export", "results.db", "--table", str(tmp_path / "out")]) == 1
        assert "fast (2), labels (2): choose one with --preset" in capsys.readouterr().err
        words = ["data", "export", "results.db", "--preset", "labels"]
        assert main([*words, "--table", str(tmp_path / "out")]) == 0
        assert len(load_table(tmp_path / "out")) == 2

    @pytest.mark.parametrize("goal", [["--table", "out"], ["--minari", "crystal-mine-v0"]])
    def test_no_database_is_made_where_there_is_none(self, tmp_path, monkeypatch, capsys, goal):
        monkeypatch.chdir(tmp_path)
        assert main(["data", "export", "none.db", *goal]) == 1
        assert "none.db does not exist" in capsys.readouterr().err
        assert not list(tmp_path.iterdir())

    def test_an_empty_database_is_named(self, tmp_path, capsys):
        ResultStore(tmp_path / "empty.db").refresh()
        (tmp_path / "empty.db").touch()
        assert main(["data", "export", str(tmp_path / "empty.db"), "--table", "out"]) == 1
        assert "holds no results" in capsys.readouterr().err

    def test_crystals_of_one_skeleton_share_it(self, run, made_set, tmp_path):
        path = tmp_path / "fillings.csv"
        path.write_text("skeleton,elements\n0,Na Cl\n0,Mg O\n0,Si S\n")
        made_set.save(tmp_path / "skeletons.npz")
        run("--skeletons", tmp_path / "skeletons.npz", "--fillings", path)
        main(["data", "export", "results.db", "--table", str(tmp_path / "out")])
        table = load_table(tmp_path / "out")
        assert len(table) == 3
        assert len(table.skeletons) == 1


class TestDoctor:
    """What is there, and what is not."""

    def test_a_missing_program_is_bad_and_says_how_to_install_it(self, capsys, empty_cache):
        assert main(["doctor", "--pw", "no-such-pw.x"]) == 1
        out = capsys.readouterr().out
        assert "BAD pw.x" in out
        assert "apt-get install quantum-espresso" in out
        assert "conda install" in out
        assert "module load" in out

    def test_missing_pseudopotentials_are_bad(self, stub, capsys):
        assert main(["doctor", "--pw", str(stub.pw)]) == 1
        assert "BAD pseudopotentials" in capsys.readouterr().out

    def test_a_program_that_gives_another_silicon_is_bad(self, stub, capsys):
        words = ["doctor", "--pw", str(stub.pw), "--pseudo", str(stub.pseudopotentials)]
        assert main(words) == 1
        out = capsys.readouterr().out
        assert "BAD silicon" in out
        assert "expected -22.6449" in out
        assert "not those of the manifest" in out
