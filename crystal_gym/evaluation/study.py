"""All measures of designs, as statistics that one bootstrap over crystals serves.

A *design* is what one method makes of all skeletons of a task, aiming at one target gap or at none.
Measures are in three groups: of a design alone, of a design at a target (also where it was made
without one), and of a method's designs for several targets.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from crystal_gym.datasets.trajectories import Trajectories
from crystal_gym.evaluation.intervals import Statistic, earth_movers, mean_ratio, ratio
from crystal_gym.evaluation.metrics import (
    class_hits,
    compositions,
    differing_sites,
    distinct_fillings,
    element_hits,
    formulas,
    matches,
    novel,
    site_hits,
    valid,
)
from crystal_gym.evaluation.properties import (
    METAL_BELOW_EV,
    PropertyColumns,
    hits_by_formula,
    in_range,
)
from crystal_gym.evaluation.rollout import Task

__all__ = [
    "TOP_K",
    "Design",
    "Judge",
    "hit_matrix",
    "rare_gap",
    "statistics_at_target",
    "statistics_of_design",
    "statistics_over_targets",
]

TOP_K = (1, 3, 5)


def rare_gap(training: Trajectories) -> float:
    """Return the gap (eV) that one in twenty training crystals is above, kappa's bound."""
    return float(np.percentile(training.band_gap_ev[training.crystals], 95))


@dataclass(frozen=True, eq=False)
class Judge:
    """What designs are judged by.

    Attributes:
        task: The skeletons, each once, with their source crystals.
        known: Reduced formulas of the training crystals.
        band_gap_ev: DFT gaps of the source crystals, ``(B,)``, NaN where unknown.
        formation_energy_ev_per_atom: The same of formation energies.
        rare_gap_ev: Gap above which a crystal is out of the training distribution
            (:func:`rare_gap`).
    """

    task: Task
    known: set[str]
    band_gap_ev: NDArray[np.float64]
    formation_energy_ev_per_atom: NDArray[np.float64]
    rare_gap_ev: float

    def __len__(self) -> int:
        return len(self.task)

    @cached_property
    def new_formula(self) -> NDArray[np.bool_]:
        """Which source crystals have a formula that no training crystal has, ``(B,)``."""
        return novel(self.task.reference, self.known)

    @classmethod
    def of(cls, training: Trajectories, task: Task, judging: Trajectories) -> Judge:
        """Return the judge of a split.

        Args:
            training: Episodes of the crystals that are learned from.
            task: Skeletons to fill, of those of ``judging``.
            judging: Episodes of the crystals that judge.

        Returns:
            With the formulas and gaps of the training crystals.
        """
        gaps, energies = np.full((2, len(task)), np.nan)
        row_of = {number: row for row, number in enumerate(task.skeleton.tolist())}
        rows = np.array([row_of.get(number, -1) for number in judging.skeleton.tolist()])
        episodes = np.flatnonzero(rows >= 0)
        same = (judging.finished[episodes] == task.reference[rows[episodes]]).all(axis=1)
        episodes = episodes[same]
        gaps[rows[episodes]] = judging.band_gap_ev[episodes]
        energies[rows[episodes]] = judging.formation_energy_ev_per_atom[episodes]
        known = compositions(training.finished[training.crystals])
        return cls(task, known, gaps, energies, rare_gap(training))


@dataclass(frozen=True, eq=False)
class Design:
    """What a method made of the skeletons.

    Attributes:
        tokens: Finished fillings, int16 ``(B, max_sites)``.
        top_k: Sites with the source element among the method's 1, 3 and 5 best, ``(B, 3)``; None
            where it has no values.
        properties: What the oracle says of the fillings.
    """

    tokens: NDArray[np.int16]
    top_k: NDArray[np.int64] | None
    properties: PropertyColumns

    @cached_property
    def formula(self) -> NDArray[np.str_]:
        """Reduced formulas, ``(B,)``."""
        return formulas(self.tokens)

    @cached_property
    def valid(self) -> NDArray[np.bool_]:
        """Which pass SMACT with ``smact14``, ``(B,)``."""
        return valid(self.tokens)


