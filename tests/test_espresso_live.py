"""`EspressoOracle`: real calculations and failures of pw.x, and stubs where a fault is needed."""

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest
from espresso_helpers import (
    CHEAP,
    HANG_S,
    alive,
    lithium_fluoride,
    one_atom,
    processes_in,
    saying,
    shared_memory_of,
    silicon,
    stub,
    write_upf,
)
from pymatgen.core import Structure

from crystal_gym.oracles import Oracle, Properties, Status
from crystal_gym.oracles.cache import Cacheable
from crystal_gym.oracles.espresso import EspressoOracle, make_settings
from crystal_gym.oracles.espresso.oracle import pw_environment
from crystal_gym.oracles.references import RY_TO_EV, ReferenceEnergies
from crystal_gym.structures import parse_cif

pytest_plugins = ["espresso_fixtures"]

GOOD = """
     Program PWSCF v.6.7MaX starts on 24Nov2026 at 18: 9:18
     highest occupied, lowest unoccupied level (ev):    6.5390    7.1769
!    total energy              =     {energy} Ry
     convergence has been achieved in   7 iterations
   JOB DONE.
"""


@pytest.fixture
def good(tmp_path):
    """Return a stub that says what a good calculation says."""
    return saying(tmp_path / "bin", GOOD.format(energy=-22.5))


def failed_folder(found, scratch):
    """Return the folder of a failed calculation, after looking at what it must hold."""
    folder = Path(found.details["folder"])
    assert folder.parent == scratch / "failed"
    assert {"pw.in", "pw.out"} <= {path.name for path in folder.iterdir()}
    return folder


# -- good calculations -----------------------------------------------------------------------------


@pytest.mark.dft
@pytest.mark.usefixtures("clean")
def test_silicon_has_its_energy_and_gap(oracle, tmp_path):
    found = oracle().evaluate([silicon()])[0]
    assert found.status is Status.OK
    assert found.total_energy_ry == pytest.approx(-22.64499, abs=2e-5)
    assert found.band_gap_ev == pytest.approx(0.637, abs=0.002)
    assert found.formation_energy_ev_per_atom is None
    assert found.provenance.startswith("pw.x ")
    assert found.provenance.endswith(", 12/60 Ry, 2x2x2, 8 bands")
    assert found.wall_s > 0
    assert (found.details["n_electrons"], found.details["n_bands"]) == (8, 8)
    assert not (tmp_path / "scratch" / "failed").exists()


@pytest.mark.dft
@pytest.mark.usefixtures("clean")
def test_lithium_fluoride_has_its_gap(oracle):
    live = oracle(ecutwfc_ry=20, ecutrho_ry=120, n_bands=10)
    assert live.evaluate([lithium_fluoride()])[0].band_gap_ev == pytest.approx(8.890, abs=0.002)


@pytest.mark.dft
@pytest.mark.usefixtures("clean")
def test_structures_are_answered_in_order_and_one_failure_is_no_other_s(oracle):
    nothing = Structure(silicon().lattice, [], [])
    found = oracle().evaluate([nothing, silicon(), nothing])
    assert [str(p.status) for p in found] == ["geometry", "ok", "geometry"]


@pytest.mark.dft
@pytest.mark.usefixtures("clean")
def test_another_choice_of_vectors_is_the_same_crystal(oracle):
    skewed = Structure(
        [[1, 0, 0], [1, 1, 0], [0, 1, 1]] @ silicon().lattice.matrix,
        ["Si", "Si"],
        silicon().cart_coords,
        coords_are_cartesian=True,
    )
    one, other = oracle().evaluate([silicon(), skewed])
    # Other vectors have another grid in real space, which is coarse at these cutoffs.
    assert other.total_energy_ry == pytest.approx(one.total_energy_ry, abs=5e-4)
    assert other.band_gap_ev == pytest.approx(one.band_gap_ev, abs=5e-3)


# Rows of MP-20 of several groups: s, p and d elements, a noble gas, one with spin. The published
# labels of cells with an odd number of electrons are those of the magnetization of lowest energy,
# for MoF3 three Bohr magnetons.
PARITY = {
    "BN": ("train", 3476, 1),
    "BeO": ("train", 12730, 1),
    "Be2C": ("train", 26761, 1),
    "NaF": ("train", 20385, 1),
    "NaH": ("train", 2848, 1),
    "ScN": ("train", 25408, 1),
    "ZnO": ("train", 22532, 1),
    "YN": ("val", 5380, 1),
    "LiBr": ("val", 3511, 1),
    "Ne": ("train", 19289, 1),
    "Hg": ("train", 24526, 1),
    "MoF3": ("train", 10798, 3),
}


