"""The crystals that `benchmarks/scale/make_crystals.py` makes for load tests."""

import importlib.util
from pathlib import Path

import ase.io
import numpy as np
import pytest

from crystal_gym.datasets import build_structures
from crystal_gym.oracles import load_table

SCRIPT = Path(__file__).resolve().parents[1] / "benchmarks" / "scale" / "make_crystals.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("make_crystals", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def crystals(script, tmp_path_factory):
    path = tmp_path_factory.mktemp("made") / "crystals.extxyz"
    path.write_text("".join(script.made_crystals([load_table("mini")], 40)))
    return ase.io.read(path, index=":")


def test_a_short_file_is_the_beginning_of_a_long_one(script):
    tables = [load_table("mini")]
    assert [*script.made_crystals(tables, 3)] == [*script.made_crystals(tables, 5)][:3]
    assert [*script.made_crystals(tables, 3, seed=1)] != [*script.made_crystals(tables, 3)]


def test_cells_are_of_up_to_60_sites(crystals):
    sizes = [len(atoms) for atoms in crystals]
    assert max(sizes) <= 60
    assert max(sizes) > 30


def test_labels_say_that_they_are_made_up(crystals):
    assert all(a.info["provenance"].startswith("synthetic, for load tests") for a in crystals)
    energies = [a.info["total_energy_ry"] / len(a) for a in crystals]
    assert np.isfinite(energies).all()


def test_each_is_another_skeleton(crystals, tmp_path, empty_minari):
    ase.io.write(tmp_path / "some.extxyz", crystals[:12], format="extxyz")
    build_structures([tmp_path / "some.extxyz"], "crystal-load-v0", workers=1)
    keys = load_table("crystal-load-v0").skeletons.keys
    assert len(set(keys.tolist())) == 12
