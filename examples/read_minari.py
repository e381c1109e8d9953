"""Read a dataset as anyone can who does not have crystal_gym: with Minari and NumPy alone.

Prints what is in `crystal-mini-v0`, rebuilds the graph of one crystal from its episode's metadata,
and pays every episode anew for another target gap. A second. The dataset must be on this machine:
`crystal-gym data build mini` makes it.

python examples/read_minari.py [TARGET_EV]
"""

import sys

import minari
import numpy as np

ELEMENTS = (
    "H He Li Be B C N O F Ne Na Mg Al Si P S Cl K Ca Sc Ti V Cr Mn Fe Co Ni Cu Zn Ga Ge As Se Br "
    "Kr Rb Sr Y Zr Nb Mo Tc Ru Rh Pd Ag Cd In Sn Sb Te I Xe Cs Ba La Ce Pr Nd Pm Sm Eu Gd Tb Dy "
    "Ho Er Tm Yb Lu Hf Ta W Re Os Ir Pt Au Hg Tl Pb Bi Ac Th Pa U Np Pu"
).split()


def main(target_gap: float = 1.12) -> None:
    """Print a summary, a graph, and the best paid crystals."""
    dataset = minari.load_dataset("crystal-mini-v0")
    print(f"{dataset.id}: {dataset.total_episodes:,} episodes, {dataset.total_steps:,} steps")

    episode = dataset[400]
    (metadata,) = dataset.storage.get_episode_metadata([400])
    crystal = metadata["options"]
    sites = [ELEMENTS[token - 1] for token in episode.observations["element_tokens"][-1] if token]
    print(f"\nepisode 400 builds {crystal['material_id']}:")
    for step, action in enumerate(episode.actions):
        site = crystal["traversal"][step]
        where = np.round(crystal["frac_coords"][site], 3).tolist()
        print(f"  step {step}: {ELEMENTS[action]:2s} on site {site} at {where}")
    ends, lengths = crystal["edge_index"], crystal["edge_length"]
    for source, target in sorted(set(map(tuple, ends.T.tolist()))):
        bonds = lengths[(ends[0] == source) & (ends[1] == target)]
        print(f"  {sites[source]}-{sites[target]}: {len(bonds)} bonds from {bonds.min():.2f} Å")

    paid = {}
    for metadata in dataset.storage.get_episode_metadata(range(dataset.total_episodes)):
        crystal = metadata["options"]
        energy, gap = crystal["formation_energy_ev_per_atom"], crystal["band_gap_ev"]
        reward = np.exp(-energy / 5) + 10 * np.exp(-((gap - target_gap) ** 2) / 3)
        paid[crystal["material_id"]] = reward, gap, energy
    print(f"\nbest paid for a target of {target_gap} eV:")
    for name in sorted(paid, key=paid.get, reverse=True)[:3]:
        reward, gap, energy = paid[name]
        print(f"  {name}: {reward:.2f} (gap {gap:.2f} eV, {energy:.2f} eV/atom)")


if __name__ == "__main__":
    main(*map(float, sys.argv[1:]))
