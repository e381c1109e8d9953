"""Flat observation rows as one batch of graphs.

d3rlpy hands a network flat float32 rows. *Compact* rows name a skeleton by its number, and its
graph comes from a table that is looked up here; *packed* rows hold their graph themselves
(:mod:`crystal_gym.envs.observations`). Both end as the same :class:`GraphBatch`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from crystal_gym.envs.observations import COMPACT_HEADER, PACKED_HEADER, PackedLayout
from crystal_gym.skeletons import SkeletonSet, registered_set

__all__ = ["EVERY_SITE", "GraphBatch", "focus_every_site", "rows_to_batch"]

EVERY_SITE = -1
"""Focus of a row that stands for one row for each of its empty sites."""


@dataclass(frozen=True, eq=False)
class GraphBatch:
    """``B`` crystals with ``N`` sites and ``E`` directed edges in all, laid end to end.

    Edges are sorted by source. Edges of one crystal that join the same two sites over the same
    distance have the same features in every layer: they are one row with an ``edge_weight``.

    Attributes:
        element_token: 0 (empty) or 1 to 88, int64 ``(N,)``.
        focus: 1 on the site to fill next, float32 ``(N,)``.
        focus_site: Number of that site within its crystal, int64 ``(B,)``.
        node_graph: Crystal of every node, int64 ``(N,)``.
        node_start: First node of every crystal, int64 ``(B + 1,)``.
        source: Node number, int64 ``(E,)``, ascending.
        target: Node number, int64 ``(E,)``.
        edge_graph: Crystal of every edge, int64 ``(E,)``.
        edge_start: First edge of every crystal, int64 ``(B + 1,)``.
        source_start: First edge that leaves a node, int64 ``(N + 1,)``.
        by_target: Edge numbers sorted by target, int64 ``(E,)``.
        target_start: First entry of ``by_target`` that enters a node, int64 ``(N + 1,)``.
        edge_weight: How many bonds an edge stands for, float32 ``(E,)``.
        distinct_length: Å, float32 ``(L,)``, ``L <= E``: every length once in its crystal.
        length_number: Which of these is the edge's, int64 ``(E,)``.
        lattice: a, b, c (Å), alpha, beta, gamma (degrees), float32 ``(B, 6)``.
        space_group: 1 to 230, float32 ``(B,)``.
        conditional: 1 where there is a target, float32 ``(B,)``.
        target_gap: eV, 0 where there is no target, float32 ``(B,)``.
    """

    element_token: Tensor
    focus: Tensor
    focus_site: Tensor
    node_graph: Tensor
    node_start: Tensor
    source: Tensor
    target: Tensor
    edge_graph: Tensor
    edge_start: Tensor
    source_start: Tensor
    by_target: Tensor
    target_start: Tensor
    edge_weight: Tensor
    distinct_length: Tensor
    length_number: Tensor
    lattice: Tensor
    space_group: Tensor
    conditional: Tensor
    target_gap: Tensor

    @property
    def n_nodes(self) -> Tensor:
        """Sites of every crystal, ``(B,)``."""
        return self.node_start.diff()

    @property
    def n_edges(self) -> Tensor:
        """Rows of edges of every crystal, ``(B,)``."""
        return self.edge_start.diff()

    @property
    def edge_length(self) -> Tensor:
        """Å, ``(E,)``."""
        return self.distinct_length[self.length_number]

    @property
    def empty_sites(self) -> Tensor:
        """Numbers of the nodes without an element, ``(M,)``."""
        return (self.element_token == 0).nonzero()[:, 0]

    def __len__(self) -> int:
        return len(self.space_group)

    def __repr__(self) -> str:
        return (
            f"GraphBatch({len(self)} crystals, {len(self.element_token)} sites, "
            f"{len(self.source)} edges, {self.lattice.device})"
        )


def rows_to_batch(rows: Tensor) -> GraphBatch:
    """Expand flat rows to a batch of graphs on the rows' device.

    d3rlpy replaces the observation after the last step by a row of zeros: it becomes a crystal
    without sites, in compact and in packed batches alike.

    Args:
        rows: Compact or packed rows, float32 ``(B, D)``, all of one kind and one table.

    Returns:
        A crystal for every row, in the order of the rows.

    Raises:
        KeyError: If the skeleton set of compact rows is not in memory.
        ValueError: If rows of different tables, or compact and packed rows, are mixed.
    """
    table_id = _table_id(rows)
    if table_id < 1:
        return _from_packed(rows)
    present = rows[:, 0] != 0
    if not bool((rows[:, 0][present] == table_id).all()):
        raise ValueError(
            f"rows of skeleton table {table_id} are mixed with rows of another: expected one table "
            "a batch; train on one dataset at a time, or merge their skeleton sets"
        )
    if bool(rows[~present].any()):
        raise ValueError("compact and packed rows are mixed in one batch: expected one kind")
    return _from_compact(rows, present, _table(table_id, rows.device))


def focus_every_site(rows: Tensor) -> Tensor:
    """Return rows ``(B, D)`` whose focus is :data:`EVERY_SITE`, for the encoders that take it."""
    rows = rows.clone()
    header = COMPACT_HEADER if _table_id(rows) else PACKED_HEADER
    rows[:, header.index("focus")] = EVERY_SITE
    return rows


def _table_id(rows: Tensor) -> int:
    """Return the table of compact rows, 0 for packed ones."""
    # Below 1 are packed rows, rows of zeros, and the uniform noise with which d3rlpy probes the
    # width of an encoder's output.
    return int(rows[:, 0].max()) if len(rows) else 0


@dataclass(frozen=True, eq=False)
class _Table:
    """:class:`crystal_gym.merged_edges.MergedEdges` and cells of a skeleton set as tensors.

    Kept outside every ``nn.Module``: DistributedDataParallel broadcasts buffers, and none of
    this is learned.
    """

    site_ptr: Tensor
    edge_ptr: Tensor
    length_ptr: Tensor
    source: Tensor
    target: Tensor
    by_target: Tensor
    weight: Tensor
    length_number: Tensor
    length: Tensor
    n_leaving: Tensor
    n_entering: Tensor
    lattice: Tensor
    space_group: Tensor


@lru_cache(maxsize=8)
def _table(table_id: int, device: torch.device) -> _Table:
    return _build_table(registered_set(table_id), device)


def _build_table(skeletons: SkeletonSet, device: torch.device) -> _Table:
    arrays = {
        **vars(skeletons.merged),
        "site_ptr": skeletons.site_ptr,
        "lattice": skeletons.lattice_parameters.astype(np.float32),
        "space_group": skeletons.space_group_number.astype(np.float32),
    }
    # On a CPU the tensors are the set's own arrays, which may be mapped from a file.
    return _Table(**{name: torch.from_numpy(array).to(device) for name, array in arrays.items()})


def _starts(sizes: Tensor) -> Tensor:
    """Return ``[0, sizes[0], sizes[0] + sizes[1], ...]``."""
    starts = sizes.new_zeros(len(sizes) + 1)
    torch.cumsum(sizes, 0, out=starts[1:])
    return starts


def _ragged(sizes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return for runs of ``sizes``: their starts, the run of every entry, its place in the run."""
    starts = _starts(sizes)
    run = torch.repeat_interleave(torch.arange(len(sizes), device=sizes.device), sizes)
    place = torch.arange(len(run), device=sizes.device) - _take(starts, run)
    return starts, run, place


