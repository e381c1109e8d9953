"""Install the wheel with the core's dependencies alone, and use it: ``make wheel-check``.

Builds the package twice, which must give the same bytes, makes a fresh virtual environment outside
of the checkout, installs the wheel and its dependencies without any extra, and runs there what a
user of the core does. What needs an extra must say so in one sentence.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

from build_dist import ROOT, build

_USED = """
import sys

import crystal_gym

heavy = {"torch", "d3rlpy", "pymatgen", "ase", "minari", "smact", "matplotlib", "plotly", "scipy"}
assert not heavy & set(sys.modules), heavy & set(sys.modules)

import gymnasium as gym

env = gym.make("CrystalFill-v0", target_gap=3.0)
obs, info = env.reset(seed=0, options={"skeleton": 12})
terminated = False
while not terminated:
    obs, reward, terminated, truncated, info = env.step(
        env.action_space.sample(info["action_mask"])
    )
assert info["formula"], info

mine = gym.make("CrystalFill-v0", skeletons=sys.argv[1], mask="charge_neutral")
_, info = mine.reset(seed=0)
assert info["action_mask"].any()
assert mine.unwrapped.structure().is_ordered in (True, False)

from crystal_gym.datasets import build_mini, load_trajectories
from crystal_gym.evaluation import RandomPolicy, Task, rollout

assert len(load_trajectories(build_mini().dataset_id)) == 1196
assert rollout(RandomPolicy(0), Task.of_skeletons(env.unwrapped.skeletons), 3.0).any()

assert not {"torch", "d3rlpy"} & set(sys.modules)
for extra, use in {
    "agents": "import crystal_gym.agents",
    "agents]": "from crystal_gym.datasets import load_d3rlpy",
    "agents]'": "from crystal_gym.oracles import SurrogateOracle; SurrogateOracle()",
    "cluster": "from crystal_gym.cluster import executor_at\\n"
    "with executor_at('dask://localhost:1'): pass",
    "relax": "from crystal_gym.relaxation import Relaxer; Relaxer()",
    "postgresql": "from crystal_gym.oracles import ResultStore; ResultStore('postgresql://x/y')",
    "hub": "from crystal_gym.datasets.hub import upload\\n"
    "list(upload('crystal-mini-v0', 'hf://nobody'))",
}.items():
    try:
        exec(use)
    except ImportError as error:
        assert f"pip install 'crystal-gym[{extra.rstrip(chr(39) + ']')}]'" in str(error), error
    else:
        raise AssertionError(f"{use!r} works without its extra")
print("the core works without its extras")
"""

_CIF = """data_rocksalt
_cell_length_a 5.6
_cell_length_b 5.6
_cell_length_c 5.6
_cell_angle_alpha 90
_cell_angle_beta 90
_cell_angle_gamma 90
_symmetry_space_group_name_H-M 'F m -3 m'
_symmetry_Int_Tables_number 225
loop_
_atom_site_label
_atom_site_type_symbol
_atom_site_fract_x
_atom_site_fract_y
_atom_site_fract_z
Na Na 0 0 0
Cl Cl 0.5 0.5 0.5
"""


def main() -> None:
    """Build, compare, install, use."""
    with tempfile.TemporaryDirectory(prefix="crystal-gym-wheel-") as temporary:
        folder = Path(temporary)
        first, second = (build(folder / name) for name in ("first", "second"))
        for one, other in zip(first, second, strict=True):
            hashes = {hashlib.sha256(path.read_bytes()).hexdigest() for path in (one, other)}
            if len(hashes) != 1:
                sys.exit(f"{one.name} differs between two builds of the same sources")
            size = one.stat().st_size / 1e6
            if size > 10:
                sys.exit(f"{one.name} has {size:.1f} MB: expected at most 10")
            print(f"{hashes.pop()}  {one.name}, {size:.1f} MB, twice")
        _use(first[1], folder)


def _use(wheel: Path, folder: Path) -> None:
    """Install a wheel into a fresh environment and run there what a user of the core does."""
    home = folder / "venv"
    venv.create(home, with_pip=True)
    python = home / "bin" / "python"
    pip = [python, "-m", "pip", "-qq", "--disable-pip-version-check", "install"]
    subprocess.run([*pip, "-c", ROOT / "constraints.txt", wheel], check=True)
    (folder / "rocksalt.cif").write_text(_CIF)
    script = folder / "use.py"
    script.write_text(_USED)
    environment = {
        "PATH": f"{home / 'bin'}:/usr/bin:/bin",
        "HOME": str(folder),
        "HF_TOKEN": "none",
        "OMP_NUM_THREADS": "1",
    }
    subprocess.run(
        [python, script, folder / "rocksalt.cif"], cwd=folder, env=environment, check=True
    )
    for words in (["--help"], ["data", "list"], ["completion", "bash"]):
        subprocess.run(
            [home / "bin" / "crystal-gym", *words],
            cwd=folder,
            env=environment,
            check=True,
            stdout=subprocess.DEVNULL,
        )


if __name__ == "__main__":
    main()
