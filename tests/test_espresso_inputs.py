"""What is known before pw.x is launched: checks, electrons, bands, and the input itself."""

import re

import numpy as np
import pytest
from espresso_helpers import lithium_fluoride, one_atom, silicon, stub, write_upf
from pymatgen.core import Lattice, Structure

from crystal_gym.oracles import Status
from crystal_gym.oracles.espresso import Pseudopotentials, PwSettings, make_settings
from crystal_gym.oracles.espresso.inputs import (
    check_structure,
    count_bands,
    count_electrons,
    count_plane_waves,
    pw_input,
)

pytest_plugins = ["espresso_fixtures"]

LOW = PwSettings(ecutwfc_ry=12, ecutrho_ry=60, k_mesh=(2, 2, 2))
BOHR = 0.529177210903


@pytest.fixture
def files(tmp_path):
    return Pseudopotentials(write_upf(tmp_path, "Si", "N"))


def two_atoms(distance, a=5.0):
    return Structure(
        Lattice.cubic(a), ["Si", "Si"], [[0, 0, 0], [distance, 0, 0]], coords_are_cartesian=True
    )


CELLS = {
    "no sites": (Structure(Lattice.cubic(4), [], []), "geometry", "has 0 sites: expected 1 to 200"),
    "many sites": (
        Structure(Lattice.cubic(30), ["Si"] * 300, np.arange(900).reshape(300, 3) / 900),
        "geometry",
        "has 300 sites",
    ),
    "one atom on the other": (two_atoms(0), "geometry", "two atoms are 0.00 Å apart"),
    "atoms too close": (two_atoms(0.3), "geometry", "0.30 Å apart: expected at least 0.5 Å"),
    "images too close": (
        Structure(Lattice.orthorhombic(0.4, 8, 8), ["Si"], [[0, 0, 0]]),
        "geometry",
        "0.40 Å apart",
    ),
    "vacuum": (one_atom("Si", 20), "geometry", r"8e\+03 Å\^3 per atom: expected 2 to 500"),
    "squeezed": (one_atom("Si", 1.0), "geometry", r"1 Å\^3 per atom"),
    "flat": (Structure([[4, 0, 0], [0, 4, 0], [4, 4, 0]], ["Si"], [[0, 0, 0]]), "geometry", "0 Å"),
    "not a number": (one_atom("Si", float("nan")), "geometry", "not a finite number"),
    "site at no place": (
        Structure(Lattice.cubic(4), ["Si"], [[np.nan, 0, 0]]),
        "geometry",
        "not a finite number",
    ),
    "partly occupied": (
        Structure(Lattice.cubic(4), [{"Si": 0.5}], [[0, 0, 0]]),
        "geometry",
        "a site is partially occupied: expected one element per site",
    ),
    "two elements on a site": (
        Structure(Lattice.cubic(4), [{"Si": 0.5, "N": 0.5}], [[0, 0, 0]]),
        "geometry",
        "partially occupied",
    ),
    "elements without a file": (
        Structure(Lattice.cubic(5), ["Pu", "Ac"], [[0, 0, 0], [0.5, 0.5, 0.5]]),
        "unsupported_element",
        "no pseudopotential for Ac, Pu",
    ),
}


@pytest.mark.parametrize("name", CELLS)
def test_a_cell_that_cannot_be_calculated_says_why(files, name):
    structure, status, reason = CELLS[name]
    problem = check_structure(structure, files)
    assert problem is not None
    assert str(problem[0]) == status
    assert re.search(reason, problem[1])


@pytest.mark.parametrize("name", CELLS)
def test_pw_is_not_started_for_such_a_cell(stub_oracle, tmp_path, name):
    started = tmp_path / "started"
    program = stub(tmp_path, f"open({str(started)!r}, 'w').close()")
    found = stub_oracle(program).evaluate([CELLS[name][0]])[0]
    assert str(found.status) == CELLS[name][1]
    assert found.wall_s is None
    assert not started.exists()
    assert not list((tmp_path / "scratch").glob("*/*"))


def test_the_program_of_the_test_above_says_when_it_is_started(stub_oracle, tmp_path):
    started = tmp_path / "started"
    program = stub(tmp_path, f"open({str(started)!r}, 'w').close()")
    stub_oracle(program).evaluate([silicon()])
    assert started.exists()


@pytest.mark.parametrize(
    "structure",
    [
        pytest.param(silicon(), id="silicon"),
        pytest.param(two_atoms(0.6), id="close"),
        pytest.param(one_atom("Si", 7.9), id="airy"),
    ],
)
def test_nothing_speaks_against_other_cells(files, structure):
    assert check_structure(structure, files) is None


def test_oxidation_states_count_no_electrons(files):
    charged = Structure(Lattice.cubic(4), ["Si4+", "N3-"], [[0, 0, 0], [0.5, 0.5, 0.5]])
    assert check_structure(charged, files) is None
    assert count_electrons(charged, files) == 8


# -- bands -----------------------------------------------------------------------------------------