def statistics_of_design(design: Design, judge: Judge) -> dict[str, Statistic]:
    """Return the measures that need no target, by name; docs/evaluation.md defines each."""
    task, tokens, found = judge.task, design.tokens, design.properties
    n_sites, new = task.n_sites, judge.new_formula
    hits = site_hits(tokens, task.reference)
    everything = np.ones(len(task), dtype=np.bool_)
    named = {
        "accuracy": ratio(hits, n_sites),
        "similarity": ratio(class_hits(tokens, task.reference), n_sites),
        "exact_match": ratio(matches(tokens, task)),
        "macro_accuracy": mean_ratio(*element_hits(tokens, task.reference)),
        "accuracy_new_formula": ratio(hits * new, n_sites * new),
        "validity_smact14": ratio(design.valid),
        "validity_icsd24": ratio(valid(tokens, "icsd24")),
        "novelty": ratio(_unknown(design, judge)),
        "uniqueness": ratio(hits_by_formula(everything, design.formula)),
        "success": ratio(found.has_gap),
        "mean_gap_ev": _mean(found.band_gap_ev),
        "mean_formation_energy_ev_per_atom": _mean(found.formation_energy_ev_per_atom),
        "emd_gap_ev": earth_movers(found.band_gap_ev, judge.band_gap_ev),
        "emd_formation_energy_ev_per_atom": earth_movers(
            found.formation_energy_ev_per_atom, judge.formation_energy_ev_per_atom
        ),
        "metals": ratio(found.has_gap & _below(found.band_gap_ev, METAL_BELOW_EV), found.has_gap),
        "unlike_training": ratio(found.unlike_training),
        "kappa": ratio(found.has_gap & ~_below(found.band_gap_ev, judge.rare_gap_ev)),
    }
    for column, k in enumerate(TOP_K):
        if design.top_k is not None:
            named[f"top_{k}_accuracy"] = ratio(design.top_k[:, column], n_sites)
    return named


def statistics_at_target(design: Design, judge: Judge, target_gap: float) -> dict[str, Statistic]:
    """Return the measures of a design at a target, by name."""
    found = design.properties
    hits = in_range(found, target_gap)
    joint = hits & design.valid & _unknown(design, judge)
    return {
        "nu": ratio(hits),
        "gap_error_ev": _mean(np.abs(found.band_gap_ev - target_gap)),
        "valid_unique_novel_in_range": ratio(hits_by_formula(joint, design.formula)),
    }


def statistics_over_targets(designs: Mapping[float, Design], judge: Judge) -> dict[str, Statistic]:
    """Return the measures of one method's designs for two or more targets, by name.

    Args:
        designs: By target, eV.
        judge: Of the same task.

    Returns:
        Functions of weights ``(B,)`` of the crystals, by name of the measure.
    """
    fillings = [design.tokens for design in designs.values()]
    hits = _hits(designs, tuple(designs))  # aimed at, range, crystal
    own = hits[np.arange(len(hits)), np.arange(len(hits))]
    elsewhere = (hits.sum(axis=0) - own) / (len(hits) - 1)
    return {
        "distinct_fillings": ratio(distinct_fillings(fillings, judge.task)),
        "differing_sites": ratio(differing_sites(fillings), judge.task.n_sites),
        "steering": ratio((own - elsewhere).mean(axis=0)),
    }


def hit_matrix(designs: Mapping[float, Design], targets: Sequence[float]) -> NDArray[np.float64]:
    """Return the share of designs aimed at one target (row) that hit the range of one (column)."""
    return _hits(designs, targets).mean(axis=2)


def _hits(designs: Mapping[float, Design], targets: Sequence[float]) -> NDArray[np.float64]:
    return np.array(
        [[in_range(design.properties, t) for t in targets] for design in designs.values()],
        dtype=np.float64,
    )


def _unknown(design: Design, judge: Judge) -> NDArray[np.bool_]:
    return np.array([f not in judge.known for f in design.formula.tolist()], dtype=np.bool_)


def _mean(column: NDArray[np.float64]) -> Statistic:
    """Return the mean of what is known."""
    known = np.isfinite(column)
    return ratio(np.where(known, column, 0.0), known)


def _below(column: NDArray[np.float64], bound: float) -> NDArray[np.bool_]:
    return np.where(np.isfinite(column), column, np.inf) <= bound
