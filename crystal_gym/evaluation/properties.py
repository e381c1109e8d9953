"""Measures of what an oracle says of designs: gaps, energies, and whether it says anything.

A design without an answer is a miss wherever hits are counted, and has no part in means, which are
those of the designs that have one; how many these are is a measure of its own. No number here says
whether an oracle is DFT or a surrogate: who prints one has to (:func:`oracle_label`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from crystal_gym.elements import EMPTY
from crystal_gym.evaluation.rollout import Task
from crystal_gym.oracles import Filling, FillingOracle, Oracle, Properties, Status, TableOracle

__all__ = [
    "IN_RANGE_EV",
    "METAL_BELOW_EV",
    "PropertyColumns",
    "evaluate_designs",
    "hits_by_formula",
    "in_range",
    "oracle_label",
]

IN_RANGE_EV = 0.25
"""Half the width of the range around a target that nu counts (Govindarajan et al. 2024)."""

METAL_BELOW_EV = 1e-6
"""A Kohn-Sham gap below this is none: labels of metals are 0 up to the digits of pw.x."""

_BATCH = 256

Bools = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class PropertyColumns:
    """What an oracle says of ``B`` designs.

    Attributes:
        status: Values of :class:`crystal_gym.oracles.Status`, str ``(B,)``.
        band_gap_ev: float64 ``(B,)``, NaN where there is none.
        formation_energy_ev_per_atom: float64 ``(B,)``, NaN where there is none.
        unlike_training: Which designs a surrogate calls unlike its training data, bool ``(B,)``;
            none for other oracles.
    """

    status: NDArray[np.str_]
    band_gap_ev: NDArray[np.float64]
    formation_energy_ev_per_atom: NDArray[np.float64]
    unlike_training: Bools

    def __len__(self) -> int:
        return len(self.status)

    @property
    def has_gap(self) -> Bools:
        """Which calculations ended well with a gap, ``(B,)``; their share is the DFT success."""
        return np.isfinite(self.band_gap_ev)

    @property
    def has_energy(self) -> Bools:
        """Which designs have a formation energy, ``(B,)``."""
        return np.isfinite(self.formation_energy_ev_per_atom)

    @classmethod
    def of(cls, found: Sequence[Properties]) -> PropertyColumns:
        """Return answers as columns; those with another status than ``ok`` have no numbers."""

        def column(name: str) -> NDArray[np.float64]:
            values = [getattr(p, name) if p.status == Status.OK else None for p in found]
            return np.array([np.nan if v is None else v for v in values], dtype=np.float64)

        return cls(
            status=np.array([str(p.status) for p in found], dtype=np.str_),
            band_gap_ev=column("band_gap_ev"),
            formation_energy_ev_per_atom=column("formation_energy_ev_per_atom"),
            unlike_training=np.array(
                [bool(p.details.get("unlike_training", False)) for p in found], dtype=np.bool_
            ),
        )


def evaluate_designs(
    oracle: Oracle, tokens: NDArray[np.integer], task: Task, *, progress: bool = False
) -> PropertyColumns:
    """Return what an oracle says of filled skeletons; equal designs are asked for once.

    Args:
        oracle: Of fillings where it can, else of structures.
        tokens: Finished fillings of the task, ``(B, max_sites)``.
        task: The skeletons.
        progress: Show a progress bar on standard error.

    Returns:
        One row a design, ``(B,)``.

    Raises:
        ValueError: If a design has an empty site.
        TypeError: If the oracle answers with something else than one Properties for each.
    """
    asked: dict[tuple[str, bytes], int] = {}
    fillings: list[Filling] = []
    answer = np.empty(len(task), dtype=np.int64)
    for row, number in enumerate(task.skeleton.tolist()):
        skeleton = task.skeletons[number]
        mine = np.asarray(tokens[row, : skeleton.n_sites], dtype=np.int16)
        if (mine == EMPTY).any():
            raise ValueError(f"design {row} of {skeleton.name} has an empty site: expected none")
        key = skeleton.key, skeleton.canonical_tokens(mine)
        if key not in asked:
            asked[key] = len(fillings)
            fillings.append(Filling(skeleton, mine))
        answer[row] = asked[key]
    found: list[Properties] = []
    with tqdm(total=len(fillings), desc="oracle", unit="crystal", disable=not progress) as bar:
        for first in range(0, len(fillings), _BATCH):
            found.extend(_answers(oracle, fillings[first : first + _BATCH]))
            bar.update(len(found) - bar.n)
    return PropertyColumns.of([found[i] for i in answer.tolist()])


def _answers(oracle: Oracle, fillings: Sequence[Filling]) -> list[Properties]:
    if isinstance(oracle, FillingOracle):
        found = oracle.evaluate_fillings(fillings)
    else:
        found = oracle.evaluate([f.skeleton.structure(f.tokens) for f in fillings])
    if len(found) != len(fillings) or not all(isinstance(p, Properties) for p in found):
        raise TypeError(
            f"the oracle {type(oracle).__name__} gave {len(found)} answers to {len(fillings)} "
            "crystals: expected one crystal_gym.oracles.Properties for each"
        )
    return found


def in_range(columns: PropertyColumns, target_gap: float, width: float = IN_RANGE_EV) -> Bools:
    """Return which designs have a gap within ``width`` of a target (eV), ``(B,)``; no gap, no hit.

    Their share is nu.
    """
    known = columns.has_gap
    distance = np.abs(np.where(known, columns.band_gap_ev, np.inf) - target_gap)
    return known & (distance <= width)


def hits_by_formula(hits: Bools, formula: NDArray[np.str_]) -> NDArray[np.float64]:
    """Return the share of each hit in its formula, ``(B,)``: what sums to the different ones.

    Of ``m`` hits with one formula each counts ``1 / m``, so a sum over crystals is the number of
    different formulas, whatever the crystals' order.

    Args:
        hits: Which crystals count, ``(B,)``.
        formula: Reduced formula of each, ``(B,)``.

    Returns:
        From 0 to 1; 0 where it is no hit.
    """
    shares = np.zeros(len(hits))
    _, group, sizes = np.unique(formula[hits], return_inverse=True, return_counts=True)
    shares[hits] = 1.0 / sizes[group]
    return shares


def oracle_label(oracle: Any) -> str:
    """Return what a header has to say of an oracle: surrogate, DFT table, DFT, or the user's."""
    # A cache and a chain are where their oracles' answers come from.
    inside = getattr(oracle, "oracles", None) or (getattr(oracle, "oracle", None),)
    if inside[0] is not None:
        return ", else ".join(dict.fromkeys(map(oracle_label, inside)))
    if isinstance(oracle, TableOracle):
        return "DFT table, what is not in it counts as failed"
    name = type(oracle).__name__
    if name == "EspressoOracle":
        return "DFT"
    return "surrogate, not DFT" if "Surrogate" in name else f"{name}, not known to be DFT"