def _take(values: Tensor, numbers: Tensor) -> Tensor:
    # Three times as fast as values[numbers] on a CPU.
    return values.index_select(0, numbers)


def _cells(rows: Tensor, row: Tensor, column: Tensor) -> Tensor:
    """Return ``rows[row, column]``."""
    return _take(rows.reshape(-1), row * rows.shape[1] + column)


def _from_compact(rows: Tensor, present: Tensor, table: _Table) -> GraphBatch:
    skeleton = rows[:, 1].long()

    def runs(ptr: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return starts, crystal of every entry, its place there and its place in the table."""
        first = ptr[skeleton]
        starts, graph, place = _ragged((ptr[skeleton + 1] - first) * present)
        return starts, graph, place, _take(first, graph) + place

    node_start, node_graph, site, node = runs(table.site_ptr)
    edge_start, edge_graph, _, edge = runs(table.edge_ptr)
    length_start, _, _, length = runs(table.length_ptr)
    first_node = _take(node_start, edge_graph)
    focus_site = rows[:, 2].long()
    return GraphBatch(
        element_token=_cells(rows, node_graph, site + len(COMPACT_HEADER)).long(),
        focus=(site == _take(focus_site, node_graph)).float(),
        focus_site=focus_site,
        node_graph=node_graph,
        node_start=node_start,
        source=_take(table.source, edge) + first_node,
        target=_take(table.target, edge) + first_node,
        edge_graph=edge_graph,
        edge_start=edge_start,
        source_start=_starts(_take(table.n_leaving, node).long()),
        by_target=_take(table.by_target, edge) + _take(edge_start, edge_graph),
        target_start=_starts(_take(table.n_entering, node).long()),
        edge_weight=_take(table.weight, edge).float(),
        distinct_length=_take(table.length, length),
        length_number=_take(table.length_number, edge) + _take(length_start, edge_graph),
        lattice=table.lattice[skeleton] * present[:, None],
        space_group=table.space_group[skeleton] * present,
        conditional=rows[:, 3],
        target_gap=rows[:, 4] * rows[:, 3],
    )


def _from_packed(rows: Tensor) -> GraphBatch:
    layout = PackedLayout.of_rows(rows) if len(rows) else PackedLayout(0, 0)
    node_start, node_graph, site = _ragged(rows[:, 1].long())
    edge_start, edge_graph, edge = _ragged(rows[:, 2].long())
    n_nodes, first_node = len(site), _take(node_start, edge_graph)
    source = _cells(rows, edge_graph, edge + layout.source.start).long() + first_node
    target = _cells(rows, edge_graph, edge + layout.target.start).long() + first_node
    focus_site = rows[:, 3].long()
    return GraphBatch(
        element_token=_cells(rows, node_graph, site + len(PACKED_HEADER)).long(),
        focus=(site == _take(focus_site, node_graph)).float(),
        focus_site=focus_site,
        node_graph=node_graph,
        node_start=node_start,
        source=source,
        target=target,
        edge_graph=edge_graph,
        edge_start=edge_start,
        source_start=_starts(torch.bincount(source, minlength=n_nodes)),
        by_target=torch.argsort(target, stable=True),
        target_start=_starts(torch.bincount(target, minlength=n_nodes)),
        edge_weight=rows.new_ones(len(source)),
        distinct_length=_cells(rows, edge_graph, edge + layout.length.start),
        length_number=torch.arange(len(source), device=rows.device),
        lattice=rows[:, 6:12],
        space_group=rows[:, 12],
        conditional=rows[:, 4],
        target_gap=rows[:, 5] * rows[:, 4],
    )