@pytest.mark.dft
@pytest.mark.data
@pytest.mark.parametrize("formula", PARITY)
def test_a_published_label_comes_out_again(formula, request, pw, pseudopotentials, tmp_path):
    split, row, magnetization = PARITY[formula]
    rows, labels = (request.getfixturevalue(f"{split}_{name}") for name in ("rows", "labels"))
    label = next(label for label in labels if label.position == row)
    structure = parse_cif(rows[row].cif)
    assert {site.specie.symbol for site in structure} == set(re.findall("[A-Z][a-z]?", formula))
    live = EspressoOracle(
        "labels",
        pseudopotentials=pseudopotentials.folder,
        pw=pw,
        scratch=tmp_path / "scratch",
        magnetizations=(magnetization,),
    )
    found = live.evaluate([structure])[0]
    energy = found.total_energy_ry - label.total_energy_ry
    gap = found.band_gap_ev - max(0.0, label.band_gap_ev)
    formation = found.formation_energy_ev_per_atom - label.formation_energy_ev_per_atom
    assert abs(energy) < 2e-5
    assert abs(gap) < 2e-3
    assert abs(formation) < 2e-5 * RY_TO_EV


# -- spin ------------------------------------------------------------------------------------------


@pytest.mark.dft
@pytest.mark.usefixtures("clean")
def test_an_odd_number_of_electrons_takes_two_spin_channels(oracle):
    found = oracle(k_mesh=(1, 1, 1)).evaluate([one_atom("Li", 3.5)])[0]
    assert found.status is Status.OK
    assert found.details["magnetization"] == 1.0


@pytest.mark.dft
@pytest.mark.usefixtures("clean")
@pytest.mark.parametrize(("element", "a", "best"), [("N", 4.0, 3.0), ("Li", 3.5, 1.0)])
def test_the_magnetization_of_lowest_energy_wins(oracle, element, a, best):
    structure = one_atom(element, a)
    live = oracle(k_mesh=(1, 1, 1), magnetizations=(1, 3))
    found = live.evaluate([structure])[0]
    assert found.details["magnetization"] == best
    alone = oracle(k_mesh=(1, 1, 1), magnetizations=(int(best),)).evaluate([structure])[0]
    assert found.total_energy_ry == pytest.approx(alone.total_energy_ry, abs=1e-6)


def test_magnetizations_beyond_the_electrons_are_not_tried(stub_oracle, good):
    live = stub_oracle(good, valence=1.0, magnetizations=(3,))
    found = live.evaluate([one_atom("Si")])[0]
    assert found.status is Status.ODD_ELECTRONS
    assert "none of the magnetizations" in found.provenance
    assert found.wall_s is None


BY_MAGNETIZATION = """
    import re, sys
    text = open("pw.in").read()
    m = re.search(r"tot_magnetization *= *(\\d+)", text)[1]
    print({answers!r}[m])
"""


def by_magnetization(tmp_path, **answers):
    return stub(tmp_path / "bin", BY_MAGNETIZATION.format(answers=answers))


UNCONVERGED = "convergence NOT achieved after 100 iterations: stopping"


@pytest.mark.parametrize(
    ("answers", "status", "energy"),
    [
        pytest.param((-22.0, -23.0), "ok", -23.0, id="second is lower"),
        pytest.param((-23.0, -22.0), "ok", -23.0, id="first is lower"),
        pytest.param((UNCONVERGED, -22.0), "ok", -22.0, id="first does not converge"),
        pytest.param((-22.0, UNCONVERGED), "ok", -22.0, id="second does not converge"),
        pytest.param((UNCONVERGED, "too few bands"), "not_converged", None, id="none has one"),
        pytest.param((-22.0, "No space left on device"), "io_or_truncated", None, id="disk full"),
        pytest.param((-22.0, "Maximum CPU time exceeded"), "timeout", None, id="time is up"),
    ],
)
def test_of_several_magnetizations(stub_oracle, tmp_path, answers, status, energy):
    said = [GOOD.format(energy=a) if isinstance(a, float) else a for a in answers]
    program = by_magnetization(tmp_path, **dict(zip("13", said, strict=True)))
    found = stub_oracle(program, valence=5.0, magnetizations=(1, 3)).evaluate([one_atom("Si")])[0]
    assert (str(found.status), found.total_energy_ry) == (status, energy)


