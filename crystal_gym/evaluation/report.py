"""Measures of several policies side by side, as a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from crystal_gym.evaluation.metrics import accuracy, exact_match, novelty, similarity, validity
from crystal_gym.evaluation.rollout import Policy, Task, rollout

__all__ = ["Scores", "evaluate", "markdown_table", "score", "text_table"]


@dataclass(frozen=True)
class Scores:
    """Measures of one policy, shares between 0 and 1.

    Attributes:
        accuracy: Sites with the source crystal's element.
        similarity: Sites with an element of its class.
        validity: Crystals that pass SMACT (smact14).
        novelty: Crystals whose formula is not in the training data.
        exact_match: Crystals equal to their source up to symmetry.
    """

    accuracy: float
    similarity: float
    validity: float
    novelty: float
    exact_match: float


def score(tokens: NDArray[np.int16], task: Task, known: set[str]) -> Scores:
    """Return the measures of filled skeletons.

    Args:
        tokens: Of the fillings, int16 ``(B, max_sites)``, 0 beyond a skeleton's sites.
        task: The skeletons, with their source crystals.
        known: Reduced formulas of the training crystals.

    Returns:
        Shares from 0 to 1.
    """
    reference = task.reference
    return Scores(
        accuracy=accuracy(tokens, reference),
        similarity=similarity(tokens, reference),
        validity=validity(tokens),
        novelty=novelty(tokens, known),
        exact_match=exact_match(tokens, task),
    )


def evaluate(
    policies: Mapping[str, Policy],
    task: Task,
    known: set[str],
    target_gap: float | None,
    *,
    progress: bool = False,
) -> dict[str, Scores]:
    """Return the measures of each policy's greedy fillings of a task.

    Args:
        policies: By the name they get in the answer.
        task: The skeletons, with their source crystals.
        known: Reduced formulas of the training crystals.
        target_gap: eV, None for policies without a target.
        progress: Show a progress bar on standard error.

    Returns:
        Measures by name of the policy.
    """
    return {
        name: score(rollout(policy, task, target_gap, progress=progress), task, known)
        for name, policy in policies.items()
    }


def text_table(scores: Mapping[str, Scores]) -> str:
    """Return the measures in per cent as a Markdown table that also reads well as plain text."""
    names = [f.name.replace("_", " ") for f in fields(Scores)]
    rows = [["policy", *names]]
    for policy, values in scores.items():
        rows.append([policy, *(f"{100 * getattr(values, f.name):.1f}" for f in fields(Scores))])
    return markdown_table(rows)


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """Return rows as an aligned Markdown table; the first is the header."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    aligned = [
        "| "
        + " | ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        + " |"
        for row in rows
    ]
    rule = (
        "|"
        + "|".join(
            ("-" * (width + 2)) if i == 0 else ("-" * (width + 1) + ":")
            for i, width in enumerate(widths)
        )
        + "|"
    )
    return "\n".join([aligned[0], rule, *aligned[1:]])
