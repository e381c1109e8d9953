"""The bundled set `mini`: what it holds, where each number is from, and whether pw.x agrees."""

import json
from pathlib import Path

import numpy as np
import pytest

from crystal_gym.datasets.build import build_mini_set
from crystal_gym.elements import tokens_to_symbols
from crystal_gym.oracles import EspressoOracle, Status, load_table
from crystal_gym.oracles.espresso.pseudopotentials import manifest
from crystal_gym.oracles.references import formation_energy, published_references

pytest_plugins = ["espresso_fixtures"]

DATA = Path(__file__).resolve().parents[1] / "crystal_gym" / "data"
CONTENT = json.loads((DATA / "mini_labels.json").read_text(encoding="utf-8"))
ENTRIES = CONTENT["entries"]
OK = [entry for entry in ENTRIES if entry["status"] == "ok"]


def test_it_is_as_large_and_as_wide_as_promised():
    assert len(OK) >= 300
    assert len({symbol for entry in OK for symbol in entry["species"]}) >= 30
    assert len({entry["structure_type"] for entry in OK}) >= 8


def test_gaps_are_spread_over_the_range_of_targets():
    counts, _ = np.histogram([entry["band_gap_ev"] for entry in OK], [0, 1, 2, 3, 4, 5, 7, 20])
    assert (counts[1:5] >= 25).all()  # 1 to 5 eV
    assert counts[6] >= 5  # above 7 eV
    assert max(entry["band_gap_ev"] for entry in OK) > 9


def test_every_entry_says_where_it_is_from():
    for entry in ENTRIES:
        assert entry["status"] == "ok" or entry["reason"]
        assert entry["lattice_source"].startswith(
            ("experimental lattice constant", "energy-volume fit", "AFLOW prototype")
        )
    kinds = {entry["lattice_source"].split(",")[0].split(" (")[0] for entry in OK}
    assert len(kinds) == 3


def test_failures_are_in_with_their_status_and_without_numbers():
    failed = [entry for entry in ENTRIES if entry["status"] != "ok"]
    assert failed
    for entry in failed:
        assert Status(entry["status"]) not in (Status.OK, Status.UNKNOWN, Status.CONFIGURATION)
        assert entry["band_gap_ev"] is None


def test_the_pseudopotentials_are_the_manifests():
    for element, file in CONTENT["pseudopotentials"].items():
        assert file["md5"] == manifest()[element].md5


def test_formation_energies_are_eqn_15_with_references_that_belong_to_the_files():
    references = published_references()
    for entry in OK:
        files = {s: CONTENT["pseudopotentials"][s]["md5"] for s in entry["species"]}
        assert not references.missing(files)
        expected = formation_energy(entry["total_energy_ry"], entry["species"])
        assert entry["formation_energy_ev_per_atom"] == pytest.approx(expected, abs=1e-7)
        # A reference of another pseudopotential would be off by whole Rydbergs.
        assert -7 < entry["formation_energy_ev_per_atom"] < 3


def test_no_path_of_the_machine_is_in(tmp_path):
    for entry in ENTRIES:
        assert "/" not in (entry["reason"] or "").replace("30/240", "")


def test_the_table_holds_what_the_file_says():
    table = load_table("mini")
    assert len(table) == len(ENTRIES)
    for number, entry in enumerate(ENTRIES):
        assert str(table.skeletons.names[number]) == entry["name"]
        found = table.properties(number)
        assert found.total_energy_ry == entry["total_energy_ry"]
        assert found.band_gap_ev == entry["band_gap_ev"]
        assert str(found.status) == entry["status"]
        symbols = tokens_to_symbols(table.entry_tokens(number))
        assert sorted(symbols) == sorted(entry["species"])


def test_the_set_is_made_from_the_file(tmp_path):
    some = dict(CONTENT, entries=ENTRIES[:5])
    (tmp_path / "labels.json").write_text(json.dumps(some))
    made = build_mini_set(tmp_path / "labels.json", tmp_path)
    bundled = load_table("mini")
    assert [made.properties(i) for i in range(5)] == [bundled.properties(i) for i in range(5)]
    np.testing.assert_array_equal(made.skeletons.keys, bundled.skeletons.keys[:5])


def test_both_sets_are_small():
    files = [*DATA.glob("mini/*.npz"), *DATA.glob("tabular/*.npz")]
    assert len(files) == 4
    assert sum(path.stat().st_size for path in files) < 1_000_000


@pytest.mark.dft
@pytest.mark.parametrize("name", ["BN-zincblende", "LiF-rocksalt"])
def test_a_bundled_label_is_calculated_again(name, pw, pseudopotentials, tmp_path):
    (entry,) = [entry for entry in ENTRIES if entry["name"] == name]
    table = load_table("mini")
    number = int(np.flatnonzero(table.skeletons.names == name)[0])
    structure = table.skeletons[number].structure(table.entry_tokens(number))
    oracle = EspressoOracle("labels", pseudopotentials=pseudopotentials.folder, scratch=tmp_path)
    (found,) = oracle.evaluate([structure])
    assert found.total_energy_ry == pytest.approx(entry["total_energy_ry"], abs=2e-5)
    assert found.band_gap_ev == pytest.approx(entry["band_gap_ev"], abs=2e-3)