CELL = Lattice.cubic(5).matrix


@pytest.mark.parametrize(
    ("n_bands", "electrons", "magnetization", "expected"),
    [
        pytest.param(64, 8, None, 64, id="as asked"),
        pytest.param(None, 8, None, 4 + 4, id="four spare at least"),
        pytest.param(None, 60, None, 30 + 6, id="a fifth spare"),
        pytest.param(None, 62, None, 31 + 7, id="a fifth, rounded up"),
        pytest.param(3, 8, None, 8, id="more than asked where those are too few"),
        pytest.param(4, 8, None, 8, id="more than the occupied ones"),
        pytest.param(None, 27, 1, 14 + 4, id="one electron unpaired"),
        pytest.param(None, 27, 3, 15 + 4, id="three electrons unpaired"),
        pytest.param(64, 27, 3, 64, id="as asked, with spin"),
    ],
)
def test_bands_are_those_asked_for_and_some_are_empty(n_bands, electrons, magnetization, expected):
    settings = make_settings("labels", n_bands=n_bands)
    assert count_bands(settings, electrons, magnetization, CELL) == expected


def test_smearing_takes_more_spare_bands():
    settings = make_settings("fast", smearing_ry=0.02)
    assert count_bands(settings, 8, None, CELL) == 4 + 8


@pytest.mark.parametrize("a", [1.8, 2.1, 2.5, 2.9])
def test_two_vectors_for_every_band_are_never_nearly_all_plane_waves(a):
    settings, lattice = make_settings("paper"), Lattice.cubic(a).matrix
    n_bands = count_bands(settings, 8, None, lattice)
    assert 0.8 < 2 * n_bands / count_plane_waves(settings, lattice) <= 0.9


def test_a_cell_without_room_for_an_empty_band_is_refused():
    lattice = Lattice.cubic(2).matrix
    most = count_bands(make_settings(LOW, n_bands=1000), 2, None, lattice)
    assert count_bands(LOW, 2 * (most - 1), None, lattice) == most
    expected = f"plane waves for {most} bands at 12 Ry, and {most} are occupied"
    with pytest.raises(ValueError, match=expected):
        count_bands(LOW, 2 * most, None, lattice)


def test_such_a_cell_is_not_started(stub_oracle, tmp_path):
    started = tmp_path / "started"
    program = stub(tmp_path, f"open({str(started)!r}, 'w').close()")
    oracle = stub_oracle(program, ecutwfc_ry=3, ecutrho_ry=12, valence=40.0)
    found = oracle.evaluate([one_atom("Si", 2.0)])[0]
    assert found.status is Status.BANDS
    assert "raise ecutwfc_ry" in found.provenance
    assert not started.exists()


def brute_force(settings, lattice):
    """Count plane waves one by one in a box that is large enough for anything here."""
    reciprocal = 2 * np.pi * np.linalg.inv(lattice / BOHR).T
    axes = [np.arange(-14, 15)] * 3
    grid = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)
    counts = []
    for index in np.ndindex(*settings.k_mesh):
        k = (np.array(index) + np.array(settings.k_offset) / 2) / settings.k_mesh
        k -= np.round(k)
        norms = np.linalg.norm((grid + k) @ reciprocal, axis=1)
        counts.append(int((norms**2 <= settings.ecutwfc_ry).sum()))
    return min(counts)


@pytest.mark.parametrize(
    ("lattice", "mesh", "offset"),
    [
        (Lattice.cubic(3), (2, 2, 2), (0, 0, 0)),
        (Lattice.hexagonal(3, 5), (3, 3, 3), (0, 0, 0)),
        (Lattice.orthorhombic(2, 3, 6), (3, 2, 1), (0, 0, 0)),
        (Lattice.orthorhombic(2, 3, 6), (3, 2, 1), (1, 0, 1)),
        (Lattice.from_parameters(3, 4, 5, 70, 80, 65), (2, 3, 4), (1, 1, 0)),
    ],
    ids=["cubic", "hexagonal", "uneven mesh", "offset", "triclinic"],
)
def test_plane_waves_are_counted_at_every_point_of_the_mesh(lattice, mesh, offset):
    settings = PwSettings(ecutwfc_ry=12, ecutrho_ry=60, k_mesh=mesh, k_offset=offset)
    assert count_plane_waves(settings, lattice.matrix) == brute_force(settings, lattice.matrix)


def test_skewed_vectors_of_the_same_lattice_count_the_same():
    short = Lattice.cubic(4).matrix
    skewed = np.array([[1, 0, 0], [40, 1, 0], [40, 40, 1]]) @ short  # hundreds of Å long
    assert count_plane_waves(LOW, skewed) == count_plane_waves(LOW, short)


@pytest.mark.dft
@pytest.mark.parametrize("k_points", ["2 2 2", "3 3 3"])
def test_pw_counts_as_many_plane_waves(by_hand, k_points):
    _, _, text = by_hand(k_points=k_points)
    settings = PwSettings(12, 60, k_mesh=tuple(map(int, k_points.split())))
    waves = [int(n) for n in re.findall(r"\(\s*(\d+) PWs\)", text)]
    assert min(waves) == count_plane_waves(settings, silicon().lattice.matrix)


