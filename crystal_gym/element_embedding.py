"""Elements as points of a small space, for algorithms whose actions are real vectors.

An element is five numbers, each scaled over the 88 elements to ``[-0.9, 0.9]``:

====================== ======== ==================================================================
column                 unit     source
====================== ======== ==================================================================
``period``             1        periodic table, 1 to 7
``group``              1        IUPAC group, 1 to 18; the f block counts as group 3
``f_place``            1        place in the f block: La 0 to Lu 14, Ac 0 to Pu 5; elsewhere 0
``electronegativity``  Pauling  pymatgen's ``Element.X``; it has none of He and Ne, which are
                                Allen's, *J. Am. Chem. Soc.* 1989, 111, 9003, on the same scale
``radius``             Å        pymatgen's ``Element.atomic_radius`` (Slater, *J. Chem. Phys.* 1964,
                                41, 3199); it has none of He, Ne, Kr and Xe, which are its
                                ``atomic_radius_calculated`` (Clementi et al., *J. Chem. Phys.*
                                1967, 47, 2686)
====================== ======== ==================================================================

The scale stays below 1 because policies end in a tanh, which never reaches 1 and whose inverse,
in the likelihood of a stochastic policy, is infinite there. Neighbours in the periodic table are
neighbours here, and no two elements are nearer than 0.1.

The numbers are written out rather than read from pymatgen: a trained policy means these points,
whatever a later release of pymatgen says.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from crystal_gym.elements import ATOMIC_NUMBERS, GROUP, N_ELEMENTS, PERIOD, mask_rows

__all__ = ["EMBEDDING", "EMBEDDING_COLUMNS", "EMBEDDING_SIZE", "decode", "embed"]

EMBEDDING_COLUMNS = ("period", "group", "f_place", "electronegativity", "radius")
EMBEDDING_SIZE = len(EMBEDDING_COLUMNS)
_SCALE = 0.9

# Both in the order of ELEMENTS, a period a line (two lines for the 6th).
_ELECTRONEGATIVITY = (
    2.20, 4.16,
    0.98, 1.57, 2.04, 2.55, 3.04, 3.44, 3.98, 4.787,
    0.93, 1.31, 1.61, 1.90, 2.19, 2.58, 3.16,
    0.82, 1.00, 1.36, 1.54, 1.63, 1.66, 1.55, 1.83, 1.88, 1.91, 1.90, 1.65, 1.81, 2.01, 2.18,
    2.55, 2.96, 3.00,
    0.82, 0.95, 1.22, 1.33, 1.60, 2.16, 1.90, 2.20, 2.28, 2.20, 1.93, 1.69, 1.78, 1.96, 2.05,
    2.10, 2.66, 2.60,
    0.79, 0.89, 1.10, 1.12, 1.13, 1.14, 1.13, 1.17, 1.20, 1.20, 1.10, 1.22, 1.23, 1.24, 1.25,
    1.10, 1.27, 1.30, 1.50, 2.36, 1.90, 2.20, 2.20, 2.28, 2.54, 2.00, 1.62, 2.33, 2.02,
    1.10, 1.30, 1.50, 1.38, 1.36, 1.28,
)  # fmt: skip
_RADIUS = (
    0.25, 0.31,
    1.45, 1.05, 0.85, 0.70, 0.65, 0.60, 0.50, 0.38,
    1.80, 1.50, 1.25, 1.10, 1.00, 1.00, 1.00,
    2.20, 1.80, 1.60, 1.40, 1.35, 1.40, 1.40, 1.40, 1.35, 1.35, 1.35, 1.35, 1.30, 1.25, 1.15,
    1.15, 1.15, 0.88,
    2.35, 2.00, 1.80, 1.55, 1.45, 1.45, 1.35, 1.30, 1.35, 1.40, 1.60, 1.55, 1.55, 1.45, 1.45,
    1.40, 1.40, 1.08,
    2.60, 2.15, 1.95, 1.85, 1.85, 1.85, 1.85, 1.85, 1.85, 1.80, 1.75, 1.75, 1.75, 1.75, 1.75,
    1.75, 1.75, 1.55, 1.45, 1.35, 1.35, 1.30, 1.35, 1.35, 1.35, 1.50, 1.90, 1.80, 1.60,
    1.95, 1.80, 1.80, 1.75, 1.75, 1.75,
)  # fmt: skip


def _table() -> NDArray[np.float64]:
    first = np.where(PERIOD == 6, 57, 89)  # La and Ac
    f_place = np.where((GROUP == 3) & (PERIOD >= 6), ATOMIC_NUMBERS - first, 0)
    return np.column_stack([PERIOD, GROUP, f_place, _ELECTRONEGATIVITY, _RADIUS])


def _scaled(table: NDArray[np.float64]) -> NDArray[np.float32]:
    low, high = table.min(0), table.max(0)
    scaled = (_SCALE * (2 * (table - low) / (high - low) - 1)).astype(np.float32)
    scaled.flags.writeable = False
    return scaled


EMBEDDING: NDArray[np.float32] = _scaled(_table())
"""The point of every action, read-only float32 ``(88, 5)``; columns :data:`EMBEDDING_COLUMNS`."""


def embed(actions: ArrayLike) -> NDArray[np.float32]:
    """Return the points of elements.

    Args:
        actions: Positions in :data:`crystal_gym.elements.ELEMENTS`, integers ``(B,)``.

    Returns:
        float32 ``(B, 5)``, columns :data:`EMBEDDING_COLUMNS`.

    Raises:
        ValueError: If one is no action.
    """
    numbers = np.asarray(actions)
    if numbers.ndim != 1 or (numbers.size and not np.issubdtype(numbers.dtype, np.integer)):
        raise ValueError(
            f"actions have shape {numbers.shape} and type {numbers.dtype}: expected integers (B,)"
        )
    bad = numbers[(numbers < 0) | (numbers >= N_ELEMENTS)]
    if bad.size:
        raise ValueError(
            f"action {bad[0]} is out of range: expected 0 to {N_ELEMENTS - 1} "
            "(crystal_gym.elements.ELEMENTS lists the elements)"
        )
    return EMBEDDING[numbers.astype(np.int64)]


def decode(vectors: ArrayLike, action_mask: NDArray[np.integer] | None = None) -> NDArray[np.int64]:
    """Return the allowed elements nearest to points, by Euclidean distance.

    Args:
        vectors: Points, ``(B, 5)``; they may lie outside of the box.
        action_mask: 1 where an element is allowed, ``(B, 88)`` or ``(88,)`` for all; None allows
            every element.

    Returns:
        Actions, int64 ``(B,)``; of elements equally near the first.

    Raises:
        ValueError: If shapes do not fit, a number is not finite or a mask allows nothing.
    """
    points = np.asarray(vectors, dtype=np.float64)
    if points.ndim != 2 or points.shape[1] != EMBEDDING_SIZE:
        raise ValueError(
            f"vectors have shape {points.shape}: expected (B, {EMBEDDING_SIZE}), the columns "
            f"{', '.join(EMBEDDING_COLUMNS)}"
        )
    if not np.isfinite(points).all():
        row = int(np.flatnonzero(~np.isfinite(points).all(1))[0])
        raise ValueError(
            f"vector {row} is {points[row].tolist()}: expected finite numbers from about -1 to 1; "
            "a network that returns anything else has diverged"
        )
    table = EMBEDDING.astype(np.float64)
    distance = (table**2).sum(1) - 2 * points @ table.T  # squared, less that of the point itself
    if action_mask is not None:
        distance[~mask_rows(action_mask, len(points))] = np.inf
    return distance.argmin(1)
