"""Crystals as balls and sticks: positions, colours and bonds for the viewer of a page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

__all__ = ["scene"]

_BORDER = 0.02
"""Atoms this close (fractional) to a face of the cell are drawn on the opposite face too."""

_BOND = 1.15
"""A bond is drawn up to this times the distance to the nearest neighbour of one of its atoms."""


def scene(
    lattice: ArrayLike, frac_coords: ArrayLike, symbols: Sequence[str], title: str
) -> dict[str, Any]:
    """Return what a viewer draws, JSON-ready, lengths in Å.

    Args:
        lattice: Row vectors in Å, ``(3, 3)``.
        frac_coords: ``(n_sites, 3)``.
        symbols: Element of every site.
        title: Shown above.
    """
    from ase.data import atomic_numbers, covalent_radii
    from ase.data.colors import jmol_colors

    matrix, inside = np.asarray(lattice, float), np.asarray(frac_coords, float) % 1.0
    shown = [
        (copy @ matrix, site)
        for site, position in enumerate(inside)
        for copy in _on_all_faces(position)
    ]
    points = np.array([point for point, _ in shown])
    elements = [symbols[site] for _, site in shown]
    numbers = [atomic_numbers[e] for e in elements]
    radii = covalent_radii[numbers]
    reach = _BOND * _nearest(matrix, inside)[[site for _, site in shown]]
    distance = np.linalg.norm(points[:, None] - points[None], axis=-1)
    near = (distance < np.maximum(reach[:, None], reach[None])) & (distance > 0.1)
    bonds = [(i, j) for i, j in np.argwhere(near).tolist() if i < j]
    corners = np.array(np.meshgrid([0, 1], [0, 1], [0, 1], indexing="ij")).reshape(3, -1).T
    edges = [(a, b) for a in corners for b in corners if (b - a).sum() == 1 and (b >= a).all()]
    colors = {
        e: "#" + bytes((255 * jmol_colors[n]).astype(np.uint8)).hex()
        for e, n in zip(elements, numbers, strict=True)
    }
    return {
        "title": title,
        "atoms": [
            {
                "element": e,
                "position": np.round(p, 3).tolist(),
                "radius": round(0.45 * float(r), 3),
                "color": colors[e],
            }
            for e, p, r in zip(elements, points, radii, strict=True)
        ],
        "bonds": [
            [np.round(points[i], 3).tolist(), np.round(points[j], 3).tolist()] for i, j in bonds
        ],
        "cell": [
            [np.round(a @ matrix, 3).tolist(), np.round(b @ matrix, 3).tolist()] for a, b in edges
        ],
        "legend": [{"element": e, "color": colors[e]} for e in dict.fromkeys(symbols)],
    }


def _on_all_faces(position: np.ndarray) -> list[np.ndarray]:
    """Return a site and its copies on opposite faces of the cell."""
    copies = [position]
    for axis in range(3):
        for sign, near in ((1, position[axis] < _BORDER), (-1, position[axis] > 1 - _BORDER)):
            if near:
                copies += [c + sign * np.eye(3)[axis] for c in copies]
    return copies


def _nearest(lattice: np.ndarray, frac_coords: np.ndarray) -> np.ndarray:
    """Return the distance (Å) of every site to its nearest neighbour, itself repeated included."""
    images = np.array(np.meshgrid(*[[-1, 0, 1]] * 3)).reshape(3, -1).T
    offset = frac_coords[:, None, None] - frac_coords[None, :, None] + images
    distance = np.linalg.norm(offset @ lattice, axis=-1)
    distance[distance < 0.1] = np.inf
    nearest: np.ndarray = distance.min(axis=(1, 2))
    return nearest
