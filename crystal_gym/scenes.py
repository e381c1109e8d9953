"""Crystals as balls and sticks: what a picture or a viewer draws, whatever draws it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["GHOST_COLOR", "Scene", "element_color", "element_radius", "lay_out"]

GHOST_COLOR = "#b8b8b8"
"""Of an empty site."""

_GHOST_RADIUS = 0.45
"""Å."""

_RADIUS_SHARE = 0.45
"""Of the covalent radius, so that bonds between balls are seen."""

_BORDER = 0.02
"""Atoms this close (fractional) to a face of the cell are drawn on the opposite face too."""

_BOND = 1.15
"""A bond is drawn up to this times the distance to the nearest neighbour of one of its atoms."""


@dataclass(frozen=True, eq=False)
class Scene:
    """Where balls and sticks are; nothing here depends on the elements.

    Attributes:
        points: Centres of the balls in Å, ``(n_balls, 3)``: every site, and its copies on opposite
            faces of the cell.
        site: Site of every ball, ``(n_balls,)``.
        bonds: Numbers of the two balls of every stick, ``(n_bonds, 2)``.
        cell: Both ends of the twelve edges of the unit cell in Å, ``(12, 2, 3)``.
    """

    points: NDArray[np.float64]
    site: NDArray[np.int64]
    bonds: NDArray[np.int64]
    cell: NDArray[np.float64]


def lay_out(
    lattice: ArrayLike,
    frac_coords: ArrayLike,
    edges: tuple[ArrayLike, ArrayLike] | None = None,
) -> Scene:
    """Return the scene of a cell.

    Args:
        lattice: Row vectors in Å, ``(3, 3)``.
        frac_coords: ``(n_sites, 3)``.
        edges: ``edge_index`` ``(2, n_edges)`` and ``edge_image`` ``(n_edges, 3)`` of a graph whose
            bonds are drawn; without one, bonds are judged by distance.

    Returns:
        Balls of all sites, moved into the cell, and of their copies on its faces, with sticks and
        the edges of the cell.
    """
    matrix, places = np.asarray(lattice, float), np.asarray(frac_coords, float)
    inside = places % 1.0
    found = [
        (site, copy) for site, place in enumerate(inside) for copy in _on_all_faces(place.tolist())
    ]
    site = np.array([s for s, _ in found], dtype=np.int64)
    shift = np.array([s for _, s in found], dtype=np.int64)
    points = (inside[site] + shift) @ matrix
    if edges is None:
        bonds = _near(matrix, inside, points, site)
    else:
        wrapped = np.rint(inside - places).astype(np.int64)
        bonds = _of_graph(site, shift, np.asarray(edges[0]), np.asarray(edges[1]), wrapped)
    corners = np.array(np.meshgrid([0, 1], [0, 1], [0, 1], indexing="ij")).reshape(3, -1).T
    cell = [(a, b) for a in corners for b in corners if (b - a).sum() == 1 and (b >= a).all()]
    return Scene(points, site, bonds, np.array(cell, dtype=np.float64) @ matrix)


def element_color(symbol: str | None) -> str:
    """Return Jmol's colour of an element as ``#rrggbb``; that of an empty site for None."""
    from ase.data import atomic_numbers
    from ase.data.colors import jmol_colors

    if symbol is None:
        return GHOST_COLOR
    return "#" + bytes((255 * jmol_colors[atomic_numbers[symbol]]).astype(np.uint8)).hex()


def element_radius(symbol: str | None) -> float:
    """Return the radius of a ball in Å."""
    from ase.data import atomic_numbers, covalent_radii

    if symbol is None:
        return _GHOST_RADIUS
    return _RADIUS_SHARE * float(covalent_radii[atomic_numbers[symbol]])


def _on_all_faces(place: list[float]) -> list[list[int]]:
    """Return by how many cells a site and its copies on opposite faces are shifted."""
    shifts = [[0, 0, 0]]
    for axis in range(3):
        for sign, near in ((1, place[axis] < _BORDER), (-1, place[axis] > 1 - _BORDER)):
            if near:
                shifts += [[*s[:axis], s[axis] + sign, *s[axis + 1 :]] for s in shifts]
    return shifts


def _near(
    lattice: NDArray[np.float64],
    inside: NDArray[np.float64],
    points: NDArray[np.float64],
    site: NDArray[np.int64],
) -> NDArray[np.int64]:
    """Return the pairs of balls that are about as near as nearest neighbours."""
    images = np.array(np.meshgrid(*[[-1, 0, 1]] * 3)).reshape(3, -1).T
    offset = inside[:, None, None] - inside[None, :, None] + images
    away = np.linalg.norm(offset @ lattice, axis=-1)
    away[away < 0.1] = np.inf
    reach = _BOND * away.min(axis=(1, 2))[site]
    distance = np.linalg.norm(points[:, None] - points[None], axis=-1)
    near = (distance < np.maximum(reach[:, None], reach[None])) & (distance > 0.1)
    return np.argwhere(np.triu(near))


def _of_graph(
    site: NDArray[np.int64],
    shift: NDArray[np.int64],
    edge_index: NDArray[np.integer],
    edge_image: NDArray[np.integer],
    wrapped: NDArray[np.int64],
) -> NDArray[np.int64]:
    """Return the pairs of balls that an edge of the graph joins."""
    places = zip(site.tolist(), shift.tolist(), strict=True)
    ball = {(one, *move): number for number, (one, move) in enumerate(places)}
    balls_of: dict[int, list[int]] = {}
    for number, one in enumerate(site.tolist()):
        balls_of.setdefault(one, []).append(number)
    source, target = edge_index.astype(np.int64)
    # Images count from the coordinates as given, shifts from those inside the cell.
    image = edge_image + wrapped[source] - wrapped[target]
    bonds = set()
    for a, b, step in zip(source.tolist(), target.tolist(), image.tolist(), strict=True):
        for first in balls_of[a]:
            second = ball.get((b, *(shift[first] + step).tolist()))
            if second is not None:
                bonds.add((min(first, second), max(first, second)))
    return np.array(sorted(bonds), dtype=np.int64).reshape(-1, 2)
