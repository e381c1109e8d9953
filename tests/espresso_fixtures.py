"""Fixtures of the live oracle's tests; ``pytest_plugins = ["espresso_fixtures"]`` brings them."""

import shutil

import pytest
from espresso_helpers import CHEAP, DEFAULTS, INPUT, processes_in, write_upf

from crystal_gym.oracles.espresso import EspressoOracle
from crystal_gym.oracles.espresso.oracle import pw_environment
from crystal_gym.oracles.espresso.outputs import read_output
from crystal_gym.oracles.espresso.process import run_session
from crystal_gym.oracles.espresso.pseudopotentials import install


@pytest.fixture(scope="session")
def archive(data_dir):
    """Return the archive of pseudopotentials, or skip."""
    path = data_dir / "qe" / "sssp_efficiency.tar.gz"
    if not path.is_file():
        pytest.skip(f"{path} is missing")
    return path


@pytest.fixture(scope="session")
def pseudopotentials(archive, tmp_path_factory):
    """Return the archive's files, installed once."""
    return install(archive, tmp_path_factory.mktemp("pseudo"))


@pytest.fixture(scope="session")
def pw():
    """Return the path of pw.x, or skip."""
    found = shutil.which("pw.x")
    if found is None:
        pytest.skip("pw.x is not installed")
    return found


@pytest.fixture
def stub_oracle(tmp_path):
    """Return a function that makes an oracle around a stub; its pseudopotentials are made up."""

    def make(executable, preset="labels", *, elements=("Si", "N"), valence=4.0, **options):
        folder = write_upf(tmp_path / "upf", *elements, valence=valence)
        options = {"references": None, "scratch": tmp_path / "scratch", **options}
        return EspressoOracle(preset, pseudopotentials=folder, pw=str(executable), **options)

    return make


@pytest.fixture
def oracle(pw, pseudopotentials, tmp_path):
    """Return a function that makes an oracle around the real pw.x, with cheap settings."""

    def make(**options):
        options = {**CHEAP, "references": None, "timeout_s": 300, **options}
        options.setdefault("scratch", tmp_path / "scratch")
        return EspressoOracle("labels", pseudopotentials=pseudopotentials.folder, pw=pw, **options)

    return make


@pytest.fixture
def clean(tmp_path):
    """Assert after the test that nothing of it runs, or is left in the scratch folder."""
    yield
    assert processes_in(tmp_path) == []
    running = tmp_path / "scratch" / "running"
    assert not running.is_dir() or list(running.iterdir()) == []


@pytest.fixture
def by_hand(pw, pseudopotentials, tmp_path):
    """Return a function that runs pw.x on a written input: what the oracle would not launch.

    It returns what was read from the output, and how the program ended.
    """

    def run(*, timeout_s=300.0, memory_bytes=None, **values):
        folder = tmp_path / "by-hand"
        folder.mkdir()
        values = {**DEFAULTS, "pseudo_dir": pseudopotentials.folder, **values}
        (folder / "pw.in").write_text(INPUT.format(**values))
        finished = run_session(
            [pw, "-in", "pw.in"],
            folder=folder,
            output=folder / "pw.out",
            timeout_s=timeout_s,
            memory_bytes=memory_bytes,
            environment=pw_environment(folder),
        )
        text = (folder / "pw.out").read_text(errors="replace")
        return read_output(text, finished.returncode, timed_out=finished.timed_out), finished, text

    return run
