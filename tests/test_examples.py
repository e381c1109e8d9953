"""Every example runs as its reader would run it: a new process in an empty folder."""

import importlib.util
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import minari
import pytest
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.formula import Formula

from crystal_gym.datasets import build_mini
from crystal_gym.oracles import load_table
from crystal_gym.rewards import FormationReward

pytest_plugins = ["espresso_fixtures"]

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
SCRIPTS = sorted(EXAMPLES.glob("*.py"))
# TorchRL refuses gymnasium 1.0; the Makefile puts a later one here, for its example alone.
LATER_GYMNASIUM = Path(sys.prefix) / "later-gymnasium"


@pytest.fixture
def run(tmp_path):
    """Return a function that runs an example in an empty folder and returns what it prints."""

    def run_example(name, *arguments, path=None):
        folder = tmp_path / "empty"
        folder.mkdir(exist_ok=True)
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        if path is not None:
            environment["PYTHONPATH"] = str(path)
        done = subprocess.run(
            [sys.executable, str(EXAMPLES / name), *map(str, arguments)],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert not list(folder.iterdir())  # nothing is left behind
        return done.stdout

    return run_example


@pytest.fixture
def mini_dataset():
    if "crystal-mini-v0" not in minari.list_local_datasets():
        build_mini()


@pytest.fixture
def agents():
    pytest.importorskip("d3rlpy")


def numbers_after(words, text):
    """Return the numbers that follow some words, in order."""
    return [float(found) for found in re.findall(rf"{words} +(-?[\d.]+)", text)]


def lines(text):
    return text.strip().splitlines()


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_an_example_is_short_and_listed_with_its_time(path):
    assert len(path.read_text("utf-8").splitlines()) < 80
    (line,) = [
        line
        for line in (EXAMPLES / "README.md").read_text("utf-8").splitlines()
        if f"({path.name})" in line
    ]
    assert re.search(r"\| [\d.]+ s", line)


def test_every_example_is_tested():
    text = Path(__file__).read_text("utf-8")
    for path in SCRIPTS:
        assert f'"{path.name}"' in text, path.name


def test_the_quickstart_shows_that_nothing_beats_the_optimum(run, agents):
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in lines(run("quickstart.py"))
    ]
    rewards = {row[0]: [float(cell.split()[-1]) for cell in row[1:]] for row in rows[2:]}
    assert len(rewards) == 13  # twelve skeletons and the mean
    for random, bundled, best in rewards.values():
        assert max(random, bundled) <= best
    assert rewards["mean reward"][0] < rewards["mean reward"][1]


def test_cloning_fills_a_skeleton_of_ones_own(run, agents, mini_dataset):
    said = run("train_and_act.py", 2)
    assert numbers_after("target", said) == [1.0, 4.0, 7.0]
    assert said.count("DFT table: ") == 3


def test_every_discrete_algorithm_trains(run, agents, mini_dataset):
    from d3rlpy import algos

    said = run("d3rlpy_discrete.py", 2)
    shares = numbers_after("accuracy", said) + numbers_after("valid", said)
    assert all(0 <= share <= 100 for share in shares)
    found = {line.split()[0] for line in lines(said)[1:]}
    assert len(shares) == 2 * len(found)
    named = {name for name in dir(algos) if re.fullmatch("Discrete.*Config", name)}
    discrete = {
        name.removesuffix("Config").replace("DiscreteDecision", "Decision")
        for name in named - {"DiscreteRandomPolicyConfig"}
    }
    assert found == discrete | {"DQN", "DoubleDQN", "NFQ", "CrystalCQL"}


def test_continuous_algorithms_come_nearer_to_the_elements(run, agents, mini_dataset):
    said = run("d3rlpy_continuous.py", 8)
    before, after = numbers_after("distance", said), numbers_after("to", said)
    assert len(before) == len(after) == 7
    assert after[0] < before[0]  # cloning
    formulas = re.findall(r"filled: (\w+)", said)
    assert len(formulas) == 7
    assert set(re.findall("[A-Z][a-z]?", "".join(formulas))) <= set("Na Mg Ca Zn O S F Cl".split())


@pytest.mark.parametrize(
    ("name", "steps", "packages"),
    [
        ("online_dqn.py", 1000, ["torch"]),
        ("online_ppo.py", 10, ["torch"]),
        ("maskable_ppo.py", 2000, ["sb3_contrib"]),
    ],
)
def test_an_online_agent_loses_less_than_before(run, name, steps, packages):
    for package in packages:
        pytest.importorskip(package)
    regrets = numbers_after("mean regret", run(name, steps))
    assert len(regrets) >= 2
    assert 0 <= regrets[-1] < 0.9 * regrets[0] < 10


def test_torchrl_learns_in_its_own_loop(run):
    for package in ("torchrl", "tensordict"):
        pytest.importorskip(package)
    if not LATER_GYMNASIUM.is_dir():
        pytest.skip(f"{LATER_GYMNASIUM} with gymnasium 1.2.3 is missing: make test puts it there")
    before, after = numbers_after("mean reward", run("torchrl_dqn.py", 400, path=LATER_GYMNASIUM))
    assert 0 < before < after < 12


def test_a_loader_of_graphs_feeds_a_network_that_learns(run):
    pytest.importorskip("torch_geometric")
    said = run("pyg_loader.py", 5)
    assert "element_token" in said
    (median,) = numbers_after("always the median:", said)
    assert 0 < numbers_after("mean absolute error", said)[-1] < median


