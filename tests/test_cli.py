import argparse
import io
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import ase.io
import minari
import pytest
from ase.build import bulk

import crystal_gym
from crystal_gym import cli
from crystal_gym.cli import main
from crystal_gym.commands.arguments import _PRESETS, SHELLS, build_parser
from crystal_gym.commands.data import ACTIONS
from crystal_gym.commands.terminal import coloured
from crystal_gym.oracles.espresso.settings import PRESETS

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
    told = capsys.readouterr().out
    assert "354 crystals, 1,196 episodes, 4,867 transitions" in told
    assert "left out 10: Te on Te-A_mP4_4_2a (entry " in told
    assert "): timeout; " in told
    assert told.rstrip().endswith("; and 5 more")


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


# -- for people ----------------------------------------------------------------------------------


def subcommands(parser, words=()):
    """Yield every command as (words, parser)."""
    yield words, parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for word, below in action.choices.items():
                yield from subcommands(below, (*words, word))


COMMANDS = {" ".join(words): parser for words, parser in subcommands(build_parser()) if words}


@pytest.mark.parametrize("words", [w for w in COMMANDS if w != "data"])
def test_every_command_has_help_with_examples_that_parse(words):
    text = COMMANDS[words].format_help()
    _, _, examples = text.partition("examples:\n")
    lines = [line.split("#")[0].split(" > ")[0] for line in examples.splitlines()]
    assert lines, words
    for line in lines:
        program, *rest = shlex.split(line)
        assert program == "crystal-gym"
        assert "_".join(words.split()) == build_parser().parse_args(rest).run


def test_the_examples_of_the_whole_command_line_parse():
    _, _, rest = build_parser().format_help().partition("examples:\n")
    lines = rest.partition("\n\n")[0].splitlines()
    assert len(lines) > 10
    for line in lines:
        assert build_parser().parse_args(shlex.split(re.split(r" {2,}", line.strip())[0])[1:]).run


def test_help_says_what_exit_codes_mean():
    text = build_parser().format_help()
    for code in ("0 ", "1 ", "2 ", "130 "):
        assert f"\n  {code}" in text


def test_every_command_that_is_parsed_is_carried_out():
    assert {p.get_default("run") for p in COMMANDS.values()} - {None} == set(cli._COMMANDS)
    assert {f"data_{name}" for name in ACTIONS} == {n for n in cli._COMMANDS if "data_" in n}


def test_presets_in_help_are_those_of_the_oracle():
    assert tuple(PRESETS) == _PRESETS


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["trian"], "'trian' is unknown (did you mean 'train'?)"),
        (["data", "bild"], "'bild' is unknown (did you mean 'build'?)"),
        (["train", "bc", "--lerning-rate", "1"], "(did you mean '--learning-rate'?)"),
        (["evaluate", "--split", "compositon"], "(did you mean 'composition'?)"),
    ],
)
def test_wrong_usage_says_what_was_meant(words, says, capsys):
    with pytest.raises(SystemExit):
        main(words)
    told = capsys.readouterr().err
    assert says in told
    assert told.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["data", "show", "crystal-mini-v1"], "(did you mean 'crystal-mini-v0'?)"),
        (["data", "build", "tablar"], "(did you mean 'tabular'?)"),
        (["evaluate", "--dataset", "crystal-mni-v0"], "(did you mean 'crystal-mini-v0'?)"),
    ],
)
def test_a_misspelt_name_says_what_was_meant(words, says, mini_dataset, capsys):
    assert main(words) == 1
    assert says in capsys.readouterr().err


