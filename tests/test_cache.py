"""`crystal_gym.oracles.cache`: what is in the database is never calculated again.

The oracle, the store and the databases are real, a PostgreSQL server included; pw.x is a stub.
"""

import contextlib
import glob
import json
import os
import pickle
import pwd
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.db import connect
from made_crystals import STRUCTURES, replaced, tokens_of
from pymatgen.core import Lattice, Structure
from stub_pw import Stub

from crystal_gym.crystal_key import structure_key
from crystal_gym.oracles import (
    CachedOracle,
    EspressoOracle,
    Filling,
    Properties,
    ResultStore,
    Status,
)
from crystal_gym.oracles.references import ReferenceEnergies
from crystal_gym.skeletons import build_skeletons
from crystal_gym.structures import cell_from_structure

ELEMENTS = ["Na", "Cl", "K", "Br"]


def crystal(number=0, elements=("Na", "Cl")):
    """Return one of as many different crystals as there are numbers."""
    sites = [[0, 0, 0], [0.5, 0.5, 0.5]]
    return Structure(Lattice.cubic(3.4 + 0.01 * number), list(elements), sites)


def written_otherwise(structure):
    """Return the same crystal on other vectors, from another origin, in another order."""
    other = structure.make_supercell([[1, 1, 0], [0, 1, 0], [0, 0, 1]], in_place=False)
    sites = other.frac_coords[::-1] + [0.1, 0.2, 0.3]
    return Structure(other.lattice, [s.specie for s in other][::-1], sites)


# -- databases of both kinds --------------------------------------------------------------------


class Server:
    """A PostgreSQL server on this machine, for as long as the tests run."""

    def __init__(self, folder, binaries):
        self.folder, self.binaries = folder, binaries
        self.count = 0
        self.owner = {}
        if os.geteuid() == 0:  # which PostgreSQL refuses to run as
            names = {entry.pw_name for entry in pwd.getpwall()}
            user = "postgres" if "postgres" in names else "nobody"
            self.owner = {"user": user, "extra_groups": []}
            shutil.chown(folder, user)
        (folder / "password").write_text("secret")
        words = ["-U", "crystal", "--pwfile", folder / "password", "--auth-host=scram-sha-256"]
        self._run("initdb", "-D", folder / "data", "--no-sync", "-E", "UTF8", "--locale=C", *words)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        settings = ["-c", "listen_addresses=127.0.0.1", "-c", f"unix_socket_directories={folder}"]
        self.log = open(folder / "log", "wb")
        self.process = subprocess.Popen(
            [binaries / "postgres", "-D", folder / "data", "-F", "-p", str(self.port), *settings],
            cwd=folder,
            stdout=self.log,
            stderr=subprocess.STDOUT,
            **self.owner,
        )

    def _run(self, program, *words):
        subprocess.run(
            [self.binaries / program, *words],
            cwd=self.folder,
            check=True,
            stdout=subprocess.DEVNULL,
            **self.owner,
        )

    def address(self, database="postgres", password="secret"):
        return f"postgresql://crystal:{password}@127.0.0.1:{self.port}/{database}"

    def execute(self, statement, database="postgres"):
        import psycopg2

        connection = psycopg2.connect(self.address(database))
        try:
            connection.autocommit = True
            cursor = connection.cursor()
            cursor.execute(statement)
            return cursor.fetchall() if cursor.description else None
        finally:
            connection.close()

    def new_database(self):
        self.count += 1
        self.execute(f"CREATE DATABASE results{self.count}")
        return self.address(f"results{self.count}")

    def new_schema(self):
        """Return the address of an empty schema, which is made faster than a database."""
        self.count += 1
        self.execute(f"CREATE SCHEMA results{self.count}")
        return f"{self.address()}?options=-csearch_path%3Dresults{self.count}"

    def wait(self):
        deadline = time.monotonic() + 60
        while True:
            try:
                return self.execute("SELECT 1")
            except Exception:
                if self.process.poll() is not None or time.monotonic() > deadline:
                    raise
                time.sleep(0.05)

    def stop(self):
        self.process.send_signal(signal.SIGQUIT)  # at once: what it holds is removed anyway
        self.process.wait(30)
        self.log.close()


@pytest.fixture(scope="session")
def server():
    pytest.importorskip("psycopg2", reason="psycopg2 is not installed")
    pytest.importorskip("ase_db_backends", reason="ase-db-backends is not installed")
    folders = [*glob.glob("/usr/lib/postgresql/*/bin")[::-1], *os.environ["PATH"].split(os.pathsep)]
    binaries = [Path(f) for f in folders if Path(f, "initdb").exists()]
    if not binaries:
        pytest.skip("PostgreSQL's initdb is neither in PATH nor in /usr/lib/postgresql/*/bin")
    folder = Path(tempfile.mkdtemp(prefix="crystal-gym-postgresql-"))  # pytest's own is private
    try:
        server = Server(folder, binaries[0])
        try:
            server.wait()
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder)


@pytest.fixture(params=["sqlite", "postgresql"])
def address(request, tmp_path):
    """Return the address of a database that does not hold anything yet."""
    if request.param == "sqlite":
        return str(tmp_path / "results.db")
    return request.getfixturevalue("server").new_schema()


