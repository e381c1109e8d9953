"""`crystal_gym.datasets.parts`: datasets made part by part, whatever interrupts it."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import fields

import ase.db
import ase.io
import minari
import numpy as np
import pytest
from made_crystals import STRUCTURES
from pymatgen.io.ase import AseAtomsAdaptor

from crystal_gym import files
from crystal_gym.cli import main
from crystal_gym.datasets import parts
from crystal_gym.datasets.minari_io import lock_file, read_trajectories
from crystal_gym.datasets.parts import build_structures
from crystal_gym.datasets.trajectories import Trajectories, plan_trajectories
from crystal_gym.oracles import Properties, Status, load_table
from crystal_gym.oracles.table import table_of_fillings
from crystal_gym.sets import dataset_dir
from crystal_gym.skeletons import SkeletonSet, build_skeletons
from crystal_gym.structures import cell_from_structure

DATASET = "crystal-parts-v0"


def labelled(number, structure, **changes):
    """Return ASE Atoms that carry what a dataset needs."""
    atoms = AseAtomsAdaptor.get_atoms(structure, msonable=False)
    atoms.info = {
        "material_id": f"made-{number}",
        "total_energy_ry": -10.0 - number,
        "formation_energy_ev_per_atom": -0.1 * number,
        "band_gap_ev": 0.5 * number,
        **changes,
    }
    return atoms


CRYSTALS = [labelled(i, structure) for i, structure in enumerate(STRUCTURES.values())]


def written(path, crystals=CRYSTALS):
    """Write an extended XYZ file and return its path."""
    ase.io.write(path, crystals, format="extxyz")
    return path


@pytest.fixture
def small_parts(monkeypatch):
    """Make a few crystals several parts, and every file one that is mapped."""
    monkeypatch.setattr(parts, "CRYSTALS_A_PART", 3)
    monkeypatch.setattr(files, "_MAPPED_FROM", 0)


@pytest.fixture
def built(tmp_path, empty_minari, small_parts):
    return build_structures([written(tmp_path / "made.extxyz")], DATASET, workers=1)


def expected_table(path):
    """Return the table of the crystals in a file, made at once."""
    crystals = ase.io.read(path, index=":")
    cells = [cell_from_structure(atoms, atoms.info["material_id"]) for atoms in crystals]
    skeletons, _ = build_skeletons(cells, workers=1)
    names = ("total_energy_ry", "formation_energy_ev_per_atom", "band_gap_ev")
    return table_of_fillings(
        skeletons,
        [
            (
                number,
                cell.reference,
                Properties(
                    **{name: atoms.info[name] for name in names},
                    status=Status.OK,
                    provenance="given with the structure",
                ),
            )
            for number, (cell, atoms) in enumerate(zip(cells, crystals, strict=True))
        ],
    )


def test_parts_give_what_making_all_at_once_gives(built, tmp_path):
    table, expected = load_table(DATASET), expected_table(tmp_path / "made.extxyz")
    for part in (SkeletonSet, type(table.skeletons.merged)):
        found, wanted = (
            t.skeletons if part is SkeletonSet else t.skeletons.merged for t in (table, expected)
        )
        for field in fields(part):
            np.testing.assert_array_equal(getattr(found, field.name), getattr(wanted, field.name))
    for name, column in expected.columns().items():
        np.testing.assert_array_equal(getattr(table, name), column)
    episodes = read_trajectories(minari.load_dataset(DATASET))
    for name, column in plan_trajectories(expected).columns().items():
        np.testing.assert_array_equal(getattr(episodes, name), column)


def test_minari_reads_the_dataset_with_episodes_in_a_row(built):
    dataset = minari.load_dataset(DATASET)
    assert [e.id for e in dataset.iterate_episodes()] == list(range(built.episodes))
    env = dataset.recover_environment()
    env.reset(seed=0)
    assert len(env.unwrapped.skeletons) == len(CRYSTALS)


def test_no_part_is_left(built, empty_minari):
    assert sorted(os.listdir(empty_minari)) == [DATASET]


def test_several_processes_give_the_same_bytes(tmp_path, empty_minari, small_parts, built):
    one = (dataset_dir(DATASET) / "main_data.hdf5").read_bytes()
    build_structures([tmp_path / "made.extxyz"], DATASET, workers=2)
    assert (dataset_dir(DATASET) / "main_data.hdf5").read_bytes() == one


def test_an_ase_database_is_read_with_its_key_value_pairs(tmp_path, empty_minari):
    with ase.db.connect(tmp_path / "made.db") as database:
        for atoms in CRYSTALS:
            database.write(atoms, key_value_pairs=atoms.info)
    report = build_structures([tmp_path / "made.db"], DATASET, workers=1)
    assert report.crystals == len(CRYSTALS)
    assert load_table(DATASET).band_gap_ev.tolist() == [a.info["band_gap_ev"] for a in CRYSTALS]


def test_what_cannot_be_used_is_named_with_the_reason(tmp_path, empty_minari, small_parts):
    bad = [
        labelled(90, STRUCTURES["rocksalt"], band_gap_ev="wide"),
        labelled(91, STRUCTURES["rocksalt"], total_energy_ry=float("nan")),
    ]
    crystals = [CRYSTALS[0], *bad, *CRYSTALS[1:3]]
    report = build_structures([written(tmp_path / "x.extxyz", crystals)], DATASET, workers=1)
    assert report.crystals == 3
    first, second = report.problems.values()
    assert first.startswith("made-90 has no band_gap_ev: expected numbers of these names")
    assert second.startswith("made-91 has no total_energy_ry")


def test_a_part_of_which_nothing_can_be_used_is_passed_over(tmp_path, empty_minari, small_parts):
    bad = [labelled(90 + i, STRUCTURES["rocksalt"], band_gap_ev="wide") for i in range(3)]
    crystals = [*bad, *CRYSTALS[:2]]
    report = build_structures([written(tmp_path / "x.extxyz", crystals)], DATASET, workers=1)
    assert (report.crystals, len(report.problems)) == (2, 3)


def test_files_without_properties_say_what_was_expected(tmp_path, empty_minari):
    STRUCTURES["rocksalt"].to(filename=str(tmp_path / "nacl.cif"))
    with pytest.raises(ValueError, match="no structure can be used; .*total_energy_ry"):
        build_structures([tmp_path / "nacl.cif"], DATASET, workers=1)


def test_a_limit_takes_the_first(tmp_path, empty_minari, small_parts):
    report = build_structures([written(tmp_path / "x.extxyz")], DATASET, limit=4, workers=1)
    assert report.crystals == 4


@pytest.mark.parametrize("bad", ["../crystal-x-v0", "crystal", "a b-v0"])
def test_an_id_that_minari_would_not_find_is_refused(tmp_path, empty_minari, bad):
    with pytest.raises(ValueError, match="is no id of a Minari dataset"):
        build_structures([written(tmp_path / "x.extxyz")], bad, workers=1)


def counting(monkeypatch, stop_at=None):
    """Count the parts that are made; ``stop_at`` interrupts before the part of that number."""
    made, make = [], parts._make_part

    def counted(path, structures):
        if len(made) == stop_at:
            raise KeyboardInterrupt
        make(path, structures)
        made.append(path.name)

    monkeypatch.setattr(parts, "_make_part", counted)
    return made


def test_an_interrupted_build_goes_on_where_it_stopped(
    tmp_path, empty_minari, small_parts, monkeypatch
):
    path = written(tmp_path / "x.extxyz")
    with monkeypatch.context() as patch:
        counting(patch, stop_at=2)
        with pytest.raises(KeyboardInterrupt):
            build_structures([path], DATASET, workers=1)
    assert os.listdir(empty_minari) == [f".{DATASET}.parts"]
    made = counting(monkeypatch)
    assert build_structures([path], DATASET, workers=1).crystals == len(CRYSTALS)
    assert made == ["part-000002.npz"]


@pytest.mark.parametrize("what", ["file", "part"])
def test_what_has_changed_or_is_damaged_is_made_again(
    tmp_path, empty_minari, small_parts, monkeypatch, what
):
    path = written(tmp_path / "x.extxyz")
    with monkeypatch.context() as patch:
        counting(patch, stop_at=2)
        with pytest.raises(KeyboardInterrupt):
            build_structures([path], DATASET, workers=1)
    first = empty_minari / f".{DATASET}.parts" / "part-000000.npz"
    if what == "file":
        written(path, CRYSTALS[::-1])
    else:
        first.write_bytes(first.read_bytes()[:100])
    made = counting(monkeypatch)
    build_structures([path], DATASET, workers=1)
    numbers = [0, 1, 2] if what == "file" else [0, 2]
    assert made == [f"part-{n:06d}.npz" for n in numbers]
    names = load_table(DATASET).skeletons.names.tolist()
    assert names[0] == ("made-6" if what == "file" else "made-0")


def test_two_builds_of_one_dataset_do_not_meet(tmp_path, empty_minari):
    from filelock import FileLock

    path = written(tmp_path / "x.extxyz")
    with (
        FileLock(lock_file(empty_minari / f".{DATASET}.parts")),
        pytest.raises(ValueError, match="is in use by another process"),
    ):
        build_structures([path], DATASET, workers=1)


SLOW = """
import sys, time
from crystal_gym.datasets import parts
parts.CRYSTALS_A_PART = 2
make = parts._make_part
def slow(path, structures):
    time.sleep(0.3)
    make(path, structures)