def silicon_of(a):
    lattice = silicon().lattice.matrix * a / 5.431
    return lattice, "\n".join(" ".join(f"{x:.14f}" for x in row) for row in lattice)


@pytest.mark.dft
@pytest.mark.parametrize(("a", "k_points"), [(5.431, "1 1 1"), (5.0, "3 3 3")])
def test_pw_takes_as_many_bands_as_are_counted(by_hand, a, k_points):
    lattice, cell = silicon_of(a)
    settings = PwSettings(12, 60, k_mesh=tuple(map(int, k_points.split())), n_bands=1000)
    n_bands = count_bands(settings, 8, None, lattice)
    assert by_hand(system=f"nbnd={n_bands}", k_points=k_points, cell=cell)[0].status is Status.OK


@pytest.mark.dft
@pytest.mark.parametrize(
    ("a", "k_points", "share", "status"),
    [
        pytest.param(5.0, "1 1 1", 0.45, Status.BANDS, id="more than by volume"),
        pytest.param(5.431, "1 1 1", 0.51, Status.BANDS, id="more than at the point"),
        pytest.param(5.431, "1 1 1", 0.49, Status.NOT_CONVERGED, id="nearly all at the point"),
    ],
)
def test_pw_fails_with_more(by_hand, a, k_points, share, status):
    lattice, cell = silicon_of(a)
    waves = count_plane_waves(PwSettings(12, 60, k_mesh=(1, 1, 1)), lattice)
    found, _, _ = by_hand(system=f"nbnd={int(share * waves)}", k_points=k_points, cell=cell)
    assert found.status is status


# -- the input -------------------------------------------------------------------------------------


def written(structure, settings, **options):
    options = {"n_bands": 8, "magnetization": None, "max_seconds": 95.0, **options}
    files = {e: f"{e}.UPF" for e in ("Si", "Li", "F", "N")}
    return pw_input(structure, settings, files, pseudo_dir="/a b/upf", **options)


def values_of(text):
    pairs = re.findall(r"^\s*(\w+)\s*=\s*(.*?)\s*$", text, re.MULTILINE)
    return {name: value.strip("'") for name, value in pairs}


def test_the_input_says_what_the_settings_say():
    found = values_of(written(silicon(), make_settings("paper"), n_bands=200))
    expected = {
        "calculation": "scf",
        "occupations": "fixed",
        "ecutwfc": "30.0",
        "ecutrho": "245.0",
        "conv_thr": "1e-06",
        "mixing_beta": "0.7",
        "electron_maxstep": "100",
        "nbnd": "200",
        "nspin": "1",
        "pseudo_dir": "/a b/upf",
        "max_seconds": "95.0",
        "disk_io": "none",
        "ibrav": "0",
        "nat": "2",
        "ntyp": "1",
    }
    assert {name: found.get(name) for name in expected} == expected
    assert "tot_magnetization" not in found


def test_the_input_holds_mesh_cell_and_sites():
    structure = lithium_fluoride()
    settings = make_settings("labels", k_mesh=(4, 3, 2), k_offset=(1, 0, 1))
    text = written(structure, settings)
    assert re.search(r"K_POINTS automatic\s+4 3 2 +1 0 1\s", text)
    cell = re.search(r"CELL_PARAMETERS angstrom\n((?:.*\n){3})", text)[1].split()
    expected = structure.lattice.matrix.ravel()
    assert np.array(cell, float) == pytest.approx(expected, abs=1e-12)
    sites = re.findall(r"^(Li|F) +(\S+) (\S+) (\S+) *$", text, re.MULTILINE)
    assert [s[0] for s in sites] == [site.specie.symbol for site in structure]
    assert np.array([s[1:] for s in sites], float) == pytest.approx(structure.frac_coords)


def test_a_magnetization_makes_two_spin_channels_and_fixes_it():
    found = values_of(written(one_atom("N"), make_settings("labels"), magnetization=3))
    assert (found["nspin"], found["tot_magnetization"]) == ("2", "3")
    assert found["occupations"] == "fixed"


def test_smearing_lets_the_magnetization_go_free():
    found = values_of(written(one_atom("N"), make_settings("labels", smearing_ry=0.02)))
    assert (found["occupations"], found["smearing"], found["degauss"]) == (
        "smearing",
        "cold",
        "0.02",
    )
    assert found["nspin"] == "2"
    assert "tot_magnetization" not in found


def test_species_are_written_without_oxidation_states():
    charged = Structure(Lattice.cubic(4), ["Si4+", "N3-"], [[0, 0, 0], [0.5, 0.5, 0.5]])
    text = written(charged, make_settings("labels"))
    assert re.search(r"^Si +[\d.]+ +Si\.UPF$", text, re.MULTILINE)
    assert "Si4+" not in text