@pytest.fixture
def stub(tmp_path):
    return Stub(tmp_path / "stub", ELEMENTS)


@pytest.fixture
def espresso(stub):
    return oracle_of(stub)


def oracle_of(stub, **options):
    return EspressoOracle(
        "fast",
        pw=str(stub.pw),
        pseudopotentials=stub.pseudopotentials,
        scratch=stub.folder / "scratch",
        **{"references": None, **options},
    )


def rows_of(address):
    return list(connect(address, use_lock_file=False).select(sort="id"))


def assert_whole(address, count):
    """Check that a database holds so many rows, all different, each with its own table entries."""
    rows = rows_of(address)
    assert len(rows) == count
    assert len({row.unique_id for row in rows}) == count
    database = connect(address, use_lock_file=False)
    with database:
        cursor = database.connection.cursor()
        cursor.execute("SELECT id, key, value FROM number_key_values ORDER BY id")
        numbers = cursor.fetchall()
        cursor.execute("SELECT id, key, value FROM text_key_values")
        texts = cursor.fetchall()
        cursor.execute("SELECT id, key FROM keys")
        keys = cursor.fetchall()
    expected = [(row.id, k, v) for row in rows for k, v in row.key_value_pairs.items()]
    assert sorted(numbers) == sorted(e for e in expected if not isinstance(e[2], str))
    assert sorted(texts) == sorted(e for e in expected if isinstance(e[2], str))
    assert sorted(keys) == sorted(e[:2] for e in expected)


# -- both kinds: what is known is not calculated --------------------------------------------------


def test_a_known_crystal_is_answered_without_pw(address, stub, espresso):
    cached = CachedOracle(espresso, address)
    (first,) = cached.evaluate([crystal()])
    (second,) = cached.evaluate([crystal()])
    assert first.status is Status.OK
    assert first.band_gap_ev == 0.5
    assert second == replace(first, provenance=f"{first.provenance} (stored)")
    assert second.details == first.details
    assert len(stub.started) == 1


def test_a_database_answers_whoever_opens_it_next(address, stub, espresso):
    (first,) = CachedOracle(espresso, address).evaluate([crystal()])
    (second,) = CachedOracle(oracle_of(stub), address).evaluate([crystal()])
    assert second.total_energy_ry == first.total_energy_ry
    assert len(stub.started) == 1


def test_a_crystal_is_known_in_any_cell(address, stub, espresso):
    cached = CachedOracle(espresso, address)
    found = cached.evaluate([crystal(), written_otherwise(crystal())])
    assert found[0].total_energy_ry == found[1].total_energy_ry
    assert len(stub.started) == 1


def test_what_another_process_stored_meanwhile_is_not_calculated(address, stub, espresso):
    mine, others = CachedOracle(espresso, address), CachedOracle(espresso, address)
    others.evaluate([crystal()])
    (found,) = mine.evaluate([crystal()])
    assert found.provenance.endswith("(stored)")
    assert len(stub.started) == 1


def with_other_settings(stub):
    return oracle_of(stub, k_mesh=(2, 2, 2))


def with_another_pseudopotential(stub):
    stub.write_pseudopotential("Cl", "another")
    return oracle_of(stub)


def with_another_version(stub):
    stub.set(version="7.3")
    os.utime(stub.pw)
    return oracle_of(stub)


@pytest.mark.parametrize(
    "change", [with_other_settings, with_another_pseudopotential, with_another_version]
)
def test_what_a_result_depends_on_makes_another_calculation(address, stub, espresso, change):
    CachedOracle(espresso, address).evaluate([crystal()])
    other = CachedOracle(change(stub), address)
    other.evaluate([crystal()])
    other.evaluate([crystal()])
    assert len(stub.started) == 2
    assert len(rows_of(address)) == 2  # nothing is lost


@pytest.mark.parametrize(
    "other",
    [crystal(1), crystal(elements=("K", "Cl")), crystal().make_supercell([2, 1, 1])],
    ids=["size", "element", "supercell"],
)
def test_another_crystal_is_another_calculation(address, stub, espresso, other):
    CachedOracle(espresso, address).evaluate([crystal(), other])
    assert len(stub.started) == 2


def test_a_file_that_changes_under_a_running_program_makes_another_calculation(
    address, stub, espresso
):
    cached = CachedOracle(espresso, address)
    cached.evaluate([crystal(0)])
    stub.write_pseudopotential("Cl", "replaced while the program runs")
    cached.evaluate([crystal(1)])
    fingerprints = [json.loads(row.data["fingerprint"]) for row in rows_of(address)]
    files = [f["pseudopotentials"] for f in fingerprints]
    assert files[0]["Na"] == files[1]["Na"]
    assert files[0]["Cl"] != files[1]["Cl"]


