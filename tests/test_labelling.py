"""`label`: several workers, one database, and an end at any moment that costs nothing finished."""

import contextlib
import io
import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import ase.db
import pytest
from pymatgen.core import Lattice, Structure
from stub_pw import Stub

from crystal_gym.labelling import label
from crystal_gym.oracles import CachedOracle, EspressoOracle, ResultStore, Status

COUNT = 60


def crystal(number, elements=("Na", "Cl")):
    sites = [[0, 0, 0], [0.5, 0.5, 0.5]]
    return Structure(Lattice.cubic(3.4 + 0.01 * number), list(elements), sites)


def crystals(count=COUNT):
    return [crystal(number) for number in range(count)]


def oracle_in(folder, database=None):
    espresso = EspressoOracle(
        "fast",
        pw=str(folder / "stub" / "pw.x"),
        pseudopotentials=folder / "stub" / "pseudo",
        references=None,
        scratch=folder / "scratch",
    )
    return CachedOracle(espresso, database or folder / "results.db")


def label_all(folder):
    """Label all crystals; what the processes that are interrupted and killed below do."""
    label(crystals(), oracle_in(folder), workers=2)


@pytest.fixture
def stub(tmp_path):
    return Stub(tmp_path / "stub", ["Na", "Cl", "K"])


@pytest.fixture
def cached(stub, tmp_path):
    return oracle_in(tmp_path)


def test_results_come_in_the_order_of_the_structures(cached, stub):
    structures = crystals(9)
    found = label(structures, cached, workers=3)
    assert [p.status for p in found] == [Status.OK] * 9
    stored = [cached.known(structure).total_energy_ry for structure in structures]
    assert [p.total_energy_ry for p in found] == stored
    assert len(set(stored)) == 9
    assert len(stub.done) == 9


def test_a_second_run_calculates_nothing(cached, stub, tmp_path):
    first = label(crystals(4), cached)
    second = label(crystals(4), oracle_in(tmp_path))
    assert [p.total_energy_ry for p in second] == [p.total_energy_ry for p in first]
    assert len(stub.started) == 4


def test_only_what_is_missing_is_calculated(cached, stub):
    cached.evaluate(crystals(3))
    label(crystals(5), cached)
    assert len(stub.started) == 5


def test_what_another_program_stored_since_needs_no_worker(cached, tmp_path):
    oracle_in(tmp_path).evaluate(crystals(3))
    found = label(crystals(3), cached, executor=Executor())  # which submits nothing
    assert [p.status for p in found] == [Status.OK] * 3


def test_the_same_crystal_is_calculated_once(cached, stub):
    other = crystal(0).make_supercell([[1, 1, 0], [0, 1, 0], [0, 0, 1]], in_place=False)
    structures = [crystal(0), crystal(1), other, crystal(0)]
    found = label(structures, cached, workers=2)
    assert found[0] == found[2] == found[3] != found[1]
    assert len(stub.started) == 2


def test_what_is_no_crystal_has_its_status_and_its_place(cached):
    overlapping = Structure(Lattice.cubic(4), ["Na", "Na"], [[0, 0, 0], [0.01, 0, 0]])
    found = label([overlapping, crystal(0), overlapping], cached)
    assert [p.status for p in found] == [Status.GEOMETRY, Status.OK, Status.GEOMETRY]


def test_failures_are_results(cached, stub):
    stub.set(failures={"K": "not_converged"})
    found = label([crystal(0), crystal(1, ("K", "Cl"))], cached)
    assert [p.status for p in found] == [Status.OK, Status.NOT_CONVERGED]


def test_nothing_to_label_is_nothing(cached):
    assert label([], cached) == []


def test_less_than_one_worker_is_refused(cached):
    with pytest.raises(ValueError, match="workers=0: expected at least 1"):
        label(crystals(1), cached, workers=0)


@pytest.mark.parametrize("kind", [ThreadPoolExecutor, ProcessPoolExecutor])
def test_any_executor_will_do_and_stays_open(cached, stub, kind):
    with kind(3) as executor:
        found = label(crystals(6), cached, executor=executor)
        assert executor.submit(abs, -3).result() == 3
    assert [p.status for p in found] == [Status.OK] * 6
    assert len(stub.started) == 6


