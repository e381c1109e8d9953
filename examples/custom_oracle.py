"""Your own oracle: any ASE calculator judges the alloys that the agent makes.

An oracle is an object with `evaluate(structures)`. This one asks ASE's EMT potential, or CHGNet
(`pip install chgnet`), for formation energies. Prints the most stable of 300 random fillings of the
four sites of Cu3Au. EMT takes three seconds, CHGNet half a minute.

python examples/custom_oracle.py [emt | chgnet] [EPISODES]
"""

import sys
from collections.abc import Sequence

import gymnasium as gym
from ase import Atoms
from ase.build import bulk
from ase.calculators.calculator import Calculator
from ase.calculators.emt import EMT
from pymatgen.core import Lattice, Structure

import crystal_gym  # noqa: F401  (registers CrystalFill-v0)
from crystal_gym.oracles import Properties, Status

METALS = ["Al", "Ni", "Cu", "Pd", "Ag", "Pt", "Au"]


class CalculatorOracle:
    """Formation energies from an ASE calculator, relative to the elements as fcc metals."""

    def __init__(self, calculator: Calculator) -> None:
        self._calculator = calculator
        self._references = {metal: self._energy(bulk(metal)) for metal in METALS}

    def _energy(self, atoms: Atoms) -> float:
        atoms.calc = self._calculator
        return float(atoms.get_potential_energy())

    def evaluate(self, structures: Sequence[Structure]) -> list[Properties]:
        """Return one answer for each structure; a failure is a status that says why."""
        return [self._judge(structure.to_ase_atoms()) for structure in structures]

    def _judge(self, atoms: Atoms) -> Properties:
        if not set(atoms.symbols) <= self._references.keys():
            return Properties(status=Status.UNSUPPORTED_ELEMENT)
        formation = self._energy(atoms) - sum(self._references[s] for s in atoms.symbols)
        return Properties(formation_energy_ev_per_atom=formation / len(atoms))


def make_calculator(name: str) -> Calculator:
    """Return a calculator; CHGNet is imported only where it is asked for."""
    if name == "emt":
        return EMT()
    from chgnet.model.dynamics import CHGNetCalculator

    return CHGNetCalculator(use_device="cpu")


def main(calculator: str = "emt", episodes: str = "300") -> None:
    """Fill a skeleton at random and print what came out best."""
    cu3au = Structure.from_spacegroup(
        "Pm-3m", Lattice.cubic(3.85), ["Au", "Cu"], [[0, 0, 0], [0.5, 0.5, 0]]
    )
    oracle = CalculatorOracle(make_calculator(calculator))
    env = gym.make("CrystalFill-v0", skeletons=[cu3au], oracle=oracle, elements=METALS)
    env.action_space.seed(0)
    found = {}
    for seed in range(int(episodes)):
        _, info = env.reset(seed=seed)
        terminated = False
        while not terminated:
            action = env.action_space.sample(info["action_mask"])
            _, reward, terminated, _, info = env.step(action)
        found[reward] = info["formula"], info["properties"]["formation_energy_ev_per_atom"]
    for reward in sorted(found, reverse=True)[:5]:
        formula, energy = found[reward]
        print(f"{formula:8s} {energy:6.3f} eV/atom, reward {reward:.3f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