def test_a_pw_of_another_version_than_it_is_stored_under_stores_nothing(address, stub, espresso):
    """Such as that of a cluster's worker, to which the oracle went with the command's version."""
    assert espresso.version == "6.7MaX"
    stub.set(version="7.3")
    there = pickle.loads(pickle.dumps(CachedOracle(espresso, address)))  # noqa: S301
    (found,) = there.evaluate([crystal()])
    assert found.status is Status.CONFIGURATION
    assert "is version 7.3, not 6.7MaX" in found.provenance
    assert all(row.status == "configuration" for row in rows_of(address))
    stub.set(version="6.7MaX")
    (found,) = CachedOracle(espresso, address).evaluate([crystal()])
    assert found.status is Status.OK


def test_a_failure_that_would_happen_again_is_remembered(address, stub, espresso):
    stub.set(failures={"Na": "not_converged"})
    cached = CachedOracle(espresso, address)
    found = [cached.evaluate([crystal()])[0].status for _ in range(3)]
    assert found == [Status.NOT_CONVERGED] * 3
    assert len(stub.started) == 1


PASSING = {
    "timeout": Status.TIMEOUT,
    "killed": Status.MEMORY_OR_SIGNAL,
    "truncated": Status.IO_OR_TRUNCATED,
}


@pytest.mark.parametrize("failure", PASSING)
def test_a_failure_that_may_pass_is_tried_again_up_to_max_attempts(
    address, stub, espresso, failure
):
    stub.set(failures={"Na": failure})
    cached = CachedOracle(espresso, address, max_attempts=3)
    found = [cached.evaluate([crystal()])[0] for _ in range(5)]
    assert [p.status for p in found] == [PASSING[failure]] * 5
    assert ["(stored)" in p.provenance for p in found] == [False] * 3 + [True] * 2
    assert len(stub.started) == 3
    assert [row.data["attempt"] for row in rows_of(address)] == [0, 1, 2]


def test_the_attempts_of_earlier_programs_count(address, stub, espresso):
    stub.set(failures={"Na": "timeout"})
    for _ in range(5):
        CachedOracle(espresso, address, max_attempts=2).evaluate([crystal()])
    assert len(stub.started) == 2


def test_a_failure_that_passed_is_answered_with_the_result(address, stub, espresso):
    cached = CachedOracle(espresso, address)
    stub.set(failures={"Na": "timeout"})
    cached.evaluate([crystal()])
    stub.set(failures={})
    assert [cached.evaluate([crystal()])[0].status for _ in range(2)] == [Status.OK] * 2
    assert len(stub.started) == 2


def test_a_fault_of_the_program_is_never_stored(address, stub, espresso):
    stub.set(failures={"Na": "configuration"})
    cached = CachedOracle(espresso, address)
    found = [cached.evaluate([crystal()])[0].status for _ in range(2)]
    assert found == [Status.CONFIGURATION] * 2
    assert len(stub.started) == 2
    assert len(cached.store) == 0


class Ignorant:
    """An oracle that knows nothing, and counts how often it is asked."""

    asked = 0

    def evaluate(self, structures):
        self.asked += len(structures)
        return [Properties(status=Status.UNKNOWN)] * len(structures)

    def fingerprint(self, elements):
        return "ignorant"

    def derive(self, properties, species):
        return properties


def test_unknown_is_never_stored(address):
    cached = CachedOracle(Ignorant(), address)
    cached.evaluate([crystal()])
    cached.evaluate([crystal()])
    assert cached.oracle.asked == 2
    assert len(cached.store) == 0


def test_a_structure_that_is_no_crystal_gets_its_status_and_is_not_stored(address, espresso):
    overlapping = Structure(Lattice.cubic(4), ["Na", "Na"], [[0, 0, 0], [0.01, 0, 0]])
    cached = CachedOracle(espresso, address)
    assert cached.evaluate([overlapping])[0].status is Status.GEOMETRY
    assert cached.known(overlapping) is None
    assert len(cached.store) == 0


def test_a_damaged_pseudopotential_is_a_status_as_without_a_cache(tmp_path, stub, espresso):
    (stub.pseudopotentials / "Cl.stub.UPF").write_text("<UPF")
    (found,) = CachedOracle(espresso, tmp_path / "results.db").evaluate([crystal()])
    assert found.status is Status.CONFIGURATION
    assert "Cl.stub.UPF is no complete pseudopotential" in found.provenance


@pytest.fixture(scope="session")
def skeleton():
    (found,), _ = build_skeletons([cell_from_structure(STRUCTURES["perovskite"])], workers=1)
    return found


def test_fillings_are_answered_as_structures_are(address, stub, espresso, skeleton):
    generator = np.random.default_rng(0)
    tokens = generator.choice(tokens_of(ELEMENTS), (6, skeleton.n_sites))
    fillings = [Filling(skeleton, t) for t in tokens]
    structures = [skeleton.structure(t) for t in tokens]
    by_filling, by_structure = CachedOracle(espresso, address), CachedOracle(espresso, address)
    by_filling.evaluate_fillings(fillings[:3])
    by_structure.evaluate(structures[3:])
    assert by_filling.evaluate_fillings(fillings) == by_structure.evaluate(structures)
    assert len(stub.started) == len({skeleton.canonical_tokens(t) for t in tokens})