class ElsewhereExecutor(Executor):
    """Calculates with another database, as workers on other machines may."""

    def __init__(self, oracle):
        self.oracle = oracle

    def submit(self, function, oracle, *words):
        future = Future()
        future.set_result(function(self.oracle, *words))
        return future


def test_what_workers_could_not_store_here_is_stored(cached, stub, tmp_path):
    elsewhere = oracle_in(tmp_path, tmp_path / "elsewhere.db")
    label(crystals(3), cached, executor=ElsewhereExecutor(elsewhere))
    assert len(oracle_in(tmp_path).store) == 3
    assert len(stub.started) == 3


def attempts(path):
    return [row.data["properties"]["status"] for row in ase.db.connect(path).select()]


def test_what_follows_a_passing_failure_elsewhere_is_stored(cached, stub, tmp_path):
    elsewhere = ElsewhereExecutor(oracle_in(tmp_path, tmp_path / "elsewhere.db"))
    stub.set(failures={"Na": "timeout"})
    label(crystals(1), cached, executor=elsewhere)
    stub.set(failures={})
    assert label(crystals(1), cached, executor=elsewhere)[0].status == Status.OK
    assert attempts(tmp_path / "results.db") == ["timeout", "ok"]


def test_a_passing_failure_that_a_worker_stored_is_one_attempt(cached, stub, tmp_path):
    stub.set(failures={"Na": "timeout"})
    with ThreadPoolExecutor(1) as executor:
        for _ in range(4):
            label(crystals(1), cached, executor=executor)
    assert attempts(tmp_path / "results.db") == ["timeout"] * 3
    assert len(stub.started) == 3


def test_workers_run_at_the_same_time(cached, stub):
    stub.set(seconds=0.5)
    most, done = 0, threading.Event()

    def watch():
        nonlocal most
        while not done.wait(0.02):
            most = max(most, len(stub.processes()))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        with ThreadPoolExecutor(2) as executor:
            label(crystals(4), cached, executor=executor)
    finally:
        done.set()
        watcher.join()
    assert most == 2


def test_the_progress_bar_counts_crystals_and_statuses(cached, stub):
    stub.set(failures={"K": "not_converged"})
    cached.evaluate([crystal(0)])
    shown = io.StringIO()
    with contextlib.redirect_stderr(shown):
        label([crystal(0), crystal(0), crystal(1, ("K", "Cl"))], cached, progress=True)
    shown = shown.getvalue().split("\r")
    assert any("2/3" in text and text.rstrip().endswith("ok=2]") for text in shown)
    last = shown[-1]
    assert "labelling: 100%" in last
    assert "3/3" in last
    assert "crystal" in last
    assert "ok=2, not_converged=1" in last


def test_no_progress_bar_is_shown_unless_asked_for(cached, capfd):
    label(crystals(1), cached)
    assert capfd.readouterr() == ("", "")


def test_a_killed_worker_is_named_and_what_is_finished_is_kept(cached, stub, tmp_path):
    label(crystals(2), cached)
    stub.set(seconds=30)

    def kill_a_worker():
        while not (running := stub.processes()):
            time.sleep(0.02)
        status = Path(f"/proc/{running[0]}/stat").read_text()
        os.kill(int(status.rsplit(")", 1)[1].split()[1]), signal.SIGKILL)

    killer = threading.Thread(target=kill_a_worker)
    killer.start()
    with pytest.raises(RuntimeError, match="a worker process was killed .*run again to go on"):
        label(crystals(4), cached)
    killer.join()
    assert_ended(stub)
    assert len(ResultStore(tmp_path / "results.db")) == 2


def test_a_fault_in_one_structure_is_told_before_anything_is_calculated(cached, stub):
    with pytest.raises(TypeError, match="a structure of type str"):
        label([crystal(0), "no structure"], cached)
    assert stub.started == []


# -- interruptions --------------------------------------------------------------------------------

STARTER = """
import os, sys, traceback
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import test_labelling
for line in sys.stdin:
    child = os.fork()
    if child == 0:
        os.setsid()
        status = 1
        try:
            test_labelling.label_all(Path(line.strip()))
            status = 0
        except KeyboardInterrupt:
            status = 130
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    print(child, flush=True)
    print(os.waitpid(child, 0)[1], flush=True)
"""


