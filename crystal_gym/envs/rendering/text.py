"""The crystal so far as text, for a terminal or a log, and the words that pictures share."""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from crystal_gym.elements import ELEMENTS, EMPTY, reduced_formula, tokens_to_symbols
from crystal_gym.envs.state import State, is_terminal
from crystal_gym.oracles.base import Properties
from crystal_gym.skeletons import Skeleton

__all__ = ["Outcome", "cell_line", "news_line", "progress_words", "render_ansi", "target_words"]

_PER_LINE = 24
"""Sites in a line of the row of sites."""


class Outcome(NamedTuple):
    """What came of a finished crystal.

    Attributes:
        reward: Of the last step.
        status: ``"ok"``, or why the reward does not come from properties.
        properties: What the oracle answered.
    """

    reward: float
    status: str
    properties: Properties


def render_ansi(state: State, outcome: Outcome | None = None) -> str:
    """Return the state as text: the cell, and the sites in the order of filling.

    Args:
        state: What is shown.
        outcome: Of a crystal that is finished; None where it is not known.

    Returns:
        Lines without a newline after the last.
    """
    skeleton = state.skeleton
    symbols = tokens_to_symbols(state.tokens.tolist())
    lines = [
        f"{reduced_formula(state.tokens)}   {progress_words(state)}, {target_words(state)}",
        f"{skeleton.name}   {cell_line(skeleton)}",
        *_row(state, symbols),
        "  site          x       y       z   bonded to",
    ]
    for site in state.traversal:
        x, y, z = skeleton.frac_coords[site]
        lines.append(
            f"{'>' if site == state.focus else ' '} {site:4d}  {symbols[site] or '·':2s}  "
            f"{x:7.4f} {y:7.4f} {z:7.4f}   {_bonded_to(skeleton, state.tokens, site)}"
        )
    if is_terminal(state):
        lines.append(news_line(state, outcome))
    return "\n".join(lines)


def progress_words(state: State) -> str:
    """Return such as ``3 of 5 sites filled``."""
    return f"{state.step} of {state.skeleton.n_sites} sites filled"


def target_words(state: State) -> str:
    """Return such as ``target gap 3 eV``."""
    return "no target" if state.target_gap is None else f"target gap {state.target_gap:g} eV"


def cell_line(skeleton: Skeleton) -> str:
    """Return lengths, angles and space group of the bare skeleton."""
    a, b, c, alpha, beta, gamma = skeleton.lattice_parameters
    return (
        f"a {a:.2f}  b {b:.2f}  c {c:.2f} Å   α {alpha:.0f}  β {beta:.0f}  γ {gamma:.0f}°   "
        f"space group {skeleton.space_group_number}"
    )


def news_line(state: State, outcome: Outcome | None = None) -> str:
    """Return which site comes next, or what came of the finished crystal."""
    if not is_terminal(state):
        bonded = _bonded_to(state.skeleton, state.tokens, state.focus)
        return f"next: site {state.focus}, bonded to {bonded}"
    if outcome is None:
        return "all sites are filled"
    known = outcome.properties
    words = [] if outcome.status == "ok" else [f"status: {outcome.status.replace('_', ' ')}"]
    if known.band_gap_ev is not None:
        words.append(f"gap {known.band_gap_ev:.2f} eV")
    if known.formation_energy_ev_per_atom is not None:
        words.append(f"formation energy {known.formation_energy_ev_per_atom:.2f} eV/atom")
    return "   ".join([*words, f"reward {outcome.reward:.3g}"])


def _row(state: State, symbols: list[str | None]) -> list[str]:
    cells = [
        "[?] " if site == state.focus else f" {symbols[site] or '·':2s} "
        for site in state.traversal
    ]
    return [
        "".join(cells[first : first + _PER_LINE]).rstrip()
        for first in range(0, len(cells), _PER_LINE)
    ]


def _bonded_to(skeleton: Skeleton, tokens: NDArray[np.integer], site: int) -> str:
    """Return such as ``2 Ti, 4 empty``: the ends of all bonds of a site."""
    ends = skeleton.edge_index[1][skeleton.edge_index[0] == site]
    counts = Counter(tokens[ends].tolist())
    n_empty = counts.pop(EMPTY, 0)
    words = [f"{counts[token]} {ELEMENTS[token - 1]}" for token in sorted(counts)]
    return ", ".join([*words, *([f"{n_empty} empty"] if n_empty else [])]) or "nothing"