def test_every_symmetric_relabelling_of_a_filling_is_known(tmp_path, stub, espresso, skeleton):
    tokens = tokens_of(["Na", "K", "Cl", "Cl", "Br"])
    cached = CachedOracle(espresso, tmp_path / "results.db")
    cached.evaluate_fillings([Filling(skeleton, tokens[p]) for p in skeleton.permutations])
    assert len(stub.started) == 1


def test_formation_energies_follow_the_references_of_today(address, stub, espresso):
    def references(energy):
        files = {e: espresso.pseudopotentials[e].md5 for e in ("Na", "Cl")}
        key = espresso.settings.energy_key
        return ReferenceEnergies(key, {"Na": energy, "Cl": energy}, files)

    (first,) = CachedOracle(oracle_of(stub, references=references(-50.0)), address).evaluate(
        [crystal()]
    )
    (second,) = CachedOracle(oracle_of(stub, references=references(-51.0)), address).evaluate(
        [crystal()]
    )
    (third,) = CachedOracle(espresso, address).evaluate([crystal()])
    difference = second.formation_energy_ev_per_atom - first.formation_energy_ev_per_atom
    assert difference == pytest.approx(13.6057039763)
    assert third.formation_energy_ev_per_atom is None
    assert len(stub.started) == 1


def test_an_open_oracle_follows_its_references(tmp_path, stub, espresso, skeleton):
    cached = CachedOracle(espresso, tmp_path / "results.db")
    filling = Filling(skeleton, tokens_of(["Na", "Cl", "Cl", "Cl", "Cl"]))
    cached.evaluate_fillings([filling])
    files = {e: espresso.pseudopotentials[e].md5 for e in ("Na", "Cl")}
    key = espresso.settings.energy_key
    espresso.references = ReferenceEnergies(key, {"Na": -5.0, "Cl": -5.0}, files)
    (found,) = cached.evaluate_fillings([filling])
    assert found.formation_energy_ev_per_atom is not None


def test_known_tells_what_is_stored_and_calculates_nothing(address, stub, espresso):
    cached = CachedOracle(espresso, address)
    assert cached.known(crystal()) is None
    assert stub.started == []
    (found,) = cached.evaluate([crystal()])
    assert cached.known(written_otherwise(crystal())).total_energy_ry == found.total_energy_ry


def test_rows_are_the_latest_results_with_their_atoms(address, stub, espresso):
    cached = CachedOracle(espresso, address)
    stub.set(failures={"Na": "timeout"})
    cached.evaluate([crystal(0)])
    stub.set(failures={})
    cached.evaluate([crystal(1), crystal(0)])
    found = list(ResultStore(address).rows())
    assert [(r.properties.status, r.attempt) for r, _ in found] == [(Status.OK, 0), (Status.OK, 1)]
    assert [structure_key(crystal(i)) for i in (1, 0)] == [r.crystal for r, _ in found]
    assert [a.cell.lengths()[0] for _, a in found] == pytest.approx([3.41, 3.4])


def test_ases_own_tools_read_a_database(address, espresso):
    (result,) = CachedOracle(espresso, address).evaluate([crystal()])
    row = connect(address, use_lock_file=False).get(status="ok")
    assert row.formula == "NaCl"
    assert row.band_gap_ev == 0.5
    assert row.energy == pytest.approx(result.total_energy_ry * 13.6057039763)


def test_charges_and_moments_of_a_structure_do_not_hinder_storing(address, espresso):
    structure = crystal().copy(site_properties={"charge": [1, None], "magmom": [[0, 0, 1]] * 2})
    structure.add_oxidation_state_by_element({"Na": 1, "Cl": -1})
    cached = CachedOracle(espresso, address)
    cached.evaluate([structure])
    assert cached.known(crystal()) is not None


def test_a_database_with_other_rows_is_used_and_they_are_left_alone(address, espresso):
    database = connect(address, use_lock_file=False)
    database.write(Atoms("H2", positions=[[0, 0, 0], [0, 0, 0.7]]), status="mine", data={"a": 1})
    database.write(Atoms("He"), data={"crystal": "x", "fingerprint": "y", "properties": 3})
    before = [(row.unique_id, row.mtime, dict(row.data)) for row in rows_of(address)]
    cached = CachedOracle(espresso, address)
    cached.evaluate([crystal()])
    assert [(r.unique_id, r.mtime, dict(r.data)) for r in rows_of(address)[:2]] == before
    assert len(CachedOracle(espresso, address).store) == 1
    assert len(list(cached.store.rows())) == 1


def test_an_oracle_in_another_process_uses_the_same_database(address, stub, espresso):
    cached = CachedOracle(espresso, address)
    with ProcessPoolExecutor(1) as pool:
        (theirs,) = pool.submit(cached.evaluate, [crystal()]).result()
    (mine,) = cached.evaluate([crystal()])
    assert mine.total_energy_ry == theirs.total_energy_ry
    assert len(stub.started) == 1


def test_a_pickled_oracle_answers(address, stub, espresso):
    cached = CachedOracle(espresso, address, max_attempts=7)
    cached.evaluate([crystal()])
    copy = pickle.loads(pickle.dumps(cached))  # noqa: S301
    copy.evaluate([crystal()])
    assert copy.max_attempts == 7
    assert len(stub.started) == 1


