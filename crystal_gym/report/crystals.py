"""Crystals for the viewer of a page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from crystal_gym.scenes import element_color, element_radius, lay_out

__all__ = ["scene"]


def scene(
    lattice: ArrayLike, frac_coords: ArrayLike, symbols: Sequence[str | None], title: str
) -> dict[str, Any]:
    """Return what a viewer draws, JSON-ready, lengths in Å.

    Args:
        lattice: Row vectors in Å, ``(3, 3)``.
        frac_coords: ``(n_sites, 3)``.
        symbols: Element of every site, None where it is empty.
        title: Shown above.

    Returns:
        ``title``; ``atoms`` (``element``, ``position``, ``radius``, ``color``), those on the cell's
        faces with their copies; ``bonds``, pairs of points; ``cell``, its twelve edges; ``legend``.
    """
    drawn = lay_out(lattice, frac_coords)
    points = np.round(drawn.points, 3).tolist()
    return {
        "title": title,
        "atoms": [
            {
                "element": symbols[site] or "empty",
                "position": point,
                "radius": round(element_radius(symbols[site]), 3),
                "color": element_color(symbols[site]),
            }
            for point, site in zip(points, drawn.site.tolist(), strict=True)
        ],
        "bonds": [[points[i], points[j]] for i, j in drawn.bonds.tolist()],
        "cell": np.round(drawn.cell, 3).tolist(),
        "legend": [
            {"element": symbol or "empty", "color": element_color(symbol)}
            for symbol in dict.fromkeys(symbols)
        ],
    }