def test_wall_times_of_all_magnetizations_are_added(stub_oracle, tmp_path):
    program = by_magnetization(tmp_path, **{m: GOOD.format(energy=-22) for m in "135"})
    live = stub_oracle(program, valence=5.0)
    one = live.evaluate([one_atom("Si")])[0].wall_s
    three = stub_oracle(program, valence=5.0, magnetizations=(1, 3, 5))
    assert three.evaluate([one_atom("Si")])[0].wall_s > one


# -- failures of the real program ------------------------------------------------------------------


@pytest.mark.dft
@pytest.mark.usefixtures("clean")
def test_a_cycle_that_does_not_converge(oracle):
    live = oracle(electron_maxstep=2)
    found = live.evaluate([silicon()])[0]
    assert found.status is Status.NOT_CONVERGED
    assert "convergence NOT achieved after 2 iterations" in found.provenance
    assert (found.total_energy_ry, found.band_gap_ev) == (None, None)
    folder = failed_folder(found, live.scratch)
    assert "JOB DONE" in (folder / "pw.out").read_text()


@pytest.mark.dft
@pytest.mark.parametrize(
    ("values", "status", "reason"),
    [
        pytest.param(
            {"nat": 1, "positions": "B 0 0 0", "species": "B 10.8 b_pbe_v1.4.uspp.F.UPF"},
            "odd_electrons",
            "charge is wrong: smearing is needed",
            id="odd electrons without spin",
        ),
        pytest.param(
            {"system": "nbnd=8, nspin=2, tot_magnetization=1"},
            "odd_electrons",
            "charge is wrong: smearing is needed",
            id="wrong magnetization",
        ),
        pytest.param(
            {"system": "nbnd=8, nspin=2"},
            "configuration",
            "fixed occupations and lsda need tot_magnetization",
            id="spin without magnetization",
        ),
        pytest.param({"system": "nbnd=3"}, "bands", "too few bands", id="too few bands"),
        pytest.param(
            {"system": "nbnd=4"},
            "no_gap_information",
            "names no lowest unoccupied level",
            id="the occupied bands alone",
        ),
        pytest.param({"system": "nbnd=300"}, "bands", "more bands than PWs", id="too many bands"),
        pytest.param(
            {"positions": "Si 0 0 0\nSi 0 0 0"},
            "geometry",
            "atoms # 1 and # 2 overlap",
            id="one atom on the other",
        ),
        pytest.param(
            {
                "cell": "3 0 0\n0 3 0\n0 0 3",
                "positions": "H 0 0 0\nH 0.05 0 0",
                "species": "H 1 H.pbe-rrkjus_psl.1.0.0.UPF",
            },
            "unphysical_energy",
            "Ry: expected a negative number",
            id="atoms far too close",
        ),
        pytest.param(
            {"cell": "0 3 3\n3 0 3\n0 3 3"}, "geometry", "error in DGETRF", id="singular cell"
        ),
        pytest.param(
            {"species": "Si 28 missing.UPF"},
            "configuration",
            "missing.UPF not found",
            id="pseudopotential missing",
        ),
        pytest.param(
            {"outdir": "/proc/nowhere"},
            "io_or_truncated",
            "cannot be created or accessed",
            id="folder cannot be written",
        ),
        pytest.param(
            {"max_seconds": 0.01}, "timeout", "Maximum CPU time exceeded", id="its own time limit"
        ),
    ],
)
@pytest.mark.usefixtures("clean")
def test_what_pw_says_is_understood(by_hand, values, status, reason):
    found, finished, text = by_hand(**values)
    assert (str(found.status), found.band_gap_ev) == (status, None), text[-2000:]
    assert reason in found.reason
    assert not finished.timed_out


@pytest.mark.dft
@pytest.mark.usefixtures("clean")
def test_a_truncated_pseudopotential_makes_pw_break_off(by_hand, pseudopotentials, tmp_path):
    cut = tmp_path / "cut"
    cut.mkdir()
    name = pseudopotentials["Si"].file
    (cut / name).write_bytes((pseudopotentials.folder / name).read_bytes()[:20_000])
    found, _, _ = by_hand(pseudo_dir=cut)
    assert found.status is Status.IO_OR_TRUNCATED
    assert "End of file" in found.reason


