"""One episode whose last step is a real Quantum ESPRESSO calculation, a few seconds long.

It needs pw.x and pseudopotentials; `crystal-gym doctor` says what is missing and how to get it.
A second run answers from the cache.

python examples/live_dft.py [CATION ANION]
"""

import sys

import gymnasium as gym
from pymatgen.core import Lattice, Structure

import crystal_gym  # noqa: F401  (registers CrystalFill-v0)
from crystal_gym.elements import ELEMENTS


def main() -> None:
    """Fill a rocksalt skeleton with two elements and let pw.x judge them."""
    cation, anion = sys.argv[1:3] if len(sys.argv) > 2 else ("Mg", "S")
    skeleton = Structure.from_spacegroup(
        "Fm-3m", Lattice.cubic(5.2), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]]
    ).get_primitive_structure()
    env = gym.make("CrystalFill-v0", target_gap=3.0, skeletons=[skeleton], oracle="espresso")
    env.reset(seed=0)
    env.step(ELEMENTS.index(cation))
    _, reward, terminated, _, info = env.step(ELEMENTS.index(anion))
    assert terminated
    print(f"{info['formula']}: {info['oracle_status']}, reward {reward:.3f}")
    for name, value in info["properties"].items():
        print(f"  {name} = {value}")
    print(f"  {info['provenance']}")


if __name__ == "__main__":
    main()
