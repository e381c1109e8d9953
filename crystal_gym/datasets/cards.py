"""Dataset cards: what a dataset is, in the form that the Hugging Face hub reads.

The form is Markdown with YAML front matter: https://huggingface.co/docs/hub/datasets-cards.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from crystal_gym.datasets.trajectories import Trajectories

__all__ = ["QUANTITIES", "DatasetCard", "card_text", "group_card_text", "per_crystal"]


@dataclass(frozen=True)
class DatasetCard:
    """What a dataset says of itself.

    Attributes:
        dataset_id: Minari id such as ``crystal-mp20-v0``.
        description: One paragraph: what, from where, licence.
        algorithm_name: What made the episodes.
        mask: The mask of its environment, where that is not the default.
        license: The hub's name of its licence; ``unknown`` where only its maker can say.
    """

    dataset_id: str
    description: str
    algorithm_name: str = "breadth-first reconstruction of labelled crystals"
    mask: str | None = None
    license: str = "unknown"


_FRONT_MATTER = """---
license: {license}
pretty_name: {name}
task_categories:
- reinforcement-learning
tags:
- offline-reinforcement-learning
- minari
- gymnasium
- crystal-gym
- materials-science
- density-functional-theory
size_categories:
- {size}
---
"""

_BODY = """
# {name}

{description}

## Data

{counts}

Each episode fills the sites of one crystal skeleton with one of 88 elements, one site a step,
in an order that does not depend on the elements. Observations are Minari's of `CrystalFill-v0`
with `observation="compact"`: element tokens, focus, number of the skeleton, target gap. The
metadata of an episode hold lattice, coordinates, graph and the DFT properties of the finished
crystal, so that it can be read without crystal_gym. Episodes were made by: {algorithm}.

{table}

Rewards are stored for a target gap of {target:g} eV: 0 until the last site, then
`exp(-E_form/5) + 10 exp(-(gap - target)^2/3)`, E_form in eV/atom, gap in eV. crystal_gym
recomputes them for any other target:

```
import minari
from crystal_gym.datasets import load_d3rlpy

dataset = minari.load_dataset("{name}")
buffer = load_d3rlpy("{name}", target_gap="uniform")
```

## Licence

{licence_text}

## Intended use

Research on offline reinforcement learning and on the design of inorganic crystals: training and
judging policies that fill a given skeleton.

## Limits

Gaps are those of semilocal DFT (PBE), which are too small, on the k-points of the description.
Skeletons keep the cell and positions of their source crystals; nothing is relaxed after other
elements were put in. A formation energy is relative to elements, not to competing compounds: a
negative one does not make a crystal stable.

## Metrics

Of policies trained on it: accuracy and similarity of the elements against the source crystals,
validity (SMACT), novelty, uniqueness, mean formation energy, share within 0.25 eV of the target
gap. The documentation of crystal_gym defines each (`crystal-gym evaluate` computes them).
"""

_LICENCES = {
    "cc-by-4.0": (
        "CC BY 4.0, as the Materials Project that it derives from. Cite the Materials Project, "
        "CDVAE (MP-20) and the source of the DFT labels where you show products of it."
    ),
    "mit": "MIT, as crystal_gym, whose own calculations it holds.",
    "unknown": (
        "Not known to crystal_gym: whoever built this dataset says under which licence its "
        "structures and properties may be used."
    ),
}


QUANTITIES = {
    "sites": "sites",
    "directed_edges": "directed edges",
    "band_gap_ev": "band gap (eV, DFT)",
    "formation_energy_ev_per_atom": "formation energy (eV/atom, DFT)",
}
"""What :func:`per_crystal` is about, in words."""


def per_crystal(data: Trajectories) -> dict[str, dict[str, float]]:
    """Return mean, median, min and max over crystals of each of :data:`QUANTITIES`.

    Args:
        data: Episodes; each crystal counts once, however many end in it.

    Returns:
        By quantity, then by ``mean``, ``median``, ``min`` and ``max``.
    """
    one_each = data.crystals
    skeletons = data.skeleton[one_each]
    columns = {
        "sites": data.skeletons.n_sites[skeletons],
        "directed_edges": data.skeletons.n_edges[skeletons],
        "band_gap_ev": data.band_gap_ev[one_each],
        "formation_energy_ev_per_atom": data.formation_energy_ev_per_atom[one_each],
    }
    return {
        name: {
            "mean": float(values.mean()),
            "median": float(np.median(values)),
            "min": float(values.min()),
            "max": float(values.max()),
        }
        for name, values in columns.items()
    }


def card_text(card: DatasetCard, data: Trajectories, stored_target_ev: float) -> str:
    """Return the card of a dataset as Markdown with front matter.

    Args:
        card: Of the dataset.
        data: Its episodes.
        stored_target_ev: Target gap of the stored rewards, eV.

    Returns:
        Text of a README.md.
    """
    numbers = per_crystal(data)
    rows = ["| per crystal | mean | median | min | max |", "|---|---:|---:|---:|---:|"]
    for name in ("sites", "band_gap_ev", "formation_energy_ev_per_atom"):
        shown = " | ".join(f"{n:.2f}" for n in numbers[name].values())
        rows.append(f"| {QUANTITIES[name]} | {shown} |")
    counts = (
        f"{len(data.crystals):,} crystals on {len(np.unique(data.skeleton)):,} skeletons, "
        f"{len(data):,} episodes, {len(data.actions):,} transitions."
    )
    head = _FRONT_MATTER.format(
        license=card.license, name=card.dataset_id, size=_size_category(len(data.actions))
    )
    return head + _BODY.format(
        name=card.dataset_id,
        description=card.description,
        algorithm=card.algorithm_name,
        counts=counts,
        table="\n".join(rows),
        target=stored_target_ev,
        licence_text=_LICENCES.get(card.license, card.license),
    )


def _size_category(count: int) -> str:
    """Return the hub's name for a number of rows."""
    limits = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"))
    for limit, name in (*limits, (1_000_000, "100K<n<1M"), (10_000_000, "1M<n<10M")):
        if count < limit:
            return name
    return "n>10M"


def group_card_text(group: str, descriptions: Mapping[str, Any]) -> str:
    """Return the card of a repository that holds the datasets of one Minari group.

    Args:
        group: The first part of their ids.
        descriptions: Of each dataset, by its id.

    Returns:
        Text of a README.md.
    """
    lines = "\n".join(
        f"- [`{name}`]({name.removeprefix(group + '/')}/README.md): {text}"
        for name, text in sorted(descriptions.items())
    )
    return (
        "---\ntask_categories:\n- reinforcement-learning\ntags:\n- minari\n- crystal-gym\n---\n\n"
        f"# {group}\n\nMinari datasets of crystal_gym's `CrystalFill-v0`; each has a card of its "
        f"own, with its licence.\n\n{lines}\n"
    )
