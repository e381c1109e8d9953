"""Small crystals that the tests make themselves, and plain ways to look at them."""

import math
import re
import warnings

import numpy as np
from pymatgen.core import Lattice, Structure

from crystal_gym.elements import symbol_to_token
from crystal_gym.oracles import PropertyTable, Status

LAYER = [[1 / 3, 2 / 3, 0.25], [1 / 3, 2 / 3, 0.377], [1 / 3, 2 / 3, 0.123]]
TRICLINIC_SITES = [
    [0.1, 0.2, 0.3],
    [0.6, 0.1, 0.9],
    [0.35, 0.7, 0.15],
    [0.8, 0.55, 0.5],
    [0.05, 0.85, 0.75],
    [0.45, 0.4, 0.6],
]


def rocksalt(cation="Na", anion="Cl", a=5.64):
    sites = [[0, 0, 0], [0.5, 0.5, 0.5]]
    cubic = Structure.from_spacegroup("Fm-3m", Lattice.cubic(a), [cation, anion], sites)
    return cubic.get_primitive_structure()


def wurtzite(cation="Zn", anion="S"):
    sites = [[1 / 3, 2 / 3, 0], [1 / 3, 2 / 3, 0.3748]]
    return Structure.from_spacegroup(
        "P6_3mc", Lattice.hexagonal(3.81, 6.26), [cation, anion], sites
    )


def fluorite(cation="Ca", anion="F"):
    sites = [[0, 0, 0], [0.25, 0.25, 0.25]]
    cubic = Structure.from_spacegroup("Fm-3m", Lattice.cubic(5.46), [cation, anion], sites)
    return cubic.get_primitive_structure()


def perovskite():
    sites = [[0, 0, 0], [0.5, 0.5, 0.5], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]]
    return Structure(Lattice.cubic(3.91), ["Sr", "Ti", "O", "O", "O"], sites)


def triclinic():
    lattice = Lattice.from_parameters(5.1, 5.9, 6.6, 81, 97, 106)
    return Structure(lattice, ["Li", "O", "Si", "P", "Ca", "F"], TRICLINIC_SITES)


def layered():
    """Two MoS2-like layers that no bond joins."""
    other = (np.array(LAYER) + [1 / 3, -1 / 3, 0.5]) % 1.0
    lattice = Lattice.hexagonal(3.16, 12.3)
    return Structure(lattice, ["Mo", "S", "S", "Mo", "S", "S"], [*LAYER, *other.tolist()])


def molecular():
    """Two dimers in a box: every part of the graph is one bond."""
    sites = [[0.2, 0.2, 0.2], [0.2, 0.2, 0.38], [0.7, 0.7, 0.7], [0.7, 0.7, 0.88]]
    return Structure(Lattice.cubic(6.0), ["C", "O", "N", "N"], sites)


MAKERS = {
    "rocksalt": rocksalt,
    "wurtzite": wurtzite,
    "fluorite": fluorite,
    "perovskite": perovskite,
    "triclinic": triclinic,
    "layered": layered,
    "molecular": molecular,
}
STRUCTURES = {name: make() for name, make in MAKERS.items()}
NAMES = list(STRUCTURES)

EXTRA_FILLINGS = [
    ("rocksalt", {"Na": "Li", "Cl": "F"}, Status.OK),
    ("rocksalt", {"Na": "Xe", "Cl": "Kr"}, Status.NOT_CONVERGED),
    ("wurtzite", {"Zn": "Be", "S": "O"}, Status.OK),
    ("perovskite", {"Sr": "K", "Ti": "Mg", "O": "F"}, Status.OK),
]
"""Further entries of the made table: (skeleton, replaced elements, status)."""


def replaced(structure, symbols):
    """Return the same sites with other elements, in the same order."""
    return Structure(structure.lattice, list(symbols), structure.frac_coords)


def tokens_of(symbols):
    return np.array([symbol_to_token(str(s)) for s in symbols], dtype=np.int16)


def made_table(skeletons):
    """Return a table over the made crystals with invented, all different properties."""
    number = {str(name): i for i, name in enumerate(skeletons.names)}
    entries = [(number[name], skeletons[number[name]].reference, Status.OK) for name in NAMES]
    for name, swaps, status in EXTRA_FILLINGS:
        token_swaps = {
            int(tokens_of([old])[0]): int(tokens_of([new])[0]) for old, new in swaps.items()
        }
        reference = skeletons[number[name]].reference.tolist()
        filling = np.array([token_swaps[t] for t in reference], dtype=np.int16)
        entries.append((number[name], filling, status))
    generator = np.random.default_rng(5)
    count = len(entries)
    ok = np.array([status is Status.OK for *_, status in entries])
    return PropertyTable(
        skeletons=skeletons,
        skeleton=np.array([i for i, *_ in entries]),
        tokens=np.concatenate([tokens for _, tokens, _ in entries]),
        total_energy_ry=np.where(ok, generator.uniform(-900, -50, count), np.nan),
        formation_energy_ev_per_atom=np.where(ok, generator.uniform(-4, 0.3, count), np.nan),
        band_gap_ev=np.where(ok, generator.uniform(0.1, 6, count), np.nan),
        status=np.array([status.value for *_, status in entries]),
        provenance=np.array([f"made entry {i}" for i in range(count)]),
    )


def eqn_7(formation_energy, gap, target):
    """Eqn (7) of the paper with plain `math`; only the first term without a target."""
    reward = math.exp(-formation_energy / 5.0)
    return reward if target is None else reward + 10.0 * math.exp(-((gap - target) ** 2) / 3.0)


def eqn_16(total_energy, gap, target):
    reward = math.log10(-total_energy)
    return reward if target is None else reward + 10.0 * math.exp(-((gap - target) ** 2) / 3.0)


def cif_text(structure):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return structure.to(fmt="cif")


def species_in(cif):
    """Return the element symbol of every site of one of MP-20's CIFs, without a CIF parser."""
    (formula,) = re.findall(r"_chemical_formula_sum +'?([^'\n]+)'?", cif)
    counts = re.findall(r"([A-Z][a-z]?)(\d+)", formula)
    return [symbol for symbol, count in counts for _ in range(int(count))]


def edge_set(edge_index, edge_image):
    return set(map(tuple, np.column_stack([np.asarray(edge_index).T, edge_image]).tolist()))


def parts(n_sites, edge_index):
    """Return the connected parts of a graph as a set of frozen sets."""
    part = [{i} for i in range(n_sites)]
    for source, target in np.asarray(edge_index).T.tolist():
        if part[source] is not part[target]:
            part[source] |= part[target]
            for site in part[target]:
                part[site] = part[source]
    return {frozenset(p) for p in part}


def fill(env, symbols):
    """Fill a skeleton that has been reset with one element per site; return the last step."""
    tokens = tokens_of(symbols)
    while True:
        step = env.step(int(tokens[env.unwrapped.state.focus]) - 1)
        if step[2]:
            return step


def play(env, choose, **reset):
    """Play an episode; return its observations, actions, rewards and last info."""
    observation, info = env.reset(**reset)
    observations, actions, rewards = [observation], [], []
    terminated = False
    while not terminated:
        action = choose(info)
        observation, reward, terminated, truncated, info = env.step(action)
        assert not truncated
        observations.append(observation)
        actions.append(action)
        rewards.append(reward)
    return observations, actions, rewards, info


def random_choice(seed):
    generator = np.random.default_rng(seed)
    return lambda info: int(generator.choice(np.flatnonzero(info["action_mask"])))