@pytest.mark.dft
@pytest.mark.usefixtures("clean")
def test_the_oracle_finds_a_truncated_pseudopotential_before(pw, pseudopotentials, tmp_path):
    cut = tmp_path / "cut"
    cut.mkdir()
    name = pseudopotentials["Si"].file
    (cut / name).write_bytes((pseudopotentials.folder / name).read_bytes()[:20_000])
    live = EspressoOracle(
        pseudopotentials=cut, pw=pw, references=None, scratch=tmp_path / "scratch"
    )
    found = live.evaluate([silicon()])[0]
    assert found.status is Status.CONFIGURATION
    assert "no complete pseudopotential" in found.provenance
    assert found.wall_s is None


@pytest.mark.dft
@pytest.mark.usefixtures("clean")
def test_more_memory_than_allowed(oracle):
    live = oracle(memory_gb=0.5, ecutrho_ry=2000, k_mesh=(1, 1, 1))
    found = live.evaluate([one_atom("He", 7.0)])[0]
    assert found.status is Status.MEMORY_OR_SIGNAL
    assert "Cannot allocate memory" in found.provenance
    failed_folder(found, live.scratch)


LONG = {"ecutwfc_ry": 40, "ecutrho_ry": 320, "k_mesh": (12, 12, 12), "n_bands": 60}
"""Settings under which silicon takes far longer than any test waits."""


def when_running(scratch, action, n=1):
    """Do something to the processes of a calculation in another thread, once there are ``n``."""

    def watch():
        deadline = time.monotonic() + HANG_S
        while time.monotonic() < deadline:
            found = processes_in(scratch)
            if len(found) >= n:
                seen.extend(found)
                return action(found)
            time.sleep(0.02)

    seen = []
    thread = threading.Thread(target=watch)
    thread.start()
    return thread, seen


@pytest.mark.dft
@pytest.mark.usefixtures("clean")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_program_that_someone_kills(oracle, number):
    live = oracle(**LONG)
    thread, _ = when_running(live.scratch, lambda pids: os.kill(pids[0], number))
    found = live.evaluate([silicon()])[0]
    thread.join()
    assert found.status is Status.MEMORY_OR_SIGNAL
    assert not found.status.is_final
    assert f"ended by signal {int(number)}" in found.provenance
    failed_folder(found, live.scratch)


@pytest.mark.dft
@pytest.mark.usefixtures("clean")
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_time_limit_leaves_no_process_and_no_shared_memory(oracle, ranks):
    if ranks > 1 and shutil.which("mpirun") is None:
        pytest.skip("mpirun is not installed")
    live = oracle(**LONG, timeout_s=3, ranks=ranks)
    thread, pids = when_running(live.scratch, lambda pids: None, n=ranks + (ranks > 1))
    found = live.evaluate([silicon()])[0]
    thread.join()
    assert found.status is Status.TIMEOUT
    assert pids
    assert [pid for pid in pids if alive(pid)] == []
    assert shared_memory_of(pids) == []
    failed_folder(found, live.scratch)


@pytest.mark.dft
@pytest.mark.usefixtures("clean")
def test_two_ranks_give_what_one_gives(oracle):
    if shutil.which("mpirun") is None:
        pytest.skip("mpirun is not installed")
    found = oracle(ranks=2).evaluate([silicon()])[0]
    assert found.status is Status.OK, found.provenance
    assert found.total_energy_ry == pytest.approx(-22.64499, abs=2e-5)
    assert found.band_gap_ev == pytest.approx(0.637, abs=0.002)


_KILLED = """
    import sys
    sys.path[:0] = {path!r}
    from espresso_helpers import silicon
    from crystal_gym.oracles.espresso import EspressoOracle
    EspressoOracle("labels", pseudopotentials={folder!r}, references=None, scratch={scratch!r},
                   ranks={ranks}, **{long!r}).evaluate([silicon()])
"""


