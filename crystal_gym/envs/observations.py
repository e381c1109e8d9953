"""What an agent sees: one state in four forms, and the row layouts of the flat ones.

====== =========================================================================================
form   observation
====== =========================================================================================
graph  ``Dict`` of fixed-size arrays, padded to the largest skeleton of the set
packed one self-contained float32 ``Box``: the same numbers end to end (:class:`PackedLayout`)
compact ``Dict`` of skeleton number, element tokens, focus, target: what datasets store
space  Gymnasium's ``Graph``; in Sync vector envs and ``check_env``, not in Async vector envs with
       shared memory, ``flatten_space`` or Minari, none of which take graph spaces
====== =========================================================================================

All four carry the same information. ``focus`` is the site to fill next; after the last site it
is ``n_sites``, which is no site. Without a target (the unconditional task) the key is left out of
the dictionaries, and the rows hold 0 in ``conditional`` and ``target``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
from gymnasium import spaces
from numpy.typing import ArrayLike, NDArray

from crystal_gym.columns import require_range
from crystal_gym.elements import N_ELEMENTS
from crystal_gym.skeletons import Skeleton, SkeletonSet, registered_set
from crystal_gym.targets import MAX_TARGET_EV

__all__ = [
    "COMPACT_HEADER",
    "FORMS",
    "PACKED_HEADER",
    "ObservationForm",
    "PackedLayout",
    "Placed",
    "compact_rows",
    "make_form",
    "require_rows",
]

COMPACT_HEADER = ("table_id", "skeleton", "focus", "conditional", "target")
"""First columns of a compact row; the element tokens follow."""

PACKED_HEADER = (
    "table_id", "n_sites", "n_edges", "focus", "conditional", "target",
    "a", "b", "c", "alpha", "beta", "gamma", "space_group", "max_sites",
)  # fmt: skip
"""First columns of a packed row, whose ``table_id`` is 0; tokens and edges follow."""

MIN_ROW_SITES = 20
"""Compact rows are at least this wide, so that one network serves MP-20 and smaller sets."""


def compact_rows(
    skeletons: SkeletonSet,
    skeleton: ArrayLike,
    tokens: NDArray[np.integer],
    focus: ArrayLike,
    target_gap: ArrayLike | None,
) -> NDArray[np.float32]:
    """Return compact rows for flat-vector libraries.

    Columns: :data:`COMPACT_HEADER`, then the tokens, 0 beyond the skeleton's sites. Every number
    is an integer below 2^24 or a target, so float32 holds it exactly.

    Args:
        skeletons: The set the numbers refer to; it is registered for the encoders to find.
        skeleton: Skeleton numbers, ``(B,)``.
        tokens: Element tokens, ``(B, at most max_sites)``.
        focus: Site to fill next, ``(B,)``.
        target_gap: eV, ``(B,)`` or one number, or None without a target.

    Returns:
        float32 ``(B, 5 + max(20, max_sites))``.
    """
    skeleton = np.asarray(skeleton)
    width = max(MIN_ROW_SITES, skeletons.max_sites)
    rows = np.zeros((len(skeleton), len(COMPACT_HEADER) + width), dtype=np.float32)
    rows[:, 0] = skeletons.register()
    rows[:, 1] = skeleton
    rows[:, 2] = focus
    if target_gap is not None:
        rows[:, 3] = 1.0
        rows[:, 4] = target_gap
    rows[:, 5 : 5 + tokens.shape[1]] = tokens
    return rows


def require_rows(rows: NDArray[np.float32]) -> None:
    """Refuse rows that stand for no state: numbers in them say where to look for others.

    Args:
        rows: Compact or packed rows, ``(B, D)``. Rows of zeros, which d3rlpy puts behind the last
            step of an episode, are neither and may stand among both.

    Raises:
        ValueError: If they are of another width, one of their numbers is out of its range, or
            the skeleton set of compact rows is not in memory.
    """
    width = rows.shape[1]
    if width < len(PACKED_HEADER):
        raise ValueError(f"rows of {width} numbers are neither compact nor packed")
    rows = rows[rows.any(axis=1)]
    if not len(rows):
        return
    if np.all(rows[:, 0] == 0):
        _require_packed(rows)
        return
    if not np.all(rows[:, 0] == rows[0, 0]):
        raise ValueError(
            "rows of several skeleton tables, or compact and packed rows, are mixed: expected one "
            "kind and table a batch"
        )
    try:
        skeletons = registered_set(int(rows[0, 0]) if np.isfinite(rows[0, 0]) else 0)
    except KeyError as error:
        raise ValueError(error.args[0]) from None
    tokens = rows[:, len(COMPACT_HEADER) :]
    require_range("skeleton", rows[:, 1], 0, len(skeletons))
    n_sites = skeletons.n_sites[rows[:, 1].astype(np.int64)]
    if n_sites.max() > tokens.shape[1]:
        raise ValueError(f"rows of {width} numbers are too short for {n_sites.max()} sites")
    require_range("focus", rows[:, 2], 0, n_sites + 1)
    _require_state(rows[:, 3], rows[:, 4], tokens)


def _require_packed(rows: NDArray[np.float32]) -> None:
    header = dict(zip(PACKED_HEADER, rows.T, strict=False))
    width, first = rows.shape[1], len(PACKED_HEADER)
    if width < first or not 0 < header["max_sites"].max() <= width - first:
        raise ValueError(f"rows of {width} numbers are no packed rows: expected PackedLayout")
    layout = PackedLayout.of_rows(rows)
    if layout.width != width or np.any(header["max_sites"] != layout.max_sites):
        raise ValueError(f"packed rows of {width} numbers do not have the width that they say")
    require_range("n_sites", header["n_sites"], 0, layout.max_sites + 1)
    require_range("n_edges", header["n_edges"], 0, layout.max_edges + 1)
    require_range("focus", header["focus"], 0, header["n_sites"] + 1)
    require_range("space_group", header["space_group"], 0, 231)
    require_range("lattice", rows[:, 6:12], 0, np.inf)
    require_range("edge lengths", rows[:, layout.length], 0, np.inf)
    there = np.arange(layout.max_edges) < header["n_edges"][:, None]
    for name, ends in (("edge sources", layout.source), ("edge targets", layout.target)):
        beyond = np.where(there, header["n_sites"][:, None], np.inf)
        require_range(name, rows[:, ends], 0, beyond)
    _require_state(header["conditional"], header["target"], rows[:, layout.tokens])


def _require_state(conditional: Any, target: Any, tokens: NDArray[np.float32]) -> None:
    require_range("conditional", conditional, 0, 2)
    require_range("target", target, 0, MAX_TARGET_EV * 1.001)
    require_range("element tokens", tokens, 0, N_ELEMENTS + 1)


@dataclass(frozen=True)
class PackedLayout:
    """Where things lie in a packed row.

    ``PACKED_HEADER`` (14 columns: lattice in Å and degrees), ``max_sites`` element tokens, then
    for ``max_edges`` edges the sources, the targets, the lengths (Å) and the image triplets.
    """

    max_sites: int
    max_edges: int

    @classmethod
    def of_rows(cls, rows: Any) -> PackedLayout:
        """Read the layout off packed rows ``(B, width)`` (NumPy array or torch tensor)."""
        max_sites = int(rows[:, 13].max())
        return cls(max_sites, (rows.shape[1] - len(PACKED_HEADER) - max_sites) // 6)

    @property
    def width(self) -> int:
        """Columns of a row."""
        return len(PACKED_HEADER) + self.max_sites + 6 * self.max_edges

    @property
    def tokens(self) -> slice:
        """Element tokens."""
        return slice(len(PACKED_HEADER), len(PACKED_HEADER) + self.max_sites)

    def _edge_columns(self, first: int, count: int) -> slice:
        start = self.tokens.stop + first * self.max_edges
        return slice(start, start + count * self.max_edges)

    @property
    def source(self) -> slice:
        """Source site of every edge."""
        return self._edge_columns(0, 1)

    @property
    def target(self) -> slice:
        """Target site of every edge."""
        return self._edge_columns(1, 1)

    @property
    def length(self) -> slice:
        """Length (Å) of every edge."""
        return self._edge_columns(2, 1)

    @property
    def image(self) -> slice:
        """Image triplet of every edge, three columns an edge."""
        return self._edge_columns(3, 3)

    def empty_row(self, skeleton: Skeleton) -> NDArray[np.float32]:
        """Return the row of an empty skeleton."""
        n, e = skeleton.n_sites, skeleton.n_edges
        row = np.zeros(self.width, dtype=np.float32)
        row[1], row[2], row[12], row[13] = n, e, skeleton.space_group_number, self.max_sites
        row[6:12] = skeleton.lattice_parameters
        row[self.source][:e] = skeleton.edge_index[0]
        row[self.target][:e] = skeleton.edge_index[1]
        row[self.length][:e] = skeleton.edge_length
        row[self.image][: 3 * e] = skeleton.edge_image.ravel()
        return row


def finished_rows(
    skeletons: Sequence[Skeleton], tokens: Sequence[NDArray[np.integer]]
) -> NDArray[np.float32]:
    """Return packed rows of finished crystals, which need not be of one set.

    Args:
        skeletons: Of each crystal.
        tokens: Its elements, ``(n_sites,)``.

    Returns:
        ``(B, D)``, as wide as the largest crystal needs; the focus is on no site.
    """
    layout = PackedLayout(
        max((s.n_sites for s in skeletons), default=0),
        max((s.n_edges for s in skeletons), default=0),
    )
    rows = np.zeros((len(skeletons), layout.width), dtype=np.float32)
    empty: dict[str, NDArray[np.float32]] = {}
    for row, skeleton, elements in zip(rows, skeletons, tokens, strict=True):
        if skeleton.key not in empty:
            empty[skeleton.key] = layout.empty_row(skeleton)
        row[:] = empty[skeleton.key]
        row[3] = skeleton.n_sites  # in focus: no site
        row[layout.tokens.start : layout.tokens.start + len(elements)] = elements
    return rows


class Placed(NamedTuple):
    """A token put on a site in each of some rows of a batch.

    Attributes:
        rows: Of the batch, int64 ``(B,)``.
        sites: That were filled, int64 ``(B,)``.
        tokens: On them, int16 ``(B,)``.
        focus: The site that is next; after the last one the number of sites, int64 ``(B,)``.
    """

    rows: NDArray[np.int64]
    sites: NDArray[np.int64]
    tokens: NDArray[np.int16]
    focus: NDArray[np.int64]


class ObservationForm(Protocol):
    """One way to show a state: its space, and the state in that space."""

    space: spaces.Space[Any]

    def prepare(self, skeleton: Skeleton) -> Any:
        """Return what stays the same through an episode."""

    def encode(
        self, prepared: Any, tokens: NDArray[np.int16], focus: int, target_gap: float | None
    ) -> Any:
        """Return the observation of a partial filling, tokens ``(n_sites,)``."""

    def move(self, batch: Any, placed: Placed) -> None:
        """Bring a batch of observations up to date, in place.

        ``space`` has no such method: its batches are no arrays.

        Args:
            batch: Observations, one below the other.
            placed: What was filled in it.
        """


def _box(low: float, high: float, shape: tuple[int, ...], dtype: Any) -> spaces.Box:
    return spaces.Box(low, high, shape, dtype)


def _pad(values: NDArray[Any], size: int, dtype: Any) -> NDArray[Any]:
    padded = np.zeros((size, *values.shape[1:]), dtype=dtype)
    padded[: len(values)] = values
    return padded


def _target_space() -> spaces.Box:
    return _box(0.0, MAX_TARGET_EV, (1,), np.float32)


class GraphForm:
    """``Dict`` of padded arrays; static ones are shared by all steps of an episode, read-only."""

    def __init__(self, skeletons: SkeletonSet, conditional: bool) -> None:
        n, e = skeletons.max_sites, skeletons.max_edges
        self._sizes = n, e
        parts: dict[str, spaces.Space[Any]] = {
            "element_tokens": _box(0, N_ELEMENTS, (n,), np.int64),
            "node_mask": _box(0, 1, (n,), np.int8),
            "focus": _box(0, 1, (n,), np.int8),
            "edge_index": _box(0, n - 1, (2, e), np.int64),
            "edge_image": _box(-99, 99, (e, 3), np.int64),
            "edge_length": _box(0.0, np.inf, (e,), np.float32),
            "edge_mask": _box(0, 1, (e,), np.int8),
            "lattice": _box(0.0, np.inf, (6,), np.float32),
            "space_group": _box(1, 230, (1,), np.int64),
        }
        if conditional:
            parts["target_gap"] = _target_space()
        self.space = spaces.Dict(parts)

    def prepare(self, skeleton: Skeleton) -> dict[str, NDArray[Any]]:
        """Return the padded arrays that the elements do not change."""
        n, e = self._sizes
        static = {
            "node_mask": _pad(np.ones(skeleton.n_sites), n, np.int8),
            "edge_index": np.ascontiguousarray(_pad(skeleton.edge_index.T, e, np.int64).T),
            "edge_image": _pad(skeleton.edge_image, e, np.int64),
            "edge_length": _pad(skeleton.edge_length, e, np.float32),
            "edge_mask": _pad(np.ones(skeleton.n_edges), e, np.int8),
            "lattice": skeleton.lattice_parameters.astype(np.float32),
            "space_group": np.array([skeleton.space_group_number], dtype=np.int64),
        }
        for array in static.values():
            array.flags.writeable = False
        return static

    def encode(
        self,
        prepared: dict[str, NDArray[Any]],
        tokens: NDArray[np.int16],
        focus: int,
        target_gap: float | None,
    ) -> dict[str, NDArray[Any]]:
        """Return the dictionary."""
        size = self._sizes[0]
        flag = np.zeros(size, dtype=np.int8)
        flag[focus : focus + (focus < len(tokens))] = 1
        observation = {"element_tokens": _pad(tokens, size, np.int64), "focus": flag, **prepared}
        if target_gap is not None:
            observation["target_gap"] = np.array([target_gap], dtype=np.float32)
        return observation

    def move(self, batch: dict[str, NDArray[Any]], placed: Placed) -> None:
        """Bring a batch up to date."""
        rows, sites, tokens, focus = placed
        batch["element_tokens"][rows, sites] = tokens
        batch["focus"][rows, sites] = 0
        goes_on = focus < batch["node_mask"][rows].sum(1)
        batch["focus"][rows[goes_on], focus[goes_on]] = 1


class PackedForm:
    """One float32 row (:class:`PackedLayout`) that needs no skeleton table to be read."""

    def __init__(self, skeletons: SkeletonSet, conditional: bool) -> None:
        self.layout = PackedLayout(skeletons.max_sites, skeletons.max_edges)
        self.space = _box(-99.0, np.inf, (self.layout.width,), np.float32)

    def prepare(self, skeleton: Skeleton) -> NDArray[np.float32]:
        """Return the row of the empty skeleton."""
        return self.layout.empty_row(skeleton)

    def encode(
        self,
        prepared: NDArray[np.float32],
        tokens: NDArray[np.int16],
        focus: int,
        target_gap: float | None,
    ) -> NDArray[np.float32]:
        """Return the row."""
        row = prepared.copy()
        row[3] = focus
        if target_gap is not None:
            row[4], row[5] = 1.0, target_gap
        first = self.layout.tokens.start
        row[first : first + len(tokens)] = tokens
        return row

    def move(self, batch: NDArray[np.float32], placed: Placed) -> None:
        """Bring a batch up to date."""
        rows, sites, tokens, focus = placed
        batch[rows, self.layout.tokens.start + sites] = tokens
        batch[rows, 3] = focus


class CompactForm:
    """``Dict`` of what changes: the skeleton is named by its number in the set."""

    def __init__(self, skeletons: SkeletonSet, conditional: bool) -> None:
        self._size = skeletons.max_sites
        parts: dict[str, spaces.Space[Any]] = {
            "skeleton": _box(0, len(skeletons) - 1, (1,), np.int32),
            "element_tokens": _box(0, N_ELEMENTS, (self._size,), np.int8),
            "focus": _box(0, self._size, (1,), np.int16),
        }
        if conditional:
            parts["target_gap"] = _target_space()
        self.space = spaces.Dict(parts)

    def prepare(self, skeleton: Skeleton) -> NDArray[np.int32]:
        """Return the skeleton's number."""
        return np.array([skeleton.index], dtype=np.int32)

    def encode(
        self,
        prepared: NDArray[np.int32],
        tokens: NDArray[np.int16],
        focus: int,
        target_gap: float | None,
    ) -> dict[str, NDArray[Any]]:
        """Return the dictionary."""
        observation: dict[str, NDArray[Any]] = {
            "skeleton": prepared.copy(),
            "element_tokens": _pad(tokens, self._size, np.int8),
            "focus": np.array([focus], dtype=np.int16),
        }
        if target_gap is not None:
            observation["target_gap"] = np.array([target_gap], dtype=np.float32)
        return observation

    def move(self, batch: dict[str, NDArray[Any]], placed: Placed) -> None:
        """Bring a batch up to date."""
        rows, sites, tokens, focus = placed
        batch["element_tokens"][rows, sites] = tokens
        batch["focus"][rows, 0] = focus