# -- both kinds: several at once ------------------------------------------------------------------


def made_result(energy, status=Status.OK):
    return Properties(energy, status=status, provenance="made", wall_s=1.0)


def put_many(address, start, numbers, energy):
    """Store results in a process of its own, from a moment that all processes share."""
    structures = [crystal(number) for number in numbers]
    time.sleep(max(0.0, start - time.time()))
    store = ResultStore(address)
    for structure in structures:
        held = store.put(structure, structure_key(structure), "made", made_result(energy))
        assert held.status is Status.OK
    return len(store)


def test_processes_that_store_at_once_leave_one_row_for_each_crystal(address):
    start = time.time() + 0.5
    with ProcessPoolExecutor(4) as pool:
        numbers = [[*range(8), *range(10 * i, 10 * i + 8)] for i in range(1, 5)]
        tasks = [pool.submit(put_many, address, start, n, -1.0 - i) for i, n in enumerate(numbers)]
        for task in tasks:
            task.result()
    assert_whole(address, 40)
    store = ResultStore(address)
    assert len(store) == 40
    assert all(store.get(structure_key(crystal(i)), "made").attempt == 0 for i in range(8))


def write_as_ase(address, start, count):
    database = connect(address, use_lock_file=False)
    time.sleep(max(0.0, start - time.time()))
    for number in range(count):
        database.write(Atoms("He"), foreign=number)


def test_someone_else_may_write_with_ase_at_the_same_time(address):
    ResultStore(address).put(crystal(99), structure_key(crystal(99)), "made", made_result(-1.0))
    start = time.time() + 0.5
    with ProcessPoolExecutor(2) as pool:
        ours = pool.submit(put_many, address, start, range(15), -1.0)
        theirs = pool.submit(write_as_ase, address, start, 15)
        assert ours.result() == 16
        theirs.result()
    rows = rows_of(address)
    assert len(rows) == 31
    assert len({row.unique_id for row in rows}) == 31
    database = connect(address, use_lock_file=False)
    with database:
        cursor = database.connection.cursor()
        cursor.execute("SELECT id FROM keys WHERE key = 'total_energy_ry' ORDER BY id")
        keys = [number for (number,) in cursor.fetchall()]
    assert keys == [row.id for row in rows if "total_energy_ry" in row.key_value_pairs]


@pytest.mark.parametrize("status", [Status.OK, Status.TIMEOUT])
def test_two_stores_that_think_a_crystal_unknown_agree(address, status):
    first, second = ResultStore(address), ResultStore(address)
    key = structure_key(crystal())
    first.put(crystal(), key, "made", made_result(-1.0, status))
    held = second.put(crystal(), key, "made", made_result(-2.0, status))
    # The first final result holds; of passing failures each counts.
    assert held.total_energy_ry == (-1.0 if status.is_final else -2.0)
    assert [row.data["attempt"] for row in rows_of(address)] == ([0] if status.is_final else [0, 1])


def test_an_attempt_that_cannot_be_read_is_counted(address):
    """Such as one that a later version stored with a status of its own."""
    key = structure_key(crystal())
    ResultStore(address).put(crystal(), key, "made", made_result(-1.0))
    database = connect(address, use_lock_file=False)
    strange = database.get(id=1).data
    strange["properties"]["status"] = "strange"
    database.update(1, data=dict(strange))
    store = ResultStore(address)
    assert len(store) == 0
    store.put(crystal(), key, "made", made_result(-2.0))
    assert [row.data["attempt"] for row in rows_of(address)] == [0, 1]


def test_threads_may_share_an_oracle(address, stub, espresso):
    cached = CachedOracle(espresso, address)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda i: cached.evaluate([crystal(i % 6)])[0], range(24)))
    assert {p.status for p in found} == {Status.OK}
    assert_whole(address, 6)


@pytest.mark.parametrize("status", [Status.OK, Status.TIMEOUT])
def test_threads_may_store_at_once(tmp_path, status):
    store, path = ResultStore(tmp_path / "results.db"), tmp_path / "results.db"
    with ThreadPoolExecutor(8) as pool:
        tasks = [
            pool.submit(store.put, crystal(i), structure_key(crystal(i)), "made", result)
            for i, result in enumerate([made_result(-1.0 - i, status) for i in range(40)])
        ]
    assert [task.result().total_energy_ry for task in tasks] == [-1.0 - i for i in range(40)]
    assert_whole(path, 40)


def test_a_result_that_another_process_has_stored_first_holds(address, espresso):
    """The formation energy, too, is then that of the result that holds."""
    cached = CachedOracle(espresso, address)
    fingerprint = espresso.fingerprint(["Na", "Cl"])
    evaluate = espresso.evaluate

    class Slow:
        """Another process stores its result while this one calculates."""

        def __getattr__(self, name):
            return getattr(espresso, name)

        fingerprint, derive = espresso.fingerprint, espresso.derive

        def evaluate(self, structures):
            others = made_result(-7.0)
            others = replace(others, formation_energy_ev_per_atom=99.0)
            ResultStore(address).put(crystal(), structure_key(crystal()), fingerprint, others)
            return evaluate(structures)

    cached.oracle = Slow()
    (found,) = cached.evaluate([crystal()])
    assert found.total_energy_ry == -7.0
    assert found.formation_energy_ev_per_atom is None  # derived: there are no references here


