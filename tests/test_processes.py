"""Several processes at one dataset and one cache: the same numbers, and no error of a lock."""

import hashlib
import subprocess
import sys

import numpy as np
import pytest
from pymatgen.core import Lattice, Structure

from crystal_gym.crystal_key import structure_key
from crystal_gym.graphs import Geometry, GeometryCache
from crystal_gym.oracles import Properties, ResultStore, Status

# Warnings are errors: what a cache cannot read or write it says with one.
WORDS = [sys.executable, "-W", "error::UserWarning", "-c"]


def run_at_once(scripts):
    """Run scripts (text, arguments) in a process each and return what they print."""
    started = [
        subprocess.Popen(
            [*WORDS, text, *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for text, arguments in scripts
    ]
    ended = [process.communicate(timeout=120) for process in started]
    assert [process.returncode for process in started] == [0] * len(started), ended
    return [out.strip() for out, _ in ended]


BATCHES = """
import hashlib, sys
from crystal_gym import files
files._MAPPED_FROM = 0
from crystal_gym.datasets import load_d3rlpy
buffer = load_d3rlpy(sys.argv[1], target_gap=["hindsight", "uniform"], reorder=0.5, seed=7)
digest = hashlib.sha256()
for _ in range(200):
    batch = buffer.sample_transition_batch(64)
    for array in (batch.observations, batch.actions, batch.rewards, batch.next_observations):
        digest.update(array.tobytes())
print(digest.hexdigest())
"""


def test_two_processes_that_read_one_dataset_get_what_one_gets(made_dataset):
    from crystal_gym.datasets import load_d3rlpy

    buffer = load_d3rlpy(made_dataset.id, target_gap=["hindsight", "uniform"], reorder=0.5, seed=7)
    digest = hashlib.sha256()
    for _ in range(200):
        batch = buffer.sample_transition_batch(64)
        for array in (batch.observations, batch.actions, batch.rewards, batch.next_observations):
            digest.update(array.tobytes())
    assert run_at_once([(BATCHES, [made_dataset.id])] * 2) == [digest.hexdigest()] * 2


COUNT = 150

WRITE_GRAPHS = """
import sys
sys.path.insert(0, sys.argv[2])
from test_processes import COUNT, geometry
from crystal_gym.graphs import GeometryCache
cache = GeometryCache(sys.argv[1])
for number in range(COUNT):
    cache.put({f"key-{number}": geometry(number)})
"""

READ_GRAPHS = """
import sys, time
sys.path.insert(0, sys.argv[2])
from test_processes import COUNT, assert_geometry
from crystal_gym.graphs import GeometryCache
cache, seen = GeometryCache(sys.argv[1]), set()
keys = [f"key-{number}" for number in range(COUNT)]
deadline = time.monotonic() + 60
while len(seen) < COUNT and time.monotonic() < deadline:
    found = cache.get(keys)
    assert seen <= set(found), "a geometry that was there is gone"
    for key in set(found) - seen:
        assert_geometry(found[key], int(key.split("-")[1]))
    seen = set(found)
print(len(seen))
"""


def geometry(number):
    """Return a geometry that follows from its number."""
    generator = np.random.default_rng(number)
    n_edges = int(generator.integers(1, 400))
    return Geometry(
        generator.integers(0, 60, (2, n_edges)).astype(np.int16),
        generator.integers(-3, 3, (n_edges, 3)).astype(np.int16),
        generator.random(n_edges).astype(np.float32),
        generator.permuted(np.tile(np.arange(60, dtype=np.int16), (8, 1)), axis=1),
        int(generator.integers(1, 231)),
    )


def assert_geometry(found, number):
    expected = geometry(number)
    for name in ("edge_index", "edge_image", "edge_length", "permutations"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
    assert found.space_group_number == expected.space_group_number


@pytest.fixture
def here(request):
    return request.path.parent


def test_four_readers_follow_one_writer_of_graphs(tmp_path, here):
    path = tmp_path / "geometry.sqlite"
    readers = [(READ_GRAPHS, [path, here])] * 4
    told = run_at_once([*readers, (WRITE_GRAPHS, [path, here])])
    assert told[:4] == [str(COUNT)] * 4
    assert len(GeometryCache(path).get(f"key-{n}" for n in range(COUNT))) == COUNT


RESULTS = 40

WRITE_RESULTS = """
import sys
sys.path.insert(0, sys.argv[2])
from test_processes import RESULTS, crystal, result
from crystal_gym.crystal_key import structure_key
from crystal_gym.oracles import ResultStore
store = ResultStore(sys.argv[1])
for number in range(RESULTS):
    structure = crystal(number)
    store.put(structure, structure_key(structure), "made", result(number))
"""

READ_RESULTS = """
import sys, time
sys.path.insert(0, sys.argv[2])
from test_processes import RESULTS, crystal, result
from crystal_gym.crystal_key import structure_key
from crystal_gym.oracles import ResultStore
store = ResultStore(sys.argv[1])
keys = [structure_key(crystal(number)) for number in range(RESULTS)]
deadline = time.monotonic() + 60
while len(store) < RESULTS and time.monotonic() < deadline:
    before = len(store)
    store.refresh()
    assert len(store) >= before
    for number, key in enumerate(keys):
        found = store.get(key, "made")
        assert found is None or found.properties.total_energy_ry == result(number).total_energy_ry
print(len(store))
"""


def crystal(number):
    return Structure(Lattice.cubic(4 + 0.01 * number), ["Na"], [[0, 0, 0]])


def result(number):
    return Properties(-1.0 - number, status=Status.OK, provenance="made", wall_s=1.0)


def test_four_readers_follow_one_writer_of_results(tmp_path, here):
    path = tmp_path / "results.db"
    readers = [(READ_RESULTS, [path, here])] * 4
    told = run_at_once([*readers, (WRITE_RESULTS, [path, here])])
    assert told[:4] == [str(RESULTS)] * 4
    store = ResultStore(path)
    for number in range(RESULTS):
        found = store.get(structure_key(crystal(number)), "made")
        assert found.properties.total_energy_ry == -1.0 - number
