"""Relaxation of candidates with the packaged potential."""

from __future__ import annotations

import json

import numpy as np
import pytest
from made_crystals import perovskite, rocksalt
from monty.serialization import loadfn
from pymatgen.core import Lattice, Structure
from pymatgen.entries.computed_entries import ComputedEntry

from crystal_gym.relaxation import Relaxer, _hull, largest_move

pytest.importorskip("chgnet", reason="the potential is not installed: pip install .[relax]")
pytestmark = pytest.mark.filterwarnings("ignore")  # of the potential's own packages


def test_a_stretched_cell_comes_back_and_its_energy_falls():
    stretched = rocksalt(a=5.9)
    found = Relaxer()(stretched)
    json.dumps(found)
    assert found["converged"]
    after = Structure.from_dict(found["structure"])
    assert after.volume ** (1 / 3) == pytest.approx(rocksalt(a=5.64).volume ** (1 / 3), rel=0.03)
    assert found["volume_change_percent"] == pytest.approx(
        100 * (after.volume / stretched.volume - 1), abs=1e-6
    )
    assert found["largest_move_ang"] == pytest.approx(0.0, abs=0.02)
    assert found["energy_above_hull_ev_per_atom"] is None
    assert -5 < found["energy_ev_per_atom"] < -2


def test_energies_above_the_hull_where_references_allow(tmp_path):
    entries = [ComputedEntry("Na", -1.3), ComputedEntry("Cl", -1.8), ComputedEntry("NaCl", -6.9)]
    path = tmp_path / "references.json"
    path.write_text(json.dumps([e.as_dict() for e in entries]))
    relaxer = Relaxer(path)
    found = relaxer(rocksalt())
    expected = found["energy_ev_per_atom"] + 6.9 / 2
    assert found["energy_above_hull_ev_per_atom"] == pytest.approx(expected, abs=1e-6)
    assert relaxer(perovskite())["energy_above_hull_ev_per_atom"] is None
    path.write_text("[1, 2]")
    with pytest.raises(ValueError, match="holds no references .*: expected a JSON list"):
        Relaxer(path)


def test_moves_are_measured_across_the_border_and_without_drift():
    before = Structure(Lattice.cubic(4.0), ["Na", "Cl"], [[0, 0, 0.01], [0.5, 0.5, 0.5]])
    after = Structure(Lattice.cubic(4.0), ["Na", "Cl"], [[0, 0, 0.99], [0.5, 0.5, 0.5]])
    assert largest_move(before, after) == pytest.approx(0.02 * 4 / 2)
    drifted = before.copy()
    drifted.translate_sites([0, 1], np.array([0.3, 0.2, 0.6]))
    assert largest_move(before, drifted) == pytest.approx(0.0, abs=1e-9)


def test_references_import_nothing(tmp_path, monkeypatch):
    (tmp_path / "named_by_json.py").write_text(
        f"open({str(tmp_path / 'owned')!r}, 'w').close()\nclass Entry: pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    path = tmp_path / "references.json"
    path.write_text(json.dumps([{"@module": "named_by_json", "@class": "Entry"}]))
    with pytest.raises(ValueError, match="holds no references .*: expected a JSON list"):
        _hull(path)
    assert not (tmp_path / "owned").exists()
    loadfn(path)  # pymatgen's way: the module is imported
    assert (tmp_path / "owned").exists()
