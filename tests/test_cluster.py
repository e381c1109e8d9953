"""Workers of a Dask scheduler, and every way in which one of the processes can fail."""

import contextlib
import dataclasses
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter

import ase.io
import numpy as np
import pytest
from made_crystals import cif_text
from stored_attempts import stored_attempts
from stub_pw import Stub

import crystal_gym.cluster
from crystal_gym.cluster import executor_at
from crystal_gym.datasets.build import labelled_table
from crystal_gym.labelling import label
from crystal_gym.oracles import Status

pytest.importorskip("distributed")

from dask_cluster import Cluster, end, fill_disk
from test_labelling import crystal, crystals, oracle_in, wait_for

OK = Status.OK
COUNT = 20  # structures of a command


@pytest.fixture
def stub(tmp_path):
    return Stub(tmp_path / "stub", ["Na", "Cl", "K"])


@pytest.fixture(scope="module")
def shared_cluster(tmp_path_factory):
    cluster = Cluster(tmp_path_factory.mktemp("cluster"))
    yield cluster
    cluster.close()


@pytest.fixture
def cluster(shared_cluster):
    """Give two workers, for tests that end no more than these: nannies start others."""
    shared_cluster.workers(2)
    return shared_cluster


def stored(folder):
    """Return the statuses of every crystal in the database, in the order of the attempts."""
    found = {}
    for attempt in stored_attempts(folder / "results.db"):
        found.setdefault(attempt.crystal, []).append(attempt.status)
    return found


def assert_one_final_status_each(folder, count):
    attempts = stored(folder)
    assert len(attempts) == count
    finals = Counter(sum(s.is_final for s in statuses) for statuses in attempts.values())
    assert finals == {1: count}


@contextlib.contextmanager
def meanwhile(function, *words):
    """Run a function beside what is inside, and fail if it fails."""
    failures = []

    def run():
        try:
            function(*words)
        except BaseException as error:  # noqa: BLE001 (raised below)
            failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    yield
    thread.join()
    assert not failures


def test_workers_give_what_processes_give(cluster, stub, tmp_path):
    stub.set(failures={"K": "not_converged"})
    structures = [*crystals(12), crystal(0), crystal(30, ("K", "Cl"))]
    with executor_at(cluster.address) as executor:
        found = label(structures, oracle_in(tmp_path), executor=executor)
        assert executor.submit(abs, -3).result() == 3
        assert list(executor.map(pow, [2, 3, 4], [2, 2, 2], chunksize=2)) == [4, 9, 16]
        with pytest.raises(ZeroDivisionError):
            executor.submit(divmod, 1, 0).result()
    here = label(structures, oracle_in(tmp_path, tmp_path / "here.db"), workers=2)
    assert [(p.status, p.total_energy_ry) for p in found] == [
        (p.status, p.total_energy_ry) for p in here
    ]
    assert len(stub.started) == 2 * 13
    assert_one_final_status_each(tmp_path, 13)


def two_calculations(stub):
    """Wait until both workers calculate, let all others be quick, and return the two processes."""
    wait_for(lambda: len(stub.started) == len(stub.processes()) == 2)
    stub.set(seconds=0)
    return stub.processes()


def test_killed_workers_cost_what_they_were_calculating(cluster, stub, tmp_path):
    stub.set(seconds=60)

    def kill_both():
        for calculation in two_calculations(stub):
            os.kill(cluster.worker_of(calculation), signal.SIGKILL)

    with executor_at(cluster.address) as executor, meanwhile(kill_both):
        found = label(crystals(16), oracle_in(tmp_path), executor=executor)
    assert [p.status for p in found] == [OK] * 16
    assert_one_final_status_each(tmp_path, 16)
    assert len(stub.started) == 16 + 2
    assert len(stub.done) == 16


def test_a_structure_that_kills_every_worker_is_named_and_the_others_go_on(cluster, stub, tmp_path):
    stub.set(failures={"K": "kills"})
    structures = [crystal(30, ("K", "Cl")), *crystals(8)]
    with executor_at(cluster.address) as executor:
        found = label(structures, oracle_in(tmp_path), executor=executor)
    assert [p.status for p in found] == [Status.MEMORY_OR_SIGNAL, *[OK] * 8]
    assert "2 workers died while they calculated this" in found[0].provenance
    assert Counter(map(tuple, stored(tmp_path).values())) == {
        (OK,): 8,
        (Status.MEMORY_OR_SIGNAL,): 1,
    }
    assert len(stub.started) == 8 + 2


def test_a_frozen_worker_is_given_up(cluster, stub, tmp_path):
    stub.set(seconds=60)

    def freeze():
        first, second = two_calculations(stub)
        os.kill(cluster.worker_of(first), signal.SIGSTOP)
        os.kill(second, signal.SIGKILL)  # it need not take its minute

    with executor_at(cluster.address) as executor, meanwhile(freeze):
        found = label(crystals(6), oracle_in(tmp_path), executor=executor)
    assert Counter(p.status for p in found) == {OK: 5, Status.MEMORY_OR_SIGNAL: 1}
    with executor_at(cluster.address) as executor:
        label(crystals(6), oracle_in(tmp_path), executor=executor)
    assert_one_final_status_each(tmp_path, 6)
    assert len(stub.done) == 6
    assert stub.processes() == []


