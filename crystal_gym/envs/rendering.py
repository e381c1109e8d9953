"""Pictures of a state. ``ansi`` is plain text for a terminal or a log."""

from __future__ import annotations

from crystal_gym.elements import reduced_formula, tokens_to_symbols
from crystal_gym.envs.state import State, is_terminal

__all__ = ["render_ansi"]


def render_ansi(state: State) -> str:
    """Return a few lines: the cell, then one line a site in the order of filling."""
    skeleton = state.skeleton
    a, b, c, alpha, beta, gamma = skeleton.lattice_parameters
    target = "no target" if state.target_gap is None else f"target gap {state.target_gap:g} eV"
    lines = [
        f"{skeleton.name}  {reduced_formula(state.tokens)}  "
        f"{state.step}/{skeleton.n_sites} sites filled, {target}",
        f"a {a:.3f}  b {b:.3f}  c {c:.3f} Å   alpha {alpha:.1f}  beta {beta:.1f}  "
        f"gamma {gamma:.1f}°   space group {skeleton.space_group_number}",
    ]
    symbols = tokens_to_symbols(state.tokens.tolist())
    for step, site in enumerate(state.traversal):
        x, y, z = skeleton.frac_coords[site]
        marker = ">" if step == state.step and not is_terminal(state) else " "
        near = len(skeleton.neighbours[site])
        lines.append(
            f"{marker} {site:3d}  {symbols[site] or '·':2s}  {x:7.4f} {y:7.4f} {z:7.4f}  "
            f"{near} neighbouring site{'' if near == 1 else 's'}"
        )
    return "\n".join(lines)
