import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import minari
import pytest

import crystal_gym
from crystal_gym.cli import main

CIF_COLUMNS = ",pretty_formula,cif\n"


@pytest.fixture
def mini_dataset(empty_minari):
    assert main(["data", "build", "mini"]) == 0
    return "crystal-mini-v0"


def test_no_command_prints_help_and_is_wrong_usage(capsys):
    assert main([]) == 2
    assert "quickstart" in capsys.readouterr().out


def test_data_without_an_action_prints_its_help(capsys):
    assert main(["data"]) == 2
    assert "build" in capsys.readouterr().out


def test_version(capsys):
    with pytest.raises(SystemExit) as end:
        main(["--version"])
    assert end.value.code == 0
    assert crystal_gym.__version__ in capsys.readouterr().out


def test_build_mini_makes_a_dataset_that_minari_lists(empty_minari, capsys):
    assert main(["data", "build", "mini"]) == 0
    assert "crystal-mini-v0" in minari.list_local_datasets()
    assert "1,196 episodes, 4,867 transitions" in capsys.readouterr().out


def test_show_prints_numbers_with_units(mini_dataset, capsys):
    assert main(["data", "show", mini_dataset]) == 0
    shown = capsys.readouterr().out
    assert "354 crystals" in shown
    assert "band gap (eV, DFT)" in shown


def test_list_names_bundled_sets_and_datasets(mini_dataset, capsys):
    assert main(["data", "list"]) == 0
    listed = capsys.readouterr().out
    assert "bundled" in listed
    assert mini_dataset in listed


def test_minari_show_reads_our_dataset(mini_dataset):
    done = subprocess.run(
        [sys.executable, "-m", "minari.cli", "show", mini_dataset],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "1196" in done.stdout, done.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["data", "show", "crystal-none-v0"], "not on this machine"),
        (["data", "build", "mp20", "--from", "no-such-folder"], "does not exist"),
        (["data", "fetch", "mp20", "--from", "no-such-folder"], "no such folder"),
        (["quickstart", "--minutes", "-1"], "expected more than 0"),
    ],
    ids=["unknown dataset", "no source to build", "no source to fetch", "negative time"],
)
def test_an_error_is_one_sentence_on_standard_error(arguments, says, empty_minari, capsys):
    assert main(arguments) == 1
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith("crystal-gym: ")
    assert says in told.err
    assert "Traceback" not in told.err


@pytest.mark.parametrize(
    "arguments", [["data", "fetch", "gold"], ["data", "build", "mp20", "--limit", "0"]]
)
def test_wrong_usage_exits_with_2(arguments, capsys):
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2
    told = capsys.readouterr().err
    assert "expected" in told
    assert "--help` has examples" in told
    assert told.count("\n") == 1


def test_a_folder_with_a_csv_without_cif_is_refused(tmp_path, empty_minari, capsys):
    (tmp_path / "mp20").mkdir()
    (tmp_path / "mp20" / "train.csv").write_text("a,b\n1,2\n")
    assert main(["data", "build", "mp20", "--from", str(tmp_path)]) == 1
    assert "no column called cif" in capsys.readouterr().err
    assert not list(empty_minari.iterdir())


@pytest.mark.data
def test_build_from_a_folder_can_be_interrupted_and_run_again(data_dir, tmp_path):
    environment = os.environ | {
        "MINARI_DATASETS_PATH": str(tmp_path / "minari"),
        "CRYSTAL_GYM_CACHE": str(tmp_path / "cache"),
    }
    command = [sys.executable, "-m", "crystal_gym.cli", "data", "build", "mp20", "--limit", "150"]
    command += ["--from", str(data_dir)]
    first = subprocess.Popen(
        command, env=environment, stderr=subprocess.PIPE, start_new_session=True, text=True
    )
    time.sleep(6)  # somewhere in the middle; where does not matter for what is asserted
    os.killpg(first.pid, signal.SIGINT)
    first.communicate(timeout=60)
    again = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    assert "crystal-mp20-first150-v0: 150 crystals" in again.stdout
    assert "crystal-mp20-val-first150-v0: 150 crystals, 150 episodes" in again.stdout
    folders = [p.name for p in (tmp_path / "minari").iterdir() if p.is_dir()]
    assert sorted(folders) == ["crystal-mp20-first150-v0", "crystal-mp20-val-first150-v0"]


def test_quickstart_on_the_bundled_set_writes_table_and_picture(
    tmp_path, empty_minari, empty_cache, monkeypatch, capsys
):
    pytest.importorskip("d3rlpy")
    monkeypatch.delenv("CRYSTAL_GYM_DATA", raising=False)
    output = tmp_path / "results"
    assert main(["quickstart", "--minutes", "0.05", "-o", str(output)]) == 0
    table = (output / "table.md").read_text(encoding="utf-8")
    for policy in ("random", "majority element", "BC", "c-CQL"):
        assert f"| {policy}" in table
    assert table in capsys.readouterr().out
    assert (output / "picture.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((output / "settings.json").read_text())["seed"] == 0
    assert sorted(p.name for p in output.iterdir()) == ["picture.png", "settings.json", "table.md"]


@pytest.mark.data
@pytest.mark.filterwarnings("always")
def test_without_validation_labels_the_training_set_is_built_and_that_is_said(
    data_dir, tmp_path, empty_minari, capsys
):
    (tmp_path / "mp20").mkdir()
    (tmp_path / "mp20" / "train.csv.gz").symlink_to(data_dir / "mp20" / "train.csv.gz")
    (tmp_path / "qe").mkdir()
    (tmp_path / "qe" / "release").symlink_to(data_dir / "qe" / "release")
    assert main(["data", "build", "mp20", "--from", str(tmp_path), "--limit", "3"]) == 0
    told = capsys.readouterr()
    assert "crystal-mp20-first3-v0: 3 crystals" in told.out
    assert "crystal-gym: crystal-mp20-val-v0 is not built" in told.err
    assert "UserWarning" not in told.err


def test_quickstart_refuses_a_data_folder_without_data(tmp_path, monkeypatch, capsys):
    pytest.importorskip("d3rlpy")
    monkeypatch.setenv("CRYSTAL_GYM_DATA", str(tmp_path / "nothing"))
    assert main(["quickstart", "-o", str(tmp_path / "results")]) == 1
    assert "holds no MP-20" in capsys.readouterr().err


def test_the_module_runs_as_the_command_does():
    script = Path(sys.executable).with_name("crystal-gym")
    if not script.exists():
        pytest.skip("the package is not installed as a command")
    done = subprocess.run([script, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"crystal-gym {crystal_gym.__version__}"
