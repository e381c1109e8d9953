"""What the blocks of a graph network need to know of a batch beyond its own tables."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from crystal_gym.agents.batch import GraphBatch
from crystal_gym.agents.kernels import Bags, Pairs, bag_sum, segment_sum, spread

__all__ = ["FirstEdges", "Topology"]


@dataclass(frozen=True, eq=False)
class FirstEdges:
    """Edges as the first block sees them: equal where two nodes' kinds and the length are.

    Before any message a node is known by its element and focus alone, and many nodes of a
    half-filled or symmetric crystal have the same: in MP-20 ``K`` is 0.56 of ``E``.

    Attributes:
        pairs: Nodes of one edge of each of the ``K`` classes.
        length_number: Its length among the batch's distinct ones, int64 ``(K,)``.
        number: Class of every edge, int64 ``(E,)``.
        members: Edges sorted by class, int64 ``(E,)``.
        start: First member of every class, int64 ``(K + 1,)``.
    """

    pairs: Pairs
    length_number: Tensor
    number: Tensor
    members: Tensor
    start: Tensor

    @classmethod
    def of(cls, batch: GraphBatch, kind: Tensor, n_kinds: int) -> FirstEdges:
        """Return the classes of edges for nodes of ``kind``, int64 ``(N,)``, below ``n_kinds``."""
        n_edges = len(batch.source)
        edges = torch.arange(n_edges, device=kind.device)
        kinds = kind.index_select(0, batch.source) * n_kinds + kind.index_select(0, batch.target)
        key = batch.length_number * n_kinds**2 + kinds
        if len(batch.distinct_length) * n_kinds**2 < 2**31:
            key = key.int()  # sorted in half the time
        key, members = key.sort(stable=True)
        is_first = torch.ones_like(key, dtype=torch.bool)
        torch.ne(key[1:], key[:-1], out=is_first[1:])
        start = torch.cat([is_first.nonzero()[:, 0], edges.new_tensor([n_edges])])
        number = torch.empty_like(members).scatter_(0, members, is_first.cumsum(0) - 1)
        chosen = members.index_select(0, start[:-1])
        is_chosen = torch.zeros_like(is_first).index_fill_(0, chosen, True)

        def among(edges: Tensor, edge_start: Tensor) -> tuple[Tensor, Tensor]:
            """Return which classes have their chosen edge in runs of edges, and the first."""
            mask = is_chosen.index_select(0, edges)
            before = torch.cat([mask.new_zeros(1, dtype=torch.int64), mask.cumsum(0)])
            among_them = edges.index_select(0, mask.nonzero()[:, 0])
            return number.index_select(0, among_them), before.index_select(0, edge_start)

        leaving, leaving_start = among(edges, batch.source_start)
        entering, entering_start = among(batch.by_target, batch.target_start)
        n_nodes = len(kind)
        source, target = (x.index_select(0, chosen) for x in (batch.source, batch.target))
        ends = torch.stack([source, target + n_nodes], 1)
        pairs = Pairs(
            ends,
            torch.cat([leaving, entering]),
            torch.cat([leaving_start, entering_start[1:] + len(chosen)]),
        )
        return cls(pairs, batch.length_number.index_select(0, chosen), number, members, start)

    def to_all(self, edges: Tensor) -> Tensor:
        """Map rows of classes ``(K, n)`` to those of all edges ``(E, n)``."""
        return spread(edges, self.start, self.number, self.members)


@dataclass(frozen=True, eq=False)
class Topology:
    """Who is joined to whom, and how much each counts.

    Attributes:
        batch: The batch.
        pairs: Nodes of every edge.
        first: Edges of the first block.
        degree: Bonds of every node, at least 1, ``(N, 1)``.
        n_bonds: Directed bonds of every crystal, at least 1, ``(B, 1)``.
        n_nodes: Sites of every crystal, at least 1, ``(B, 1)``.
    """

    batch: GraphBatch
    pairs: Pairs
    first: FirstEdges
    degree: Tensor
    n_bonds: Tensor
    n_nodes: Tensor

    @classmethod
    def of(cls, batch: GraphBatch, kind: Tensor, n_kinds: int) -> Topology:
        """Return the topology of a batch whose nodes start as one of ``n_kinds``."""
        n_nodes, n_edges = len(kind), len(batch.source)
        edges = torch.arange(n_edges, device=batch.source.device)
        weight = batch.edge_weight[:, None]
        bonds = segment_sum(weight, batch.source_start, batch.source)
        return cls(
            batch,
            Pairs(
                torch.stack([batch.source, batch.target + n_nodes], 1),
                torch.cat([edges, batch.by_target]),
                torch.cat([batch.source_start, batch.target_start[1:] + n_edges]),
            ),
            FirstEdges.of(batch, kind, n_kinds),
            bonds.clamp(min=1.0),
            segment_sum(bonds, batch.node_start, batch.node_graph).clamp(min=1.0),
            batch.n_nodes[:, None].clamp(min=1),
        )

    def over_edges(self, edges: Tensor) -> Tensor:
        """Return the sum over the bonds of every site."""
        batch = self.batch
        return segment_sum(edges, batch.source_start, batch.source, batch.edge_weight)

    def over_first_edges(self, edges: Tensor) -> Tensor:
        """Return the same from the classes of the first block."""
        batch, first = self.batch, self.first
        return bag_sum(
            edges,
            Bags(first.number, batch.source_start, batch.edge_weight),
            Bags(
                batch.source.index_select(0, first.members),
                first.start,
                batch.edge_weight.index_select(0, first.members),
            ),
        )

    def over_nodes(self, nodes: Tensor) -> Tensor:
        """Return the sum over the sites of every crystal."""
        return segment_sum(nodes, self.batch.node_start, self.batch.node_graph)

    def at_nodes(self, graphs: Tensor) -> Tensor:
        """Return every site's row of a feature of its crystal."""
        return spread(graphs, self.batch.node_start, self.batch.node_graph)