def test_a_full_disk_is_told_and_its_structures_are_tried_again(cluster, stub, tmp_path):
    full, _ = cluster.workers()
    fill_disk(full)
    stub.set(seconds=0.1)
    with executor_at(cluster.address) as executor:
        found = label(crystals(8), oracle_in(tmp_path), executor=executor)
    counts = Counter(p.status for p in found)
    assert set(counts) == {OK, Status.IO_OR_TRUNCATED}
    assert Counter(map(tuple, stored(tmp_path).values())) == {(s,): n for s, n in counts.items()}
    begun = len(stub.started)
    os.kill(full, signal.SIGKILL)
    with executor_at(cluster.address) as executor:
        found = label(crystals(8), oracle_in(tmp_path), executor=executor)
    assert [p.status for p in found] == [OK] * 8
    assert_one_final_status_each(tmp_path, 8)
    assert len(stub.started) - begun == counts[Status.IO_OR_TRUNCATED]


def test_a_dataset_built_on_a_cluster_is_the_same(
    cluster, source_folder, empty_cache, monkeypatch, tmp_path
):
    rows = [{"material_id": f"made-{n}", "cif": cif_text(crystal(n))} for n in range(80)]
    labels = [("train", n, 1.0, -100.0, -1.0) for n in range(80)]
    folder = source_folder(rows, labels)
    killed = cluster.workers()[0]
    with executor_at(cluster.address) as executor, meanwhile(os.kill, killed, signal.SIGKILL):
        table, problems = labelled_table(folder, "train", executor=executor)
    assert problems == {}
    monkeypatch.setenv("CRYSTAL_GYM_CACHE", str(tmp_path / "another"))
    here, _ = labelled_table(folder, "train", workers=1)
    for field in dataclasses.fields(here.skeletons):
        name = field.name
        np.testing.assert_array_equal(getattr(table.skeletons, name), getattr(here.skeletons, name))


# -- the command -----------------------------------------------------------------------------------


def start_command(stub, folder, address, count=COUNT):
    ase.io.write(folder / "crystals.xyz", [c.to_ase_atoms() for c in crystals(count)])
    words = ["crystals.xyz", "--pw", stub.pw, "--pseudo", stub.pseudopotentials]
    words += ["--cache", "results.db", "--executor", address, "--preset", "fast"]
    return subprocess.Popen(
        [sys.executable, "-c", COMMAND, "label", *words],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


COMMAND = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in what a shell put behind it
from crystal_gym.cli import main
sys.exit(main(sys.argv[1:]))
"""


def run_command(stub, folder, address):
    with start_command(stub, folder, address) as command:
        text = command.communicate()[0]
    assert command.returncode == 0, text
    return text


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_command_that_is_stopped_goes_on_where_it_was(cluster, stub, tmp_path, number):
    stub.set(seconds=0.2)
    with start_command(stub, tmp_path, cluster.address) as command:
        wait_for(lambda: len(stored(tmp_path)) >= 4)
        os.killpg(command.pid, number)
        text = command.communicate()[0]
    assert command.returncode == (130 if number == signal.SIGINT else -number)
    assert "Traceback" not in text
    wait_for(lambda: not stub.processes())  # what ran comes to its end, and nothing else begins
    time.sleep(0.5)
    before = len(stored(tmp_path))
    assert len(stub.started) == len(stub.done) == before < COUNT
    stub.set(seconds=0)
    assert f"{COUNT} structures: {COUNT} ok" in run_command(stub, tmp_path, cluster.address)
    assert len(stub.started) == COUNT
    assert_one_final_status_each(tmp_path, COUNT)


def test_without_a_scheduler_a_command_ends_and_the_next_goes_on(stub, tmp_path):
    stub.set(seconds=0.2)
    with contextlib.closing(Cluster(tmp_path / "cluster", workers=1)) as cluster:
        with start_command(stub, tmp_path, cluster.address) as command:
            wait_for(lambda: len(stored(tmp_path)) >= 4)
            end(cluster.scheduler)
            text = command.communicate()[0]
    assert command.returncode == 1
    said = [line for line in text.split("\n") if line and not line.startswith("labelling: ")]
    assert len(said) == 1
    assert re.fullmatch(r"crystal-gym: the scheduler at dask://\S+ is gone: .* to go on", said[0])
    assert stub.processes() == []
    before, begun = len(stored(tmp_path)), len(stub.started)
    assert 4 <= before < COUNT
    stub.set(seconds=0)
    with contextlib.closing(Cluster(tmp_path / "cluster", workers=1)) as cluster:
        assert f"{COUNT} structures: {COUNT} ok" in run_command(stub, tmp_path, cluster.address)
    assert len(stub.started) - begun == COUNT - before
    assert_one_final_status_each(tmp_path, COUNT)


# -- addresses -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "address",
    ["tcp://127.0.0.1:8786", "dask://127.0.0.1", "dask://:8786", "dask://host:99999", "dask://"],
)
def test_an_address_that_is_none_is_refused(address):
    with (
        pytest.raises(ValueError, match="is not understood: expected dask://host:port"),
        executor_at(address),
    ):
        pass


def test_a_scheduler_file_that_is_missing_is_named(tmp_path):
    missing = tmp_path / "scheduler.json"
    with pytest.raises(FileNotFoundError, match="does not exist: expected what `dask scheduler"):
        executor_at(f"dask://{missing}").__enter__()


def test_a_scheduler_file_does_as_an_address(cluster):
    with executor_at(f"dask://{cluster.file}") as executor:
        assert executor.submit(abs, -3).result() == 3


def test_no_address_is_no_executor():
    with executor_at(None) as executor:
        assert executor is None


def test_where_nobody_answers_the_address_is_named(monkeypatch):
    monkeypatch.setattr(crystal_gym.cluster, "_CONNECT_S", 0.5)
    with (
        pytest.raises(ConnectionError, match="no Dask scheduler answers at dask://127.0.0.1:1 "),
        executor_at("dask://127.0.0.1:1"),
    ):
        pass


def test_without_dask_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with (
        pytest.raises(ImportError, match=r"pip install 'crystal-gym\[cluster\]'"),
        executor_at("dask://127.0.0.1:8786"),
    ):
        pass