class SpaceForm:
    """Gymnasium's ``GraphInstance``, with the cell repeated on every node.

    Node features, float32: element token, focus flag, a, b, c (Å), alpha, beta, gamma (degrees),
    space group and, with a target, the target gap (eV). Edge features: length (Å) and the image
    triplet. ``edge_links``: source and target.
    """

    def __init__(self, skeletons: SkeletonSet, conditional: bool) -> None:
        self.space = spaces.Graph(
            _box(0.0, np.inf, (9 + conditional,), np.float32),
            _box(-99.0, np.inf, (4,), np.float32),
        )

    def prepare(self, skeleton: Skeleton) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
        """Return cell features, edge features and links."""
        cell = np.append(skeleton.lattice_parameters, skeleton.space_group_number)
        edges = np.column_stack([skeleton.edge_length, skeleton.edge_image]).astype(np.float32)
        return cell.astype(np.float32), edges, skeleton.edge_index.T.astype(np.int64)

    def encode(
        self,
        prepared: tuple[NDArray[Any], NDArray[Any], NDArray[Any]],
        tokens: NDArray[np.int16],
        focus: int,
        target_gap: float | None,
    ) -> spaces.GraphInstance:
        """Return the graph."""
        cell, edges, links = prepared
        nodes = np.zeros((len(tokens), 9 + (target_gap is not None)), dtype=np.float32)
        nodes[:, 0] = tokens
        nodes[focus : focus + (focus < len(tokens)), 1] = 1.0
        nodes[:, 2:9] = cell
        if target_gap is not None:
            nodes[:, 9] = target_gap
        return spaces.GraphInstance(nodes=nodes, edges=edges, edge_links=links)


FORMS: dict[str, type[Any]] = {
    "graph": GraphForm,
    "packed": PackedForm,
    "compact": CompactForm,
    "space": SpaceForm,
}
"""Observation forms by the name that ``gym.make(observation=...)`` takes."""


def make_form(name: str, skeletons: SkeletonSet, *, conditional: bool) -> ObservationForm:
    """Return the form called ``name`` for the skeletons of a set.

    Args:
        name: A key of :data:`FORMS`: ``"graph"``, ``"packed"``, ``"compact"`` or ``"space"``.
        skeletons: The set; its largest skeleton decides how arrays are padded.
        conditional: Whether there is a target gap.

    Returns:
        The form, whose ``space`` is the observation space.

    Raises:
        ValueError: If there is no such form.
    """
    if not isinstance(name, str) or name not in FORMS:
        raise ValueError(f"observation={name!r} is unknown: expected one of {', '.join(FORMS)}")
    form: ObservationForm = FORMS[name](skeletons, conditional)
    return form