class Starter:
    """Starts programs that label, without the seconds that their imports take."""

    def __init__(self):
        self.process = subprocess.Popen(
            [sys.executable, "-c", STARTER, Path(__file__).parent],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def start(self, folder):
        self.process.stdin.write(f"{folder}\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def wait(self):
        """Return the exit status, minus the signal's number where one ended it."""
        return os.waitstatus_to_exitcode(int(self.process.stdout.readline()))

    def close(self):
        self.process.kill()  # it waits for its next line
        self.process.communicate()


@pytest.fixture(scope="module")
def starter():
    starter = Starter()
    yield starter
    starter.close()


def session_of(leader):
    """Return the living processes of a session."""
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            state, _, _, session = (
                Path(f"/proc/{name}/stat").read_text().rsplit(")", 1)[1].split()[:4]
            )
            if int(session) == leader and state not in "ZX":
                found.append(int(name))
    return found


def assert_ended(stub, leader=None):
    """Check that no calculation, and no worker, goes on."""
    deadline = time.monotonic() + 10
    while stub.processes() or (leader and session_of(leader)):
        assert time.monotonic() < deadline, (stub.processes(), leader and session_of(leader))
        time.sleep(0.01)


def stored_energies(path):
    if not path.exists():
        return []
    connection = sqlite3.connect(path)
    try:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    finally:
        connection.close()
    return [f"{r.properties.total_energy_ry:.8f}" for r, _ in ResultStore(path).rows()]


def wait_for(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_ctrl_c_keeps_what_is_finished_and_leaves_no_process(starter, stub, tmp_path):
    stub.set(seconds=0.1)
    leader = starter.start(tmp_path)
    wait_for(lambda: len(stub.done) >= 5)
    stub.set(seconds=300)
    wait_for(lambda: both_workers_are_busy(stub))
    done = stub.done
    os.killpg(leader, signal.SIGINT)  # as a terminal does: to the workers as well
    assert starter.wait() == 130
    assert_ended(stub, leader)
    assert stub.done == done  # what was running was not waited for
    assert sorted(stored_energies(tmp_path / "results.db")) == sorted(done)
    before = len(stub.started)
    stub.set(seconds=0)
    starter.start(tmp_path)
    assert starter.wait() == 0
    assert len(stub.started) - before == COUNT - len(done)
    assert len(stored_energies(tmp_path / "results.db")) == COUNT


def both_workers_are_busy(stub):
    """Return whether two calculations run and go on running."""
    before = stub.started, stub.done
    time.sleep(1.0)
    return (stub.started, stub.done) == before and len(stub.started) == len(stub.done) + 2


def kill_at_random_moments(starter, stub, folder, kills):
    """Label in a program that is killed and started again; return what was done for nothing."""
    stub.set(seconds=0.4)
    draw, lost, path = random.Random(0), Counter(), folder / "results.db"
    for _ in range(kills):
        stored, begun = set(stored_energies(path)), len(stub.started)
        leader = starter.start(folder)
        wait_for(lambda: len(stub.started) > begun)  # noqa: B023 (called here and now)
        time.sleep(draw.uniform(0.0, 1.2))
        os.kill(leader, signal.SIGKILL)
        assert starter.wait() == -signal.SIGKILL
        assert_ended(stub, leader)
        assert not stored & set(stub.started[begun:])  # what is stored is not calculated again
        now = stored_energies(path)
        assert stored <= set(now)
        lost += Counter(set(stub.done) - set(now))
    stored, begun = set(stored_energies(path)), len(stub.started)
    assert stored  # killed runs came forward, too
    stub.set(seconds=0)
    starter.start(folder)
    assert starter.wait() == 0
    assert not stored & set(stub.started[begun:])
    final = stored_energies(path)
    assert len(final) == len(set(final)) == COUNT
    assert set(final) == set(stub.done)
    repeated = Counter(stub.done) - Counter(final)
    assert not repeated - lost  # only what was killed between the end of pw.x and the commit
    return sum(repeated.values())


# pw.x takes minutes and storing milliseconds; here a stub takes 0.4 s, and the machine may be busy.


def test_a_run_that_is_killed_again_and_again_loses_nothing(starter, stub, tmp_path):
    assert kill_at_random_moments(starter, stub, tmp_path, 5) <= 5


@pytest.mark.slow
def test_twenty_kills_lose_next_to_nothing(starter, stub, tmp_path):
    assert kill_at_random_moments(starter, stub, tmp_path, 20) <= 15