@pytest.mark.dft
@pytest.mark.parametrize("ranks", [1, 2])
def test_pw_ends_with_the_python_process_that_waits_for_it(pw, pseudopotentials, tmp_path, ranks):
    if ranks > 1 and shutil.which("mpirun") is None:
        pytest.skip("mpirun is not installed")
    if not sys.platform.startswith("linux"):
        pytest.skip("only Linux tells a process that its parent has ended")
    text = _KILLED.format(
        path=[str(Path(__file__).parent)],
        folder=str(pseudopotentials.folder),
        scratch=str(tmp_path / "scratch"),
        ranks=ranks,
        long=LONG,
    )
    process = subprocess.Popen([sys.executable, "-W", "ignore", "-c", textwrap.dedent(text)])
    thread, pids = when_running(tmp_path, lambda pids: process.kill(), n=ranks + (ranks > 1))
    process.wait(3 * HANG_S)
    thread.join()
    deadline = time.monotonic() + HANG_S
    while any(map(alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert pids
    assert [pid for pid in pids if alive(pid)] == []
    assert shared_memory_of(pids) == []


# -- disks -----------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path):
    """Return a function that mounts a disk of some bytes, or skips."""
    mounted = []

    def mount(size, *options):
        folder = tmp_path / "disk"
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", ",".join([f"size={size}", *options]), "tmpfs"]
        if os.getuid() != 0 or subprocess.run([*command, folder], capture_output=True).returncode:
            pytest.skip("mounting a small disk needs root")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", "-l", folder], check=True)


@pytest.mark.dft
def test_a_disk_that_gets_full_cuts_the_output_off(oracle, small_disk):
    live = oracle(scratch=small_disk("8k") / "scratch")  # pw.x says some 10 kB
    found = live.evaluate([silicon()])[0]
    assert found.status is Status.IO_OR_TRUNCATED
    assert (found.total_energy_ry, found.band_gap_ev) == (None, None)
    assert list((live.scratch / "running").iterdir()) == []


def test_a_full_disk_takes_no_input(stub_oracle, good, small_disk):
    folder = small_disk("64k")
    live = stub_oracle(good, scratch=folder / "scratch")
    with contextlib.suppress(OSError), open(folder / "rest", "wb", buffering=0) as file:
        while True:
            file.write(b"\0" * 1024)
    found = live.evaluate([silicon()])[0]
    assert found.status is Status.IO_OR_TRUNCATED
    assert "could not be run in" in found.provenance
    assert "No space left on device" in found.provenance
    assert list((live.scratch / "running").iterdir()) == []


def test_a_scratch_folder_that_cannot_be_written_is_refused(stub_oracle, good, small_disk):
    folder = small_disk("64k", "ro")
    with pytest.raises(
        OSError, match=r"scratch cannot be written \(Read-only.*name another scratch"
    ):
        stub_oracle(good, scratch=folder / "scratch")


def test_a_file_in_place_of_the_scratch_folder_is_refused(stub_oracle, good, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"file cannot be written \(.*name another scratch"):
        stub_oracle(good, scratch=tmp_path / "file")


def test_a_program_that_has_gone_is_told(stub_oracle, good):
    live = stub_oracle(good)
    good.unlink()
    found = live.evaluate([silicon()])[0]
    assert found.status is Status.IO_OR_TRUNCATED
    assert "could not be run in" in found.provenance
    assert list((live.scratch / "running").iterdir()) == []


# -- programs that are no pw.x ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "status", "reason"),
    [
        ("", 0, "the output of pw.x breaks off before its end"),
        ("hello", 0, "the output of pw.x breaks off before its end"),
        ("", 5, "pw.x ended with status 5 and no message"),
    ],
    ids=["silent", "something else", "failing"],
)
def test_a_program_that_says_no_results(stub_oracle, tmp_path, text, status, reason):
    live = stub_oracle(saying(tmp_path / "bin", text, status))
    found = live.evaluate([silicon()])[0]
    assert found.status is Status.IO_OR_TRUNCATED
    assert found.provenance == f"pw.x, {live.settings}: {reason}"
    failed_folder(found, live.scratch)


def test_bytes_that_are_no_text_are_read_over(stub_oracle, tmp_path):
    body = "import sys\nsys.stdout.buffer.write(b'\\xff\\xfe\\n')\nprint({!r})"
    program = stub(tmp_path / "bin", body.format(GOOD.format(energy=-22.5)))
    assert stub_oracle(program).evaluate([silicon()])[0].status is Status.OK


def test_a_calculation_runs_with_one_thread_and_no_daemon(stub_oracle, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "8")
    program = stub(tmp_path / "bin", "import os\nprint(dict(os.environ))\nraise SystemExit(1)")
    live = stub_oracle(program)
    folder = failed_folder(live.evaluate([silicon()])[0], live.scratch)
    said = (folder / "pw.out").read_text()
    for name, value in pw_environment(folder).items():
        if "THREADS" in name or name == "OMPI_MCA_ess_singleton_isolated":
            assert f"{name!r}: '1'" in said, (name, value)


# -- arguments -------------------------------------------------------------------------------------


def test_it_is_an_oracle_whose_answers_can_be_remembered(stub_oracle, good):
    live = stub_oracle(good)
    assert isinstance(live, Oracle)
    assert isinstance(live, Cacheable)
    assert repr(live) == f"EspressoOracle(pw.x 6.7MaX, {live.settings})"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ranks": 0}, "ranks=0 is not usable: expected a whole number above 0"),
        ({"ranks": 1.5}, "ranks=1.5 is not usable: expected a whole number above 0"),
        ({"ranks": True}, "ranks=True is not usable"),
        ({"timeout_s": 0}, "timeout_s=0 is not usable: expected a number above 0"),
        ({"timeout_s": float("inf")}, "timeout_s=inf is not usable"),
        ({"timeout_s": float("nan")}, "timeout_s=nan is not usable"),
        ({"timeout_s": "60"}, "timeout_s='60' is not usable"),
        ({"memory_gb": 0.1}, "memory_gb=0.1 is not usable: expected at least 0.5"),
        ({"memory_gb": float("inf")}, "memory_gb=inf is not usable"),
        ({"kmesh": (2, 2, 2)}, r"no pw.x setting called 'kmesh' \(did you mean 'k_mesh'"),
    ],
)
def test_a_value_that_cannot_be_is_refused(stub_oracle, good, options, message):
    with pytest.raises(ValueError, match=message):
        stub_oracle(good, **options)


