#!/usr/bin/env python3
"""Draw the pictures of docs/concepts.md: each once for light and once for dark pages.

Examples::

    python scripts/draw_pictures.py docs/pictures
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import gymnasium as gym
import matplotlib as mpl
import numpy as np
from ase.data import atomic_numbers
from ase.data.colors import jmol_colors
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle, Rectangle

import crystal_gym  # noqa: F401  (registers CrystalFill-v0)
from crystal_gym.elements import tokens_to_symbols
from crystal_gym.envs.state import State
from crystal_gym.oracles import Properties
from crystal_gym.rewards import FormationReward
from crystal_gym.sets import load_skeletons


@dataclass(frozen=True)
class Theme:
    """Colours of a page; the backgrounds are those of the site, or of GitHub."""

    back: str
    ink: str
    faint: str
    accent: str
    lines: tuple[str, ...]


THEMES = {
    "": Theme("#ffffff", "#1b2430", "#8a94a3", "#c2410c", ("#0b62a8", "#9a4a00", "#1a7f4b")),
    "-dark": Theme("#131416", "#e6eaf0", "#7d8794", "#fb923c", ("#7cc0f5", "#f0a860", "#67d391")),
}

PEROVSKITE = "SrTiO3-perovskite"

# A view from the front, a little from the right and from above.
_VIEW = np.array([[1.0, 0.0], [0.36, 0.26], [0.0, 1.0]])
_DEPTH = np.array([0.0, 1.0, 0.0])


def filled(start: int, tokens: list[int]) -> State:
    """Return the state after some steps of an episode on the perovskite skeleton."""
    env = gym.make("CrystalFill-v0", target_gap=3.0).unwrapped
    env.reset(seed=0, options={"skeleton": PEROVSKITE, "start_site": start})
    for token in tokens:
        env.step(token - 1)
    return env.state


def draw_cell(axes: Axes, state: State, theme: Theme, *, focus: bool, numbers: bool) -> None:
    """Draw a cubic cell with every image of its sites on the faces, bonds and the focus."""
    skeleton, tokens = state.skeleton, state.tokens
    length = skeleton.lattice_parameters[0]
    corners = np.array(list(product((0, 1), repeat=3)))
    for first, second in product(corners, corners):
        if (second - first).sum() == 1 and (second >= first).all():
            ends = np.array([first, second]) @ _VIEW
            axes.plot(*ends.T, color=theme.faint, lw=0.8, zorder=0, alpha=0.7)
    images = [
        (site, position)
        for site in range(skeleton.n_sites)
        for position in np.mod(skeleton.frac_coords[site], 1) + corners
        if (position < 1 + 1e-6).all()
    ]
    # The shortest bonds (metal and anion in the middle) are enough for the eye.
    shortest = skeleton.edge_length.min() / length
    for one, (_, here) in enumerate(images):
        for _, there in images[one + 1 :]:
            if np.linalg.norm(there - here) < shortest + 1e-3:
                axes.plot(*(np.array([here, there]) @ _VIEW).T, color=theme.faint, lw=1.6, zorder=1)
    current = state.traversal[state.step] if focus and state.step < skeleton.n_sites else None
    symbols = tokens_to_symbols(tokens.tolist())
    order = {int(site): step + 1 for step, site in enumerate(state.traversal)}
    for site, position in images:
        x, y = position @ _VIEW
        z = 2 + float(1 - position @ _DEPTH)
        symbol = symbols[site]
        known = symbol is not None
        colour = tuple(jmol_colors[atomic_numbers[symbol]]) if known else theme.back
        radius = 0.105 if known else 0.085
        axes.add_patch(
            Circle((x, y), radius, facecolor=colour, zorder=z, lw=1.1,
                   edgecolor=theme.ink if known else theme.faint,
                   linestyle="-" if known else (0, (2, 1.5)))
        )  # fmt: skip
        if site == current:
            axes.add_patch(
                Circle((x, y), 0.135, fill=False, edgecolor=theme.accent, lw=2.2, zorder=z)
            )
        text = symbol if known else str(order[site]) if numbers else ""
        if text:
            ink = _ink_on(colour) if known else theme.ink
            axes.text(x, y, text, ha="center", va="center", fontsize=8, color=ink, zorder=z + 0.1)
    axes.set_xlim(-0.2, 1.56)
    axes.set_ylim(-0.18, 1.44)
    axes.set_aspect("equal")
    axes.axis("off")


def _ink_on(colour: tuple[float, ...]) -> str:
    """Return black or white, whichever is read more easily on a colour."""
    return "#ffffff" if np.dot(colour, (0.3, 0.59, 0.11)) < 0.5 else "#111111"


def figure(theme: Theme, columns: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    """Return an empty figure and its axes, in a row."""
    made = Figure(figsize=(width, height), facecolor=theme.back, layout="constrained")
    found = made.subplots(1, columns, squeeze=False)[0]
    for axes in found:
        axes.set_facecolor(theme.back)
    return made, list(found)


def skeleton_picture(theme: Theme) -> Figure:
    """A crystal, and what is left of it without its elements."""
    made, axes = figure(theme, 2, 6.0, 2.9)
    state = filled(0, [])
    crystal = State(
        state.skeleton, state.traversal, state.skeleton.reference, state.skeleton.n_sites, None
    )
    draw_cell(axes[0], crystal, theme, focus=False, numbers=False)
    draw_cell(axes[1], state, theme, focus=False, numbers=False)
    for part, title in zip(axes, ("a crystal: SrTiO$_3$", "its skeleton"), strict=True):
        part.set_title(title, color=theme.ink, fontsize=11)
    return made


def episode_picture(theme: Theme) -> Figure:
    """An episode: the numbers are the order, the ring is the focus."""
    crystal = filled(0, []).skeleton.reference
    start = tokens_to_symbols(crystal.tolist()).index("Ti")
    placed = [int(crystal[site]) for site in filled(start, []).traversal]
    steps = (0, 3, 5)
    made, axes = figure(theme, len(steps), 7.4, 2.75)
    for part, step in zip(axes, steps, strict=True):
        draw_cell(part, filled(start, placed[:step]), theme, focus=True, numbers=True)
        title = {0: "reset()", 5: "terminated: the reward"}.get(step, f"after {step} steps")
        part.set_title(title, color=theme.ink, fontsize=10.5)
    return made


def leak_picture(theme: Theme) -> Figure:
    """Sites of some crystals in the order of a file and in ours; a colour is an element."""
    skeletons = load_skeletons("mini")
    large = [i for i in range(len(skeletons)) if skeletons[i].n_sites >= 5]
    chosen = large[:: len(large) // 14][:14]
    made, axes = figure(theme, 2, 6.0, 3.3)
    for part, title in zip(axes, ("order of the file", "order of crystal_gym"), strict=True):
        for row, number in enumerate(chosen):
            skeleton = skeletons[number]
            order = np.argsort(skeleton.source_rank) if part is axes[0] else np.arange(99)
            tokens = skeleton.reference[order[: skeleton.n_sites]].tolist()
            for column, symbol in enumerate(tokens_to_symbols(tokens)):
                part.add_patch(
                    Rectangle((column, -row), 0.9, 0.8, lw=0.6, edgecolor=theme.faint,
                              facecolor=(colour := tuple(jmol_colors[atomic_numbers[symbol]])))
                )  # fmt: skip
                part.text(column + 0.45, 0.38 - row, symbol, ha="center", va="center",
                          fontsize=6, color=_ink_on(colour))  # fmt: skip
        part.set_xlim(-0.2, 8.2)
        part.set_ylim(-len(chosen) + 0.8, 1.2)
        part.set_title(title, color=theme.ink, fontsize=11)
        part.axis("off")
    return made


def reward_picture(theme: Theme) -> Figure:
    """The reward of eqn (7) against the gap, for three targets."""
    made, (axes,) = figure(theme, 1, 5.6, 2.9)
    gaps = np.linspace(0, 8, 300)
    reward = FormationReward()
    for target, colour in zip((1.12, 3.0, 5.0), theme.lines, strict=True):
        values = [reward(Properties(None, -2.0, float(gap)), target) for gap in gaps]
        axes.plot(gaps, values, color=colour, lw=2)
        axes.text(target, 12, f"target {target:g} eV", color=colour, ha="center")
    axes.set_xlabel("band gap of the finished crystal (eV)", color=theme.ink)
    axes.set_ylabel("reward at -2 eV/atom", color=theme.ink)
    axes.tick_params(colors=theme.ink)
    for name, spine in axes.spines.items():
        spine.set_color(theme.faint)
        spine.set_visible(name in ("left", "bottom"))
    axes.set_ylim(0, 13)
    return made


PICTURES: dict[str, Callable[[Theme], Figure]] = {
    "skeleton": skeleton_picture,
    "episode": episode_picture,
    "leak": leak_picture,
    "reward": reward_picture,
}


def main() -> None:
    """Write every picture as an SVG file; the same picture is the same file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where the files go")
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context({"svg.hashsalt": "crystal_gym", "path.simplify_threshold": 0.2}):
        for name, draw in PICTURES.items():
            for suffix, theme in THEMES.items():
                path = folder / f"{name}{suffix}.svg"
                draw(theme).savefig(path, metadata={"Date": None, "Creator": None})
                print(path)


if __name__ == "__main__":
    main()
