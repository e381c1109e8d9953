"""Bonds of a crystal from the solid angles of its Voronoi polyhedra.

The bonds are those of CrystalNN (Zimmermann and Jain, RSC Advances 2020, 10, 6063,
doi:10.1039/C9RA07755C) in its purely geometric setting: no distance cutoffs, no electronegativity
weight and no adjustment for porosity, that is pymatgen's
``CrystalNN(distance_cutoffs=None, x_diff_weight=-1, porous_adjustment=False)``. Species play no
part in it. A facet of the polyhedron of a site is weighted by the solid angle it subtends there,
relative to the largest, to three decimals; each distinct weight is a candidate boundary of the
coordination shell; the likelihood of a shell is the area under the unit quarter circle between its
boundary and the next lower weight; the most likely shell holds the site's bonds.

pymatgen builds one Voronoi diagram per site, from all atoms within 7 Å of it. Here one diagram
serves all sites at once, from the atoms within a smaller distance of any of them, and a site's
polyhedron is accepted only if it is certainly the one pymatgen finds (`_accepted_sites`). The
other sites (open structures, vacuum, weights on a rounding boundary) are built one by one from
the atoms pymatgen takes.
"""

from __future__ import annotations

import math
from itertools import chain
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import QhullError, Voronoi

__all__ = ["crystal_nn_edges"]

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]

SEARCH_RADIUS = 7.0
"""Radius in Å within which CrystalNN gathers the atoms around a site."""

SHELL_SCALE = 2.0
"""First shell radius in units of the cube root of the volume per site."""

SQUARED_RADIUS_TOLERANCE = 1e-8
"""Slack in Å² with which pymatgen tells whether an atom is inside its search sphere."""

RADIUS_MARGIN = 1e-6
"""Slack in Å required between a polyhedron's circumradius and half the shell radius."""

CLOSURE_TOLERANCE = 1e-7
"""Largest deviation (sr) from 4π at which the facets of a polyhedron count as closed."""

WEIGHT_STEPS = 1000
"""Steps per unit of weight: CrystalNN rounds weights to three decimals."""

ROUNDING_MARGIN = 1e-5
"""Distance, in weight steps, from a rounding boundary within which noise could decide."""


class _PeriodicPoints(NamedTuple):
    """Atoms around some sites of the home cell, these sites themselves first.

    Attributes:
        coords: Cartesian coordinates in Å, shape (n_points, 3).
        site: Index of the site that each point is an image of, shape (n_points,).
        image: Lattice translation of each point, shape (n_points, 3).
    """

    coords: FloatArray
    site: IntArray
    image: IntArray


class _Facets(NamedTuple):
    """Facets of the Voronoi polyhedra of the first points of a diagram.

    Attributes:
        center: Point whose polyhedron the facet bounds, shape (n_facets,).
        neighbor: Point on the far side of the facet, shape (n_facets,).
        solid_angle: Solid angle in sr that the facet subtends at its center, shape (n_facets,).
        circumradius: Distance in Å from the center to the farthest vertex of its polyhedron,
            infinite if that is unbounded, shape (n_centers,).
    """

    center: IntArray
    neighbor: IntArray
    solid_angle: FloatArray
    circumradius: FloatArray


class _Bonds(NamedTuple):
    """Directed bonds from sites of the home cell.

    Attributes:
        source: Site of the home cell, shape (n_bonds,).
        target: Site bonded to, shape (n_bonds,).
        image: Lattice translation of the target, shape (n_bonds, 3).
    """

    source: IntArray
    target: IntArray
    image: IntArray