def test_without_pw_x_there_is_no_oracle(stub_oracle):
    with pytest.raises(FileNotFoundError, match="'/no/pw.x' of Quantum ESPRESSO was not found"):
        stub_oracle("/no/pw.x")


def test_without_mpirun_there_are_no_ranks(stub_oracle, good, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(
        FileNotFoundError, match="ranks=2 needs mpirun, which is not installed: use 1"
    ):
        stub_oracle(good, ranks=2)


def test_without_pseudopotentials_there_is_no_oracle(good, tmp_path):
    with pytest.raises(FileNotFoundError, match="no pseudopotentials in .*fetch sssp"):
        EspressoOracle(pseudopotentials=tmp_path / "none", pw=str(good), references=None)


def test_a_fingerprint_names_version_settings_and_files(stub_oracle, good):
    live = stub_oracle(good)
    md5 = live.pseudopotentials["Si"].md5
    assert live.fingerprint(["Si", "Pu", "Si"]) == (
        f'{{"pseudopotentials": {{"Pu": "", "Si": "{md5}"}}, "pw.x": "6.7MaX", '
        f'"settings": "{live.settings.key}"}}'
    )


# -- reference energies ----------------------------------------------------------------------------


def references_for(live, settings=None, **changes):
    values = {
        "settings": settings or live.settings.energy_key,
        "energies_ry": {"Si": -11.0, "N": -20.0},
        "pseudopotentials": {e: live.pseudopotentials[e].md5 for e in ("Si", "N")},
        **changes,
    }
    return ReferenceEnergies(**values)


def test_a_formation_energy_is_what_is_left_of_the_references(stub_oracle, good):
    references = references_for(stub_oracle(good))
    found = stub_oracle(good, references=references).evaluate([silicon()])[0]
    assert found.total_energy_ry == -22.5
    assert found.formation_energy_ev_per_atom == pytest.approx((-22.5 + 22.0) / 2 * RY_TO_EV)


def test_no_references_give_no_formation_energy(stub_oracle, good):
    found = stub_oracle(good, references=None).evaluate([silicon()])[0]
    assert (found.status, found.formation_energy_ev_per_atom) == (Status.OK, None)


def test_references_of_another_pseudopotential_give_none_and_say_so(stub_oracle, good):
    references = references_for(stub_oracle(good), pseudopotentials={"Si": "0" * 32})
    found = stub_oracle(good, references=references).evaluate([silicon()])[0]
    assert (found.status, found.formation_energy_ev_per_atom) == (Status.OK, None)
    assert found.total_energy_ry == -22.5
    assert (
        "no formation energy: there is no reference for Si with this pseudopotential; run "
        "`crystal-gym label references`"
    ) in found.provenance


def test_an_element_without_a_reference_gives_none_and_says_so(stub_oracle, good):
    references = references_for(stub_oracle(good), energies_ry={"N": -20.0})
    found = stub_oracle(good, references=references).evaluate([silicon()])[0]
    assert found.formation_energy_ev_per_atom is None
    assert "no reference for Si" in found.provenance


def test_references_of_other_settings_are_refused(stub_oracle, good):
    other = references_for(stub_oracle(good), make_settings("paper").energy_key)
    with pytest.raises(
        ValueError, match=r"belong to other settings .*`crystal-gym label references`"
    ):
        stub_oracle(good, references=other)


def test_settings_without_known_references_are_refused(stub_oracle, good):
    expected = r"30/245 Ry.*run `crystal-gym label references` with them first, or pass references="
    with pytest.raises(ValueError, match=expected):
        stub_oracle(good, "paper", references="auto")


@pytest.mark.parametrize("preset", ["labels", "fast"])
def test_the_published_references_are_found(stub_oracle, good, preset):
    live = stub_oracle(good, preset, references="auto")
    assert live.references.settings == make_settings("labels").energy_key


def test_references_that_are_something_else_are_refused(stub_oracle, good):
    with pytest.raises(TypeError, match="references='mine' is not understood: expected Reference"):
        stub_oracle(good, references="mine")


def test_stored_results_get_the_formation_energy_of_today(stub_oracle, good):
    live = stub_oracle(good, references=references_for(stub_oracle(good)))
    stored = Properties(total_energy_ry=-31.5, provenance="stored")
    found = live.derive(stored, ["Si", "N"])
    assert found.formation_energy_ev_per_atom == pytest.approx((-31.5 + 31.0) / 2 * RY_TO_EV)


def test_a_failure_has_no_formation_energy(stub_oracle, good):
    live = stub_oracle(good, references=references_for(stub_oracle(good)))
    failed = Properties(status=Status.TIMEOUT)
    assert live.derive(failed, ["Si"]).formation_energy_ev_per_atom is None


# -- folders ---------------------------------------------------------------------------------------


def test_names_of_failed_folders_begin_with_the_formula(stub_oracle, tmp_path):
    live = stub_oracle(saying(tmp_path / "bin", "", 1))
    folder = failed_folder(live.evaluate([silicon()])[0], live.scratch)
    assert folder.name.startswith("Si2-")


def test_the_scratch_folder_is_in_the_cache_by_default(good, tmp_path, monkeypatch):
    monkeypatch.setenv("CRYSTAL_GYM_CACHE", str(tmp_path / "cache"))
    folder = write_upf(tmp_path / "upf", "Si")
    live = EspressoOracle(pseudopotentials=folder, pw=str(good), references=None)
    assert live.scratch == tmp_path / "cache" / "espresso"


def test_a_calculation_runs_in_a_folder_of_host_and_process(stub_oracle, tmp_path):
    where = tmp_path / "where"
    body = f"import os\nopen({str(where)!r}, 'w').write(os.getcwd())"
    live = stub_oracle(stub(tmp_path / "bin", body))
    live.evaluate([silicon()])
    folder = Path(where.read_text())
    assert folder.parent == live.scratch / "running"
    assert folder.name.startswith(f"{socket.gethostname()}-{os.getpid()}-")


def test_smearing_has_an_energy_and_no_failed_folder(stub_oracle, tmp_path):
    levels = "     highest occupied, lowest unoccupied level (ev):    6.5390    7.1769\n"
    text = GOOD.format(energy=-22.5).replace(levels, "     the Fermi energy is     6.5390 ev\n")
    live = stub_oracle(saying(tmp_path / "bin", text), smearing_ry=0.02, valence=3.0)
    found = live.evaluate([one_atom("Si")])[0]
    assert (found.status, found.total_energy_ry) == (Status.NO_GAP_INFORMATION, -22.5)
    assert "there is no gap with smearing" in found.provenance
    assert not list(live.scratch.glob("*/*"))


@pytest.mark.dft
@pytest.mark.usefixtures("clean")
def test_a_metal_with_smearing_has_an_energy(oracle):
    live = oracle(smearing_ry=0.02, k_mesh=(2, 2, 2))
    found = live.evaluate([one_atom("Li", 3.5)])[0]
    assert (found.status, found.band_gap_ev) == (Status.NO_GAP_INFORMATION, None)
    assert found.total_energy_ry < -13
    assert CHEAP["ecutwfc_ry"] == live.settings.ecutwfc_ry