def test_list_and_show_as_json(mini_dataset, capsys):
    capsys.readouterr()
    assert main(["data", "list", "--json"]) == 0
    items = {item["name"]: item for item in json.loads(capsys.readouterr().out)}
    assert items[mini_dataset]["kind"] == "minari"
    assert items[mini_dataset]["episodes"] == 1196
    assert items["mini"]["kind"] == "bundled"
    assert main(["data", "show", mini_dataset, "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["crystals"], shown["transitions"]) == (354, 4867)
    assert shown["per_crystal"]["sites"]["max"] == 8


def test_doctor_as_json(empty_cache, capsys):
    assert main(["doctor", "--json", "--pw", "no-such-pw.x"]) == 1
    told = capsys.readouterr()
    health = {item["subject"]: item["health"] for item in json.loads(told.out)}
    assert health["crystal-gym"] == "well"
    assert health["pw.x"] == "ill"
    assert "pw.x" in told.err


def test_doctor_tells_what_a_missing_extra_is_for(empty_cache, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "plotly", None)
    main(["doctor", "--pw", "no-such-pw.x"])
    assert re.search(
        r"^- +report +for report pages and pictures: pip install 'crystal-gym\[report\]'",
        capsys.readouterr().out,
        re.MULTILINE,
    )


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["data", "build", "mini"], "crystal-mini-v0 from the bundled set mini"),
        (["data", "build", "FRAMES", "--minari", "crystal-two-v0"], "2 structures into"),
        (["evaluate", "--dataset", "DATASET", "-o", "out"], "designs of 36 skeletons each"),
        (
            ["evaluate", "--dataset", "DATASET", "-o", "out"],
            "neighbour, by gap (4 targets)",
        ),
        (
            ["train", "bc", "--dataset", "DATASET", "-o", "out"],
            "steps of 256 into out; about",
        ),
        (["train", "dqn", "--dataset", "DATASET", "-o", "out"], "no time was measured"),
        (["design", "CIF", "--target-gap", "3", "-o", "out"], "20 candidates for 3 eV"),
    ],
)
def test_a_dry_run_says_what_would_be_done_and_does_nothing(
    words, says, mini_dataset, tmp_path, monkeypatch, capsys
):
    if words[0] == "train":
        pytest.importorskip("d3rlpy")
    monkeypatch.chdir(tmp_path)
    rocksalt = bulk("NaCl", "rocksalt", a=5.6)
    ase.io.write("rocksalt.cif", rocksalt)
    ase.io.write("frames.extxyz", [rocksalt, rocksalt])
    names = {"DATASET": mini_dataset, "CIF": "rocksalt.cif", "FRAMES": "frames.extxyz"}
    before = sorted(tmp_path.rglob("*"))
    capsys.readouterr()
    assert main([*(names.get(word, word) for word in words), "--dry-run"]) == 0
    told = capsys.readouterr()
    assert says in told.out
    assert "nothing was done" in told.out
    assert told.err == ""
    assert sorted(tmp_path.rglob("*")) == before


def test_a_dry_run_of_mp20_counts_its_labels(source_folder, capsys):
    folder = source_folder([], [("train", 0, 1, 1, 1), ("train", 1, 1, 1, 1), ("val", 0, 1, 1, 1)])
    words = ["data", "build", "mp20", "--from", str(folder), "--dry-run", "--workers", "2"]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "2 crystals into crystal-mp20-v0; 1 crystals into crystal-mp20-val-v0" in said
    assert "over 2 processes" in said


def test_a_dry_run_of_training_counts_from_where_a_run_stopped(mini_dataset, tmp_path, capsys):
    pytest.importorskip("d3rlpy")
    run = tmp_path / "run"
    run.mkdir()
    (run / "checkpoint.pt").touch()
    (run / "log.csv").write_text("step,seconds\n50,1.0\n3000,60.0\n")
    words = ["train", "bc", "--dataset", mini_dataset, "-o", str(run), "--dry-run"]
    assert main(words) == 0
    assert "which has done 3,000: 1,000 are left" in capsys.readouterr().out


@pytest.mark.parametrize("shell", SHELLS)
def test_completion_knows_commands_options_and_choices(shell, capsys):
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    for word in ("publish", "target-gap", "charge_neutral", "composition"):
        assert word in script


def test_the_completion_of_bash_completes(tmp_path):
    if shutil.which("bash") is None:
        pytest.skip("there is no bash")
    script = tmp_path / "completion.sh"
    command = [sys.executable, "-m", "crystal_gym.cli", "completion", "bash"]
    script.write_text(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    asked = f"""source {script}
    COMP_WORDS=(crystal-gym data pu); COMP_CWORD=2
    _shtab_crystal_gym; echo "${{COMPREPLY[@]}}" """
    done = subprocess.run(["bash", "-c", asked], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["publish"]


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self):
        return True


def test_colours_are_for_terminals(monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert coloured("ok", "green", Terminal()) == "\033[32mok\033[0m"
    assert coloured("ok", "green", io.StringIO()) == "ok"
    monkeypatch.setenv("TERM", "dumb")
    assert coloured("ok", "green", Terminal()) == "ok"
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    assert coloured("ok", "green", Terminal()) == "ok"


def test_doctor_and_list_fit_a_terminal_of_80_columns(mini_dataset, empty_cache, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setattr(sys, "stdout", Terminal())
    main(["data", "list"])
    main(["doctor", "--pw", "no-such-pw.x"])
    lines = [line for line in sys.stdout.getvalue().splitlines() if "/" not in line]
    assert len(lines) > 10
    assert max(map(len, lines)) <= 80


def test_a_pipe_gets_no_progress_bar(empty_minari, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "crystal_gym.cli", "data", "build", "mini"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""


@pytest.mark.parametrize("unbuffered", ["", "1"], ids=["buffered", "unbuffered"])
@pytest.mark.parametrize("words", [["data", "list"], ["--help"], ["completion", "bash"]])
def test_a_reader_that_leaves_is_no_error(words, unbuffered):
    process = subprocess.Popen(
        [sys.executable, "-m", "crystal_gym.cli", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONUNBUFFERED": unbuffered},
    )
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait(timeout=120) == 0
    process.stderr.close()


def test_help_needs_neither_torch_nor_pymatgen():
    code = (
        "import sys; from crystal_gym.commands.arguments import build_parser;"
        "build_parser().format_help();"
        "print([m for m in ('torch', 'pymatgen', 'minari', 'scipy', 'ase') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