def crystal_nn_edges(
    lattice: FloatArray, frac_coords: FloatArray
) -> tuple[IntArray, IntArray, FloatArray]:
    """Find the bonds of a crystal as CrystalNN does when it disregards species.

    Equals pymatgen's ``CrystalNN(distance_cutoffs=None, x_diff_weight=-1,
    porous_adjustment=False)`` (Zimmermann and Jain, RSC Advances 2020, 10, 6063,
    doi:10.1039/C9RA07755C), with a bond kept if either of its two sites finds it. A periodic
    multigraph results, in which every bond appears once in each direction. Sites that coincide
    have no polyhedra of their own; what they bond to is as arbitrary here as in pymatgen.

    Args:
        lattice: Lattice vectors as rows in Å, shape (3, 3).
        frac_coords: Fractional coordinates of the sites, shape (n, 3); the images of the result
            are relative to these, so that coordinates in [0, 1) give images of the home cell.

    Returns:
        edge_index: Source and target site of every directed edge, shape (2, n_edges), sorted by
            source, target and image.
        edge_image: Lattice translation of the target if the source is in the home cell, shape
            (n_edges, 3).
        edge_length: Distance in Å between the two ends, shape (n_edges,).

    Raises:
        ValueError: If the input is not a crystal (shapes, finite values, a volume) or if a site
            has no closed Voronoi polyhedron, for which pymatgen fails likewise.
    """
    lattice, frac_coords = _checked_crystal(lattice, frac_coords)
    n_sites = len(frac_coords)
    home_cell = np.floor(frac_coords).astype(np.int64)
    wrapped = frac_coords - home_cell
    pending = np.arange(n_sites, dtype=np.int64)
    found: list[_Bonds] = []
    radius = 0.0
    wider = _first_radius(lattice, n_sites)
    while len(pending) and wider > radius:
        radius = wider
        points = _points_within(lattice, wrapped, pending, radius)
        facets = _voronoi_facets(points.coords, len(pending))
        if facets is None:
            wider = SEARCH_RADIUS
            continue
        accepted = _accepted_sites(facets, radius)
        found.append(_bonds(points, facets, accepted))
        pending = pending[~accepted]
        # More atoms only shrink a polyhedron, so that twice today's circumradius suffices.
        wider = min(2.0 * facets.circumradius.max() + 4.0 * RADIUS_MARGIN, SEARCH_RADIUS)
    seen = 0
    for site in pending.tolist():
        bonds, looked_at = _bonds_of_open_site(lattice, wrapped, site, _MOST_POINTS - seen)
        found.append(bonds)
        seen += looked_at
    edge_index, edge_image = _both_directions(found, home_cell)
    source, target = edge_index
    vectors = (frac_coords[target] - frac_coords[source] + edge_image) @ lattice
    return edge_index, edge_image, np.linalg.norm(vectors, axis=1)


