"""A real pw.x with pseudopotentials that Debian packages: live tests that need no other data."""

import shutil
from pathlib import Path

import gymnasium as gym
import pytest
from pymatgen.core import Lattice, Structure

from crystal_gym.elements import ELEMENTS
from crystal_gym.oracles import CachedOracle, EspressoOracle

pytest_plugins = ["espresso_fixtures"]

PACKAGED = Path("/usr/share/espresso/pseudo")
FILES = ("B.pbe-n-kjpaw_psl.1.0.0.UPF", "N.pbe-n-kjpaw_psl.1.0.0.UPF")
CHEAP = {"ecutwfc_ry": 25.0, "ecutrho_ry": 120.0, "k_mesh": (2, 2, 2), "n_bands": 8}


@pytest.fixture
def oracle(pw, tmp_path):
    missing = [name for name in FILES if not (PACKAGED / name).is_file()]
    if missing:
        pytest.skip(f"{PACKAGED / missing[0]} of the package quantum-espresso-data is missing")
    folder = tmp_path / "pseudo"
    folder.mkdir()
    for name in FILES:
        shutil.copy(PACKAGED / name, folder)
    return EspressoOracle(
        "labels", pseudopotentials=folder, references=None, scratch=tmp_path / "scratch", **CHEAP
    )


def boron_nitride(a=3.616):
    sites = [[0, 0, 0], [0.25, 0.25, 0.25]]
    lattice = Lattice([[0, a / 2, a / 2], [a / 2, 0, a / 2], [a / 2, a / 2, 0]])
    return Structure(lattice, ["B", "N"], sites)


@pytest.mark.dft
def test_boron_nitride_is_an_insulator(oracle, tmp_path):
    (found,) = oracle.evaluate([boron_nitride()])
    assert found.status == "ok"
    assert 4.0 < found.band_gap_ev < 6.0  # PBE, coarse mesh; 4.5 when converged
    assert found.total_energy_ry < 0
    assert found.formation_energy_ev_per_atom is None
    assert found.details["n_electrons"] == 8
    assert not any((tmp_path / "scratch" / "running").iterdir())


@pytest.mark.dft
def test_an_odd_number_of_electrons_is_calculated_with_spin(oracle):
    lattice = boron_nitride().lattice
    (found,) = oracle.evaluate([Structure(lattice, ["B"], [[0, 0, 0]])])
    assert found.status == "ok"
    assert found.details["magnetization"] == pytest.approx(1.0)


@pytest.mark.dft
def test_an_episode_ends_with_a_real_calculation_and_the_next_with_its_memory(oracle, tmp_path):
    cached = CachedOracle(oracle, tmp_path / "results.db")
    env = gym.make(
        "CrystalFill-v0",
        target_gap=4.5,
        skeletons=[boron_nitride()],
        oracle=cached,
        reward=lambda properties, target: -abs(properties.band_gap_ev - target),
    )
    rewards = []
    for first, second in (("B", "N"), ("N", "B")):  # equivalent sites: one crystal
        env.reset(seed=0)
        env.step(ELEMENTS.index(first))
        _, reward, terminated, _, info = env.step(ELEMENTS.index(second))
        assert terminated
        assert info["oracle_status"] == "ok"
        rewards.append(reward)
    assert rewards[0] == rewards[1]
    assert len(cached.store) == 1
    assert info["provenance"].endswith("(stored)")
