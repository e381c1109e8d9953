"""The script behind the bundled labels, with a real pw.x."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
BUNDLED = ROOT / "crystal_gym" / "data" / "mini_labels.json"


@pytest.mark.dft
def test_a_bundled_label_is_computed_again(data_dir, tmp_path):
    if shutil.which("pw.x") is None:
        pytest.skip("pw.x is not installed (Debian: apt-get install quantum-espresso)")
    output = tmp_path / "again.json"
    archive = data_dir / "qe" / "sssp_efficiency.tar.gz"
    command = [sys.executable, str(ROOT / "scripts" / "label_mini.py"), "--pseudo", str(archive)]
    command += ["--only", "BN-zincblende", "LiF-rocksalt", "--output", str(output)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    bundled = {entry["name"]: entry for entry in json.loads(BUNDLED.read_text())["entries"]}
    computed = json.loads(output.read_text())["entries"]
    assert [entry["name"] for entry in computed] == ["BN-zincblende", "LiF-rocksalt"]
    for entry in computed:
        expected = bundled[entry["name"]]
        assert entry["total_energy_ry"] == pytest.approx(expected["total_energy_ry"], abs=2e-5)
        assert entry["band_gap_ev"] == pytest.approx(expected["band_gap_ev"], abs=2e-3)


def test_every_bundled_label_says_where_it_is_from():
    entries = json.loads(BUNDLED.read_text())["entries"]
    assert len(entries) >= 12
    assert len({entry["structure_type"] for entry in entries}) >= 4
    for entry in entries:
        assert entry["status"] == "ok" or entry["reason"]
        assert entry["lattice_source"]
        assert set(entry["pseudopotentials"]) == set(entry["species"])