# -- files that cannot be used --------------------------------------------------------------------


@pytest.mark.parametrize("name", ["results.json", "results", "results.sqlite", "mysql://u:p@h/d"])
def test_another_ending_is_refused(tmp_path, name):
    with pytest.raises(ValueError, match=r"expected a file ending in \.db, or postgresql://"):
        ResultStore(tmp_path / name if "/" not in name else name)


def test_a_users_home_may_be_written_as_a_tilde(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert ResultStore("~/results.db").address == str(tmp_path / "results.db")


def test_a_database_that_must_exist_is_not_made(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"results\.db does not exist: expected"):
        ResultStore.existing(tmp_path / "results.db")


def text(path):
    path.write_text("not a database, but quite long\n" * 100)


def folder(path):
    path.mkdir()


def other_tables(path):
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE cookies (name TEXT)")
    connection.commit()
    connection.close()


def truncated(path):
    store_made_results(path, 30)
    with open(path, "r+b") as file:
        file.truncate(path.stat().st_size // 2)


def overwritten(path):
    store_made_results(path, 30)
    with open(path, "r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * 8192)


def store_made_results(path, count):
    store = ResultStore(path)
    for number in range(count):
        store.put(crystal(number), structure_key(crystal(number)), "made", made_result(-1.0))


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (text, r"is no ASE database \(file is not a database\): expected one, or a new name"),
        (folder, "cannot be read or written"),
        (other_tables, r"is no ASE database but holds other tables \(cookies\)"),
        (truncated, "is no ASE database .*malformed.*recover"),
        (overwritten, "is no ASE database .*malformed.*recover"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_file_that_cannot_be_used_is_refused_and_left_as_it_is(tmp_path, spoil, sentence):
    path = tmp_path / "results.db"
    spoil(path)
    before = path.read_bytes() if path.is_file() else None
    with pytest.raises((ValueError, OSError), match=sentence) as caught:
        ResultStore(path)
    assert "results.db" in str(caught.value)
    assert (path.read_bytes() if path.is_file() else None) == before


def test_bytes_that_changed_anywhere_end_in_a_sentence_or_in_rows(tmp_path):
    path, generator = tmp_path / "results.db", np.random.default_rng(1)
    store_made_results(path, 4)
    sound = path.read_bytes()
    for _ in range(60):
        damaged = bytearray(sound)
        start = int(generator.integers(len(sound)))
        damaged[start : start + 40] = generator.bytes(40)
        path.write_bytes(damaged[: len(sound)])
        before = path.read_bytes()
        said = str(path)
        try:
            ResultStore(path)
        except (ValueError, OSError) as error:
            said = str(error)
        assert str(path) in said
        assert path.read_bytes() == before


def test_an_empty_file_becomes_a_database(tmp_path, espresso):
    path = tmp_path / "results.db"
    path.touch()
    CachedOracle(espresso, path).evaluate([crystal()])
    assert_whole(path, 1)


def test_a_folder_is_made_for_a_new_database(tmp_path, espresso):
    path = tmp_path / "new" / "folder" / "results.db"
    CachedOracle(espresso, path).evaluate([crystal()])
    assert_whole(path, 1)


def test_a_folder_that_cannot_be_made_is_named_before_anything_is_calculated(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file/results.db cannot be read or written"):
        ResultStore(tmp_path / "file" / "results.db")


@contextlib.contextmanager
def small_disk(path, size="4m"):
    """Mount a small disk, where one may."""
    path.mkdir(exist_ok=True)
    options = ["-t", "tmpfs", "-o", f"size={size}", "tmpfs"]
    try:
        subprocess.run(["mount", *options, path], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("a small disk takes the right to mount one")
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", path], check=True)


@contextlib.contextmanager
def unwritable(path):
    """Make a folder, and what is in it, readable only; for root that takes a disk."""
    if os.geteuid():
        modes = [(p, p.stat().st_mode) for p in (path, *path.iterdir())]
        for p, mode in modes:
            p.chmod(mode & ~0o222)
        yield
        for p, mode in modes:
            p.chmod(mode)
    else:
        subprocess.run(["mount", "-o", "remount,ro", path], check=True)
        yield
        subprocess.run(["mount", "-o", "remount,rw", path], check=True)


@pytest.fixture
def disk(tmp_path):
    """Return a folder that :func:`unwritable` can work on."""
    path = tmp_path / "disk"
    path.mkdir()
    if os.geteuid():
        yield path
    else:
        with small_disk(path):
            yield path


def test_a_new_database_in_an_unwritable_folder_is_refused_at_once(disk):
    with unwritable(disk), pytest.raises(OSError, match="disk/results.db cannot be .* permissions"):
        ResultStore(disk / "results.db")


def test_a_read_only_database_answers(disk, stub, espresso):
    CachedOracle(espresso, disk / "results.db").evaluate([crystal()])
    with unwritable(disk):
        CachedOracle(espresso, disk / "results.db").evaluate([crystal()])
    assert len(stub.started) == 1


def assert_kept_in_memory(cached, stub, break_, mend):
    """Check that results that cannot be written are returned, known, and written in the end."""
    path = Path(cached.store.address)
    cached.evaluate([crystal(0)])
    break_()
    with pytest.warns(UserWarning, match="results.db cannot be .*1 result is kept in memory"):
        (first,) = cached.evaluate([crystal(1)])
    with pytest.warns(UserWarning, match="results.db cannot be .*2 results are kept in memory"):
        (second,) = cached.evaluate([crystal(2)])
    assert first.status is second.status is Status.OK
    again = cached.evaluate([crystal(1), crystal(2)])
    assert [p.total_energy_ry for p in again] == [first.total_energy_ry, second.total_energy_ry]
    assert len(stub.started) == 3
    mend()
    assert_whole(path, 1)
    cached.evaluate([crystal(3)])
    assert_whole(path, 4)
    assert len(ResultStore(path)) == 4
    assert len(stub.started) == 4


def test_results_of_a_database_that_became_read_only_are_kept(disk, stub, espresso):
    cached = CachedOracle(espresso, disk / "results.db")
    with contextlib.ExitStack() as stack:
        assert_kept_in_memory(
            cached, stub, lambda: stack.enter_context(unwritable(disk)), stack.close
        )


def test_results_that_find_the_disk_full_are_kept(tmp_path, stub, espresso):
    with small_disk(tmp_path / "disk") as disk:
        filler = disk / "filler"

        def fill():
            with open(filler, "wb", buffering=0) as file, contextlib.suppress(OSError):
                while True:
                    file.write(b"0" * 4096)

        cached = CachedOracle(espresso, disk / "results.db")
        assert_kept_in_memory(cached, stub, fill, filler.unlink)


def test_results_of_a_locked_database_are_kept(tmp_path, stub, espresso):
    """Someone else holds it for longer than SQLite waits."""
    path = tmp_path / "results.db"
    cached = CachedOracle(espresso, path)
    cached.evaluate([crystal()])
    other = sqlite3.connect(path)
    other.execute("BEGIN EXCLUSIVE")
    real = sqlite3.connect
    with pytest.MonkeyPatch.context() as patch:  # ASE waits 20 s
        patch.setattr(sqlite3, "connect", lambda name, timeout: real(name, timeout=0.1))
        with pytest.warns(UserWarning, match="database is locked"):
            cached.evaluate([crystal(1)])
    other.rollback()
    other.close()
    assert cached.store.flush()
    assert_whole(path, 2)


def test_a_failed_attempt_that_could_not_be_written_counts(disk, stub, espresso):
    stub.set(failures={"Na": "timeout"})
    cached = CachedOracle(espresso, disk / "results.db", max_attempts=2)
    cached.evaluate([crystal(1)])
    with unwritable(disk):
        with pytest.warns(UserWarning, match="kept in memory"):
            cached.evaluate([crystal(1)])
        cached.evaluate([crystal(1)])
    assert len(stub.started) == 2
    assert cached.store.flush()
    assert [row.data["attempt"] for row in rows_of(disk / "results.db")] == [0, 1]


def test_what_could_not_be_written_is_written_when_the_program_ends(tmp_path):
    script = """
import sqlite3, sys, warnings
sys.path.insert(0, sys.argv[2])
from test_cache import ResultStore, crystal, made_result, structure_key
store, real = ResultStore(sys.argv[1]), sqlite3.connect
store.put(crystal(0), structure_key(crystal(0)), "made", made_result(-1.0))
other = sqlite3.connect(sys.argv[1])
other.execute("BEGIN EXCLUSIVE")
sqlite3.connect = lambda name, timeout: real(name, timeout=0.1)
store.put(crystal(1), structure_key(crystal(1)), "made", made_result(-1.0))
other.close()
"""
    path = tmp_path / "results.db"
    words = [sys.executable, "-c", script, path, Path(__file__).parent]
    ended = subprocess.run(words, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
    assert "1 result is kept in memory" in ended.stderr
    assert_whole(path, 2)


def test_a_file_damaged_meanwhile_costs_no_result(tmp_path, stub, espresso):
    path = tmp_path / "results.db"
    cached = CachedOracle(espresso, path)
    cached.evaluate([crystal(0)])
    sound = path.read_bytes()
    path.write_bytes(b"spoiled" + sound[7:])
    with pytest.warns(UserWarning, match="is no ASE database"):
        (found,) = cached.evaluate([crystal(1)])
    assert found.status is Status.OK
    path.write_bytes(sound)
    assert cached.store.flush()
    assert_whole(path, 2)


def test_a_kill_while_the_tables_are_made_leaves_a_usable_file(tmp_path, espresso):
    """As ASE makes them one by one, a file could have some of them for ever."""
    for step in range(1, 24, 4):
        path = tmp_path / f"results{step}.db"
        child = os.fork()
        if child == 0:
            _die_after_statements(path, step)
        os.waitpid(child, 0)
        store_made_results(path, 1)
        assert_whole(path, 1)


def _die_after_statements(path, step):
    """Store a result, and be killed after so many statements."""

    class Connection(sqlite3.Connection):
        count = 0

        def execute(self, *words):
            Connection.count += 1
            if Connection.count > step:
                os.kill(os.getpid(), signal.SIGKILL)
            return super().execute(*words)

    real = sqlite3.connect
    sqlite3.connect = lambda name, timeout: real(name, timeout=timeout, factory=Connection)
    store_made_results(path, 1)
    os._exit(0)


# -- PostgreSQL -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda server: server.address(password="wrong"), "password authentication failed"),
        (lambda server: server.address("missing"), 'database "missing" does not exist'),
        (lambda server: server.address().replace(str(server.port), "1"), "refused"),
        (lambda server: server.address().replace("127.0.0.1", "no.such.invalid"), "not known"),
        (lambda server: server.address(password="wrong/word"), "not understood"),
        (lambda server: server.address(password="wrong@word"), "not understood"),
        (
            lambda server: f"postgresql://127.0.0.1:{server.port}/x?user=crystal&password=wrong@",
            "password authentication failed",
        ),
    ],
    ids=["password", "database", "port", "host", "slash", "at", "query"],
)
def test_an_address_that_cannot_be_used_is_one_sentence_without_the_password(
    server, change, sentence
):
    with pytest.raises(ConnectionError, match="cannot be used") as caught:
        ResultStore(change(server))
    said = str(caught.value)
    assert sentence in said
    assert "wrong" not in said
    assert "secret" not in said
    assert "\n" not in said


def test_nothing_shows_the_password(server, espresso):
    cached = CachedOracle(espresso, server.new_database())
    assert "secret" not in repr(cached)
    assert "secret" not in cached.store.name
    assert "crystal@127.0.0.1" in cached.store.name


def test_results_of_a_server_that_went_away_are_kept(server, stub, espresso):
    address = server.new_database()
    name = address.rsplit("/", 1)[1]
    cached = CachedOracle(espresso, address)
    cached.evaluate([crystal(0)])
    server.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
    with pytest.warns(UserWarning, match="cannot be used .*not currently accepting connections"):
        cached.evaluate([crystal(1)])
    server.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
    cached.evaluate([crystal(1), crystal(2)])
    assert len(stub.started) == 3
    assert_whole(address, 3)


def test_a_statement_that_fails_says_why_and_the_store_works_on(server):
    """ase-db-backends' connection has no rollback, and would hide what went wrong."""
    address = server.new_database()
    name = address.rsplit("/", 1)[1]
    store = ResultStore(address)
    store.put(crystal(0), structure_key(crystal(0)), "made", made_result(-1.0))
    server.execute("ALTER TABLE species RENAME TO other", name)
    with pytest.warns(UserWarning, match='relation "species" does not exist'):
        store.put(crystal(1), structure_key(crystal(1)), "made", made_result(-1.0))
    server.execute("ALTER TABLE other RENAME TO species", name)
    assert store.flush()
    assert_whole(address, 2)


def test_without_its_packages_postgresql_names_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "psycopg2", None)
    with pytest.raises(ImportError, match=r"pip install 'crystal-gym\[postgresql\]'"):
        ResultStore("postgresql://crystal@127.0.0.1/results")


# -- arguments ------------------------------------------------------------------------------------


class Uncacheable:
    def evaluate(self, structures):
        return []


@pytest.mark.parametrize("oracle", [Uncacheable(), EspressoOracle], ids=["plain", "class"])
def test_an_oracle_that_cannot_be_cached_is_refused(oracle, tmp_path):
    with pytest.raises(TypeError, match=r"cannot be cached: expected an oracle with fingerprint"):
        CachedOracle(oracle, tmp_path / "results.db")


def test_less_than_one_attempt_is_refused(espresso, tmp_path):
    with pytest.raises(ValueError, match="max_attempts=0: expected at least 1"):
        CachedOracle(espresso, tmp_path / "results.db", max_attempts=0)


def test_what_is_no_structure_is_refused(espresso, tmp_path):
    with pytest.raises(TypeError, match="a structure of type str is not understood"):
        CachedOracle(espresso, tmp_path / "results.db").evaluate(["NaCl"])


def test_ase_atoms_are_taken_as_well(espresso, tmp_path):
    cached = CachedOracle(espresso, tmp_path / "results.db")
    cached.evaluate([crystal()])
    atoms = Atoms("NaCl", scaled_positions=[[0, 0, 0], [0.5, 0.5, 0.5]], cell=[3.4] * 3, pbc=True)
    assert cached.evaluate([atoms])[0].provenance.endswith("(stored)")


def test_without_a_name_the_database_is_in_the_users_cache(empty_cache, espresso):
    cached = CachedOracle(espresso)
    cached.evaluate([replaced(crystal(), ["K", "Br"])])
    assert_whole(empty_cache / "calculations.db", 1)