@pytest.mark.parametrize(
    ("calculator", "episodes"), [("emt", 300), ("chgnet", 10)], ids=["emt", "chgnet"]
)
def test_a_calculator_of_ase_pays_as_eqn_7_says(run, calculator, episodes):
    if calculator == "chgnet" and importlib.util.find_spec("chgnet") is None:
        pytest.skip("CHGNet is not installed")
    said = [line for line in lines(run("custom_oracle.py", calculator, episodes)) if "atom" in line]
    energies = [float(line.split()[1]) for line in said]
    assert len(energies) == 5
    assert energies == sorted(energies)
    for energy, line in zip(energies, said, strict=True):
        (reward,) = numbers_after("reward", line)
        assert reward == pytest.approx(math.exp(-energy / 5), abs=1e-3)
        if calculator == "emt":
            assert energy == pytest.approx(emt_formation_energy(line.split()[0]), abs=1e-3)


def emt_formation_energy(formula):
    """Return that of an fcc cube of 3.85 Å (eV/atom), whose four sites are all alike."""
    symbols = [*Formula(formula)]
    alloy = bulk("Cu", a=3.85, cubic=True)
    alloy.symbols[:] = symbols * (4 // len(symbols))
    alloy.calc = EMT()
    energy = alloy.get_potential_energy()
    for symbol in alloy.symbols:
        pure = bulk(symbol)
        pure.calc = EMT()
        energy -= pure.get_potential_energy()
    return energy / 4


def test_a_reward_of_ones_own_prefers_light_crystals(run):
    said = re.findall(r"([\d.]+) +gap ([\d.]+) eV, ([\d.]+) g/cm3", run("custom_reward.py"))
    rows = [tuple(map(float, row)) for row in said]
    assert len(rows) == 8
    usual, light = rows[:4], rows[4:]
    assert max(density for *_, density in light) < min(density for *_, density in usual)
    for reward, gap, density in light:
        expected = 10 * math.exp(-((gap - 3) ** 2) / 3 - density / 5)
        assert reward == pytest.approx(expected, abs=0.05)


def test_the_dataset_is_read_without_crystal_gym(run, mini_dataset, tmp_path):
    (tmp_path / "blocked").mkdir()
    (tmp_path / "blocked" / "crystal_gym.py").write_text("raise ImportError('it is not needed')")
    said = run("read_minari.py", 2.5, path=tmp_path / "blocked")
    assert "episode 400 builds" in said
    table = load_table("mini")
    rewards = FormationReward().values(
        table.total_energy_ry, table.formation_energy_ev_per_atom, table.band_gap_ev, 2.5
    )
    best = max(reward for reward in rewards if not math.isnan(reward))
    name = table.skeletons.names[table.skeleton[list(rewards).index(best)]]
    assert f"{name}: {best:.2f} (gap" in lines(said)[-3]


@pytest.mark.dft
def test_the_live_example_calculates_and_remembers(
    run, pw, pseudopotentials, empty_cache, monkeypatch
):
    monkeypatch.setenv("CRYSTAL_GYM_PSEUDO", str(pseudopotentials.folder))
    for ending in ("64 bands\n", "(stored)\n"):
        said = run("live_dft.py", "Mg", "S")
        assert said.startswith("MgS: ok, reward 9.9")
        assert "band_gap_ev = 3.68" in said
        assert said.endswith(ending)


def test_the_notebook_runs_and_its_stored_output_is_what_it_gives(agents, tmp_path, monkeypatch):
    for package in ("nbclient", "nbformat", "ipykernel"):
        pytest.importorskip(package)
    import nbformat

    stored = nbformat.read(EXAMPLES / "story.ipynb", as_version=4)
    notebook = nbformat.read(EXAMPLES / "story.ipynb", as_version=4)
    (parameters,) = [c for c in notebook.cells if "parameters" in c.metadata.get("tags", [])]
    parameters.source, replaced = re.subn(r"STEPS = \d+", "STEPS = 50", parameters.source)
    assert replaced == 1
    # It reads ../docs/results.
    (tmp_path / "docs").symlink_to(EXAMPLES.parent / "docs")
    (tmp_path / "examples").mkdir()
    path = tmp_path / "examples" / "story.ipynb"
    nbformat.write(notebook, path)
    for name in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    command = "from nbclient.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", command, "--inplace", str(path)],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert [file.name for file in path.parent.iterdir()] == [path.name]  # nothing is left behind
    executed = nbformat.read(path, as_version=4)
    before, regrets, fillings = tables(executed)[:2], *tables(executed)[2:]
    assert before == tables(stored)[:2]  # what does not depend on training
    random = [table.splitlines()[2].split() for table in (regrets, tables(stored)[2])]
    assert random[0] == random[1]
    assert len(fillings.splitlines()) == len(tables(stored)[3].splitlines())
    assert sum("image/png" in output.get("data", {}) for output in outputs(executed)) == 4


def test_the_notebook_is_stored_with_small_and_tidy_output():
    path = EXAMPLES / "story.ipynb"
    assert path.stat().st_size < 300_000
    cells = json.loads(path.read_text("utf-8"))["cells"]
    assert all(cell["execution_count"] for cell in cells if cell["cell_type"] == "code")
    for cell in cells:
        assert "execution" not in cell["metadata"]  # times
        for output in cell.get("outputs", ()):
            assert output.get("name") != "stderr"


def outputs(notebook):
    return [output for cell in notebook.cells for output in cell.get("outputs", ())]


def tables(notebook):
    """Return the tables of a notebook, as Markdown."""
    found = [output.get("data", {}).get("text/markdown") for output in outputs(notebook)]
    return [table for table in found if table]
