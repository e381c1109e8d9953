"""Small crystals that the tests make themselves, and plain ways to look at them."""

import math
import re
import warnings

import numpy as np

from crystal_gym.elements import symbol_to_token
from crystal_gym.oracles import PropertyTable, Status
from crystal_gym.testing import (  # noqa: F401 (for the tests)
    fluorite,
    layered,
    molecular,
    perovskite,
    replaced,
    rocksalt,
    tiny_crystals,
    triclinic,
    wurtzite,
)

STRUCTURES = tiny_crystals()
NAMES = list(STRUCTURES)

EXTRA_FILLINGS = [
    ("rocksalt", {"Na": "Li", "Cl": "F"}, Status.OK),
    ("rocksalt", {"Na": "Xe", "Cl": "Kr"}, Status.NOT_CONVERGED),
    ("wurtzite", {"Zn": "Be", "S": "O"}, Status.OK),
    ("perovskite", {"Sr": "K", "Ti": "Mg", "O": "F"}, Status.OK),
]
"""Further entries of the made table: (skeleton, replaced elements, status)."""


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
