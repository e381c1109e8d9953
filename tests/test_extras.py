"""What is not installed is missed in one sentence that names the command to install it."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from crystal_gym.extras import EXTRAS, missing_modules, require_extra

tomllib = pytest.importorskip("tomllib", reason="Python 3.10 has no reader of TOML")

PROJECT = tomllib.loads(
    (Path(__file__).resolve().parents[1] / "pyproject.toml").read_text("utf-8")
)["project"]
MODULES = {"psycopg2-binary": "psycopg2"}


def names(requirements):
    return {re.split(r"[^-\w.]", r)[0] for r in requirements}


@pytest.mark.parametrize("extra", EXTRAS)
def test_the_modules_of_an_extra_are_those_that_pyproject_lists(extra):
    listed = names(PROJECT["optional-dependencies"][extra]) - {"tomli"}
    assert {MODULES.get(n, n.replace("-", "_")) for n in listed} == set(EXTRAS[extra])


def test_all_is_all_that_is_not_for_developing():
    (everything,) = PROJECT["optional-dependencies"]["all"]
    named = set(re.search(r"\[(.*)\]", everything)[1].split(","))
    developing = {"all", "dev", "docs", "examples", "fuzz", "postgresql"}  # dft is postgresql
    assert named == set(PROJECT["optional-dependencies"]) - developing


def test_the_core_has_nothing_heavy():
    assert not names(PROJECT["dependencies"]) & {"torch", "d3rlpy", "plotly", "matplotlib"}


def test_urls_name_no_machine():
    assert not PROJECT.get("urls") or "localhost" not in str(PROJECT["urls"])


def test_what_is_missing_is_found_without_importing(monkeypatch):
    monkeypatch.setitem(sys.modules, "plotly", None)
    assert missing_modules("report") == ("plotly",)


def test_the_sentence_names_the_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "plotly", None)
    message = (
        r"^a page needs plotly, which is not installed: run `pip install 'crystal-gym\[report\]'`$"
    )
    with pytest.raises(ImportError, match=message):
        require_extra("report", "a page")


USES = {
    "agents": "import crystal_gym.agents",
    "d3rlpy": "from crystal_gym.datasets import load_d3rlpy",
    "surrogate": "from crystal_gym.oracles import SurrogateOracle; SurrogateOracle()",
    "cluster": "from crystal_gym.cluster import executor_at\n"
    "with executor_at('dask://localhost:1'): pass",
    "postgresql": "from crystal_gym.oracles import ResultStore; ResultStore('postgresql://x/y')",
    "relax": "from crystal_gym.relaxation import Relaxer; Relaxer()",
    "render": "import gymnasium as gym\n"
    "gym.make('CrystalFill-v0', target_gap=3.0, render_mode='rgb_array')",
    "report": "from crystal_gym.report.page import _packed_plotly; _packed_plotly()",
}


def test_every_use_of_an_extra_names_it_where_it_is_missing():
    hidden = sorted({module for modules in EXTRAS.values() for module in modules})
    code = f"import sys\nfor name in {hidden}: sys.modules[name] = None\n"
    for use in USES.values():
        code += f"try:\n    exec({use!r})\nexcept ImportError as error:\n    print(error)\n"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    told = done.stdout.splitlines()
    assert len(told) == len(USES), done.stdout
    for name, line in zip(USES, told, strict=True):
        extra = name if name in EXTRAS else "agents"
        assert line.endswith(f"run `pip install 'crystal-gym[{extra}]'`")


def test_a_screen_without_matplotlib_is_text():
    code = (
        "import sys; sys.modules['matplotlib'] = None; import gymnasium as gym, crystal_gym\n"
        "env = gym.make('CrystalFill-v0', target_gap=3.0, render_mode='human'); env.reset(seed=0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "found no screen and no notebook, so it prints text" in done.stderr
    assert "of 6 sites filled" in done.stdout


def test_importing_takes_neither_torch_nor_pymatgen():
    code = (
        "import sys, crystal_gym; print([m for m in "
        "('torch', 'd3rlpy', 'pymatgen', 'ase', 'smact', 'minari', 'matplotlib', 'plotly', 'scipy')"
        " if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