def _checked_crystal(lattice: FloatArray, frac_coords: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return the crystal as float arrays, or say in what it is not one."""
    lattice = np.asarray(lattice, dtype=np.float64)
    frac_coords = np.asarray(frac_coords, dtype=np.float64)
    if lattice.shape != (3, 3):
        raise ValueError(
            f"lattice has shape {lattice.shape}, expected (3, 3); pass the three lattice vectors "
            "as rows in Å."
        )
    if frac_coords.ndim != 2 or frac_coords.shape[1] != 3 or len(frac_coords) == 0:
        raise ValueError(
            f"frac_coords has shape {frac_coords.shape}, expected (n, 3) with n >= 1; pass one "
            "row of fractional coordinates per site."
        )
    if not (np.isfinite(lattice).all() and np.isfinite(frac_coords).all()):
        raise ValueError(
            "lattice or frac_coords holds a value that is not finite, expected numbers only; "
            "leave out crystals with missing coordinates."
        )
    volume = abs(float(np.linalg.det(lattice)))
    if volume < 1e-6:
        raise ValueError(
            f"lattice spans a volume of {volume:.3g} Å³, expected a positive one; pass three "
            "lattice vectors that are not coplanar."
        )
    return lattice, frac_coords


def _first_radius(lattice: FloatArray, n_sites: int) -> float:
    """Shell radius in Å to try first: one that suffices for most dense crystals."""
    spacing: float = (abs(float(np.linalg.det(lattice))) / n_sites) ** (1 / 3)
    return min(SHELL_SCALE * spacing, SEARCH_RADIUS)


def _points_within(
    lattice: FloatArray, frac_coords: FloatArray, centers: IntArray, radius: float
) -> _PeriodicPoints:
    """Gather all atoms within a distance of any of the given sites of the home cell.

    Args:
        lattice: Lattice vectors as rows in Å, shape (3, 3).
        frac_coords: Fractional coordinates within the home cell, shape (n, 3).
        centers: Indices of the sites, shape (n_centers,); they come first in the result.
        radius: Distance in Å.
    """
    frac_centers = frac_coords[centers]
    # A sphere reaches as far along each reciprocal axis as its radius over the plane spacing.
    reach = radius * np.linalg.norm(np.linalg.inv(lattice), axis=0) + 1e-9
    lower = frac_centers.min(axis=0) - reach
    upper = frac_centers.max(axis=0) + reach
    first = np.ceil(lower - frac_coords.max(axis=0)).astype(np.int64)
    last = np.floor(upper - frac_coords.min(axis=0)).astype(np.int64)
    images = np.indices(last - first + 1).reshape(3, -1).T + first
    frac_points = images[:, None, :] + frac_coords
    image_index, site = np.nonzero(((frac_points >= lower) & (frac_points <= upper)).all(axis=-1))
    coords = frac_points[image_index, site] @ lattice
    is_center = np.isin(site, centers) & (images[image_index] == 0).all(axis=-1)
    squared = _squared_distances(coords, frac_centers @ lattice).min(axis=1)
    near = np.nonzero((squared < radius**2 + SQUARED_RADIUS_TOLERANCE) & ~is_center)[0]
    return _PeriodicPoints(
        np.concatenate([frac_centers @ lattice, coords[near]]),
        np.concatenate([centers, site[near]]),
        np.concatenate([np.zeros((len(centers), 3), dtype=np.int64), images[image_index[near]]]),
    )


def _squared_distances(points: FloatArray, centers: FloatArray) -> FloatArray:
    """Squared distances in Å² of points to centers, shape (n_points, n_centers)."""
    difference = points[:, None, :] - centers
    squared: FloatArray = np.einsum("pci,pci->pc", difference, difference)
    return squared


def _voronoi_facets(coords: FloatArray, n_centers: int) -> _Facets | None:
    """Build the Voronoi polyhedra of the first points of a set.

    Args:
        coords: Cartesian coordinates in Å, shape (n_points, 3).
        n_centers: Number of leading points whose polyhedra are wanted.

    Returns:
        The bounded facets of these polyhedra, or None if qhull finds no diagram (too few points,
        or all in a plane up to rounding).
    """
    try:
        diagram = Voronoi(coords)
    except QhullError:
        return None
    ends = np.asarray(diagram.ridge_points, dtype=np.int64).reshape(-1, 2)
    if ends.max(initial=0) >= len(coords):  # the point at infinity, which qhull adds to flat sets
        return None
    ridges = np.nonzero((ends < n_centers).any(axis=1))[0]
    ends = ends[ridges]
    polygons = [diagram.ridge_vertices[ridge] for ridge in ridges]
    n_vertices = np.fromiter(map(len, polygons), np.int64, len(polygons))
    vertices = np.fromiter(chain.from_iterable(polygons), np.int64, int(n_vertices.sum()))
    ridge_of_vertex = np.repeat(np.arange(len(polygons)), n_vertices)

    bounded = np.ones(len(polygons), dtype=bool)
    bounded[ridge_of_vertex[vertices < 0]] = False
    # Both ends of a ridge are as far from its vertices and see it under the same angle, since the
    # ridge lies in the mirror plane of the two points; each ridge is measured from one end only.
    observer = coords[ends[:, 0]]
    rays = diagram.vertices[vertices] - observer[ridge_of_vertex]
    distances = np.sqrt(np.einsum("vi,vi->v", rays, rays))
    solid_angle = _polygon_solid_angles(rays, distances, n_vertices, ridge_of_vertex)
    distances[~bounded[ridge_of_vertex]] = np.inf
    farthest = np.zeros(len(polygons))
    np.maximum.at(farthest, ridge_of_vertex, distances)

    twice = np.concatenate([np.arange(len(ridges)), np.arange(len(ridges))])
    center = np.concatenate([ends[:, 0], ends[:, 1]])
    neighbor = np.concatenate([ends[:, 1], ends[:, 0]])
    of_center = center < n_centers
    circumradius = np.zeros(n_centers)
    np.maximum.at(circumradius, center[of_center], farthest[twice[of_center]])
    wanted = of_center & bounded[twice]
    return _Facets(center[wanted], neighbor[wanted], solid_angle[twice[wanted]], circumradius)


def _polygon_solid_angles(
    rays: FloatArray, distances: FloatArray, n_vertices: IntArray, polygon: IntArray
) -> FloatArray:
    """Solid angles of convex polygons seen from a point, as fans of triangles.

    The angle of a triangle is that of van Oosterom and Strackee, IEEE Trans. Biomed. Eng. 1983,
    30, 125.

    Args:
        rays: Vectors in Å from the observer to the vertices in order, shape (n_rays, 3).
        distances: Lengths of the rays in Å, shape (n_rays,).
        n_vertices: Number of vertices of each polygon, shape (n_polygons,).
        polygon: Polygon of each ray, shape (n_rays,).

    Returns:
        Solid angles in sr, shape (n_polygons,).
    """
    start = np.cumsum(n_vertices) - n_vertices
    rank = np.arange(len(rays)) - start[polygon]
    second = np.nonzero((rank >= 1) & (rank < n_vertices[polygon] - 1))[0]
    a, b, c = start[polygon[second]], second, second + 1
    ra, rb, rc = rays[a], rays[b], rays[c]
    da, db, dc = distances[a], distances[b], distances[c]
    numerator = np.abs(
        ra[:, 0] * (rb[:, 1] * rc[:, 2] - rb[:, 2] * rc[:, 1])
        + ra[:, 1] * (rb[:, 2] * rc[:, 0] - rb[:, 0] * rc[:, 2])
        + ra[:, 2] * (rb[:, 0] * rc[:, 1] - rb[:, 1] * rc[:, 0])
    )
    denominator = (
        da * db * dc
        + dc * np.einsum("ti,ti->t", ra, rb)
        + db * np.einsum("ti,ti->t", ra, rc)
        + da * np.einsum("ti,ti->t", rb, rc)
    )
    angles = 2.0 * np.arctan2(numerator, denominator)
    return np.bincount(polygon[second], angles, len(n_vertices)).astype(np.float64)


def _accepted_sites(facets: _Facets, radius: float) -> BoolArray:
    """Tell which polyhedra of a shared diagram are certainly those that pymatgen finds.

    Three conditions make a polyhedron certain. It is complete: an atom beyond the shell is farther
    than twice the circumradius, so that its bisecting plane cannot cut the polyhedron. Its facets
    close, so that qhull merged no vertices wrongly. No weight lies where the last digits decide to
    which side it is rounded.

    Args:
        facets: Facets of the polyhedra.
        radius: Distance in Å within which every atom around the sites took part.

    Returns:
        Whether each site is accepted, shape (n_centers,).
    """
    n_centers = len(facets.circumradius)
    complete = 2.0 * (facets.circumradius + RADIUS_MARGIN) < radius
    total = np.bincount(facets.center, weights=facets.solid_angle, minlength=n_centers)
    closed = np.abs(total - 4.0 * math.pi) < CLOSURE_TOLERANCE
    steps = _relative_weights(facets) * WEIGHT_STEPS
    marginal = np.abs(steps - np.floor(steps) - 0.5) < ROUNDING_MARGIN
    decided = np.ones(n_centers, dtype=bool)
    decided[facets.center[marginal]] = False
    accepted: BoolArray = complete & closed & decided
    return accepted


def _relative_weights(facets: _Facets) -> FloatArray:
    """Solid angles relative to the largest of the same polyhedron, shape (n_facets,)."""
    largest = np.zeros(len(facets.circumradius))
    np.maximum.at(largest, facets.center, facets.solid_angle)
    # An unbounded polyhedron, never accepted, may have no bounded facet but degenerate ones.
    largest[largest == 0.0] = 1.0
    return facets.solid_angle / largest[facets.center]


def _bonds(points: _PeriodicPoints, facets: _Facets, accepted: BoolArray) -> _Bonds:
    """Pick the bonds of the accepted centers out of their facets.

    Args:
        points: Points of the diagram, the centers first.
        facets: Facets of the centers' polyhedra.
        accepted: Whether each center is wanted, shape (n_centers,).
    """
    bonded = np.nonzero(_in_coordination_shell(facets) & accepted[facets.center])[0]
    neighbor = facets.neighbor[bonded]
    return _Bonds(points.site[facets.center[bonded]], points.site[neighbor], points.image[neighbor])


def _in_coordination_shell(facets: _Facets) -> BoolArray:
    """Tell which facets belong to the most likely coordination shell of their center.

    Returns:
        Membership of each facet, shape (n_facets,).
    """
    steps = np.rint(_relative_weights(facets) * WEIGHT_STEPS).astype(np.int64)
    present = np.zeros((len(facets.circumradius), WEIGHT_STEPS + 1), dtype=bool)
    present[facets.center, steps] = True
    # A facet whose weight rounds to zero is no neighbor; zero is the end of the last interval.
    present[:, 0] = False
    center, distinct = np.nonzero(present[:, ::-1])
    distinct = WEIGHT_STEPS - distinct
    next_lower = np.append(distinct[1:], 0)
    next_lower[np.append(center[1:] != center[:-1], True)] = 0
    likelihood = (_QUARTER_CIRCLE[distinct] - _QUARTER_CIRCLE[next_lower]) / (0.25 * math.pi)
    # Of equally likely shells the smallest counts, which a stable sort by likelihood leaves first.
    order = np.lexsort((-likelihood, center))
    with_shell, first = np.unique(center[order], return_index=True)
    boundary = np.full(len(facets.circumradius), WEIGHT_STEPS + 1)
    boundary[with_shell] = distinct[order[first]]
    return steps >= boundary[facets.center]


def _quarter_circle_areas() -> FloatArray:
    """Area under the unit quarter circle from 0 to each rounded weight, shape (1001,)."""
    areas = np.empty(WEIGHT_STEPS + 1)
    for step in range(WEIGHT_STEPS):
        x = step / WEIGHT_STEPS
        height = math.sqrt(1 - x**2)
        areas[step] = 0.5 * (x * height + math.atan(x / height))
    areas[WEIGHT_STEPS] = 0.25 * math.pi
    return areas


_QUARTER_CIRCLE = _quarter_circle_areas()


_MOST_POINTS = 8_000
"""Atoms looked at for all open sites of a crystal, for 1.5 s at most; MP-20's most are 7,000."""


def _bonds_of_open_site(
    lattice: FloatArray, frac_coords: FloatArray, site: int, most: int
) -> tuple[_Bonds, int]:
    """Find the bonds of one site from exactly the atoms that pymatgen would take.

    Where the holes of a structure are wider than the search radius can certify, the polyhedron
    depends on which atoms take part. pymatgen takes those within 7 Å and, as long as that leaves
    the polyhedron unbounded, doubles the distance up to the longest diagonal of the cell.

    Args:
        lattice: Lattice vectors as rows in Å, shape (3, 3).
        frac_coords: Fractional coordinates within the home cell, shape (n, 3).
        site: Index of the site.
        most: Atoms to look at.

    Returns:
        The bonds, and how many atoms were looked at.

    Raises:
        ValueError: If the polyhedron stays unbounded or has no facets, or too many atoms would
            have to be looked at.
    """
    corners = np.array([[1, 1, 1], [-1, 1, 1], [1, -1, 1], [1, 1, -1]])
    limit = float(np.linalg.norm(corners @ lattice, axis=1).max()) + 0.01
    center = np.array([site], dtype=np.int64)
    radius, seen = SEARCH_RADIUS, 0
    while True:
        points = _points_within(lattice, frac_coords, center, radius)
        seen += len(points.coords)
        if seen > most:
            raise ValueError(
                f"site {site} has no bounded Voronoi polyhedron from the atoms within "
                f"{radius / 2:.1f} Å: expected at most {_MOST_POINTS:,} atoms to look at; reduce "
                "the vacuum in its cell."
            )
        squared = _squared_distances(points.coords, points.coords[:1])[:, 0]
        nearest_first = np.argsort(squared, kind="stable")
        points = _PeriodicPoints(
            points.coords[nearest_first], points.site[nearest_first], points.image[nearest_first]
        )
        facets = _voronoi_facets(points.coords, 1)
        if facets is not None and np.isfinite(facets.circumradius[0]):
            break
        if radius >= limit:
            raise ValueError(
                f"site {site} has no bounded Voronoi polyhedron from the atoms within "
                f"{radius:.1f} Å, expected atoms on all sides of it; leave out this crystal or "
                "reduce the vacuum in its cell."
            )
        radius = min(2.0 * radius, limit + 0.001)
    if not len(facets.center):
        raise ValueError(
            f"site {site} has a Voronoi polyhedron without facets, expected at least four; leave "
            "out this crystal, part its coincident sites or reduce the vacuum in its cell."
        )
    return _bonds(points, facets, np.ones(1, dtype=bool)), seen


def _both_directions(found: list[_Bonds], home_cell: IntArray) -> tuple[IntArray, IntArray]:
    """Join bonds with their reverses, without duplicates and in lexicographic order.

    Args:
        found: Directed bonds between sites wrapped into the home cell.
        home_cell: Lattice translation that wrapping took off each site, shape (n, 3).

    Returns:
        edge_index (2, n_edges) and edge_image (n_edges, 3).
    """
    source = np.concatenate([bonds.source for bonds in found])
    target = np.concatenate([bonds.target for bonds in found])
    image = np.concatenate([bonds.image for bonds in found])
    image = image + home_cell[source] - home_cell[target]
    forward = np.column_stack([source, target, image])
    backward = np.column_stack([target, source, -image])
    edges = np.concatenate([forward, backward])
    edges = edges[np.lexsort(edges.T[::-1])]
    fresh = np.ones(len(edges), dtype=bool)
    fresh[1:] = (edges[1:] != edges[:-1]).any(axis=1)
    edges = edges[fresh]
    return np.ascontiguousarray(edges[:, :2].T), np.ascontiguousarray(edges[:, 2:])