parts._make_part = slow
parts.build_structures(sys.argv[1:2], sys.argv[2], workers=1)
"""


def test_a_killed_build_goes_on_and_ends_as_an_undisturbed_one(tmp_path, empty_minari, monkeypatch):
    path = written(tmp_path / "x.extxyz")
    killed = subprocess.Popen([sys.executable, "-c", SLOW, str(path), DATASET])
    first = empty_minari / f".{DATASET}.parts" / "part-000000.npz"
    deadline = time.monotonic() + 60
    while not first.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL
    assert first.exists()
    monkeypatch.setattr(parts, "CRYSTALS_A_PART", 2)
    made = counting(monkeypatch)
    build_structures([path], DATASET, workers=1)
    assert 0 < len(made) < 4
    resumed = (dataset_dir(DATASET) / "main_data.hdf5").read_bytes()
    build_structures([path], "crystal-undisturbed-v0", workers=1)
    whole = (dataset_dir("crystal-undisturbed-v0") / "main_data.hdf5").read_bytes()
    assert resumed == whole


def test_a_mapped_dataset_takes_no_memory_of_its_own(built):
    episodes = read_trajectories(minari.load_dataset(DATASET))
    assert isinstance(episodes, Trajectories)
    for array in (episodes.actions, episodes.traversal, episodes.skeletons.edge_index):
        while isinstance(array, np.ndarray) and not isinstance(array, np.memmap):
            array = array.base
        assert isinstance(array, np.memmap)


# -- the command --------------------------------------------------------------------------------


def test_the_command_builds_files(tmp_path, empty_minari, capsys):
    path = written(tmp_path / "x.extxyz")
    assert main(["data", "build", str(path), "--minari", DATASET, "--workers", "1"]) == 0
    assert f"{DATASET}: {len(CRYSTALS)} crystals" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nothing.xyz", "--minari", DATASET], "'nothing.xyz' is neither a set nor an existing"),
        (["mini", "--minari", DATASET], "does not go with the set mini"),
        (["here.extxyz"], "needs the id of its dataset: add --minari"),
    ],
    ids=["no file", "a set", "no id"],
)
def test_the_command_says_what_is_missing(
    tmp_path, empty_minari, monkeypatch, capsys, words, message
):
    monkeypatch.chdir(tmp_path)
    written(tmp_path / "here.extxyz")
    assert main(["data", "build", *words]) == 1
    assert message in capsys.readouterr().err
