"""MEGNet as the paper behind crystal_gym uses it, written for speed.

References:
    Chen, Ye, Zuo, Zheng, Ong, *Graph Networks as a Universal Machine Learning Framework for
    Molecules and Crystals*, Chem. Mater. 2019, 31, 3564, doi 10.1021/acs.chemmater.9b01294.
    Govindarajan et al., *Learning conditional policies for crystal design using offline
    reinforcement learning*, Digital Discovery 2024, 3, 769, doi 10.1039/d4dd00024b.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch_geometric.nn.aggr import Set2Set

from crystal_gym.agents.batch import GraphBatch
from crystal_gym.agents.kernels import attention_pool, edge_mlp, mlp, segment_sum, spread
from crystal_gym.elements import N_ELEMENTS

__all__ = ["FOCUS_FORMS", "MEGNet"]

FOCUS_FORMS = ("node", "index")
"""How the network learns which site is next: see :class:`MEGNet`."""

_WIDTH = 32
_N_BLOCKS = 3
_MAX_FOCUS_NUMBER = 20
"""Largest site number of the published network: MP-20 has at most 20 sites, and 20 is "none"."""


@dataclass(frozen=True, eq=False)
class _Topology:
    """What all blocks need to know of a batch beyond its own tables.

    Attributes:
        batch: The batch.
        pairs: Rows of every edge in the projections ``[as sources, as targets]``, ``(E, 2)``.
        incident: Edges of every such row, ``(2 * E,)``.
        incident_start: First of them, ``(2 * N + 1,)``.
        degree: Bonds of every node, at least 1, ``(N, 1)``.
        n_bonds: Directed bonds of every crystal, at least 1, ``(B, 1)``.
        n_nodes: Sites of every crystal, at least 1, ``(B, 1)``.
    """

    batch: GraphBatch
    pairs: Tensor
    incident: Tensor
    incident_start: Tensor
    degree: Tensor
    n_bonds: Tensor
    n_nodes: Tensor

    @classmethod
    def of(cls, batch: GraphBatch) -> _Topology:
        n_nodes, n_edges = len(batch.element_token), len(batch.source)
        edges = torch.arange(n_edges, device=batch.source.device)
        weight = batch.edge_weight[:, None]
        bonds = segment_sum(weight, batch.source_start, batch.source)
        return cls(
            batch,
            torch.stack([batch.source, batch.target + n_nodes], 1),
            torch.cat([edges, batch.by_target]),
            torch.cat([batch.source_start, batch.target_start[1:] + n_edges]),
            bonds.clamp(min=1.0),
            segment_sum(bonds, batch.node_start, batch.node_graph).clamp(min=1.0),
            batch.n_nodes[:, None].clamp(min=1),
        )

    def over_nodes(self, nodes: Tensor) -> Tensor:
        """Return the sum over the sites of every crystal."""
        return segment_sum(nodes, self.batch.node_start, self.batch.node_graph)

    def at_nodes(self, graphs: Tensor) -> Tensor:
        """Return every site's row of a feature of its crystal."""
        return spread(graphs, self.batch.node_start, self.batch.node_graph)


class _MLP(nn.Module):
    """Linear layers, every one followed by softplus2."""

    def __init__(self, *sizes: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(map(nn.Linear, sizes[:-1], sizes[1:]))

    def linears(self) -> list[nn.Linear]:
        return [layer for layer in self.layers if isinstance(layer, nn.Linear)]

    def forward(self, x: Tensor) -> Tensor:
        return mlp(x, *(p for layer in self.linears() for p in (layer.weight, layer.bias)))


class _EdgeMLP(_MLP):
    """An MLP over source, target, edge and state, whose first layer acts on each part alone."""

    def __init__(self) -> None:
        super().__init__(4 * _WIDTH, 64, 64, _WIDTH)

    def forward(  # type: ignore[override]
        self, nodes: Tensor, edges: Tensor, state: Tensor, topology: _Topology
    ) -> Tensor:
        first, *others = self.linears()
        # Messages are averaged where edges begin, because edges are sorted by source: the network
        # as published averages where they end. So source and target swap roles. Every bond is
        # there in both directions with the same features, hence the result is the same.
        at_target, at_source, of_edge, of_state = first.weight.split(_WIDTH, 1)
        ends = torch.cat(
            [nodes @ at_source.t() + topology.at_nodes(state @ of_state.t()), nodes @ at_target.t()]
        )
        return edge_mlp(
            edges,
            ends,
            topology.pairs,
            topology.incident,
            topology.incident_start,
            of_edge,
            first.bias,
            *(p for layer in others for p in (layer.weight, layer.bias)),
        )


class _Block(nn.Module):
    """One round of messages: edges, then nodes, then the state, each added to what it was."""

    def __init__(self, first: bool) -> None:
        super().__init__()
        self.dense = nn.ModuleList(
            [] if first else [_MLP(_WIDTH, 64, _WIDTH) for _ in ("edges", "nodes", "state")]
        )
        self.update_edges = _EdgeMLP()
        self.update_nodes = _MLP(3 * _WIDTH, 64, 64, _WIDTH)
        self.update_state = _MLP(3 * _WIDTH, 64, 64, _WIDTH)

    def forward(
        self, edges: Tensor, nodes: Tensor, state: Tensor, topology: _Topology
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Map edges ``(E, 32)``, nodes ``(N, 32)``, state ``(B, 32)`` to the same shapes."""
        before = edges, nodes, state
        if self.dense:
            edges, nodes, state = (f(x) for f, x in zip(self.dense, before, strict=True))
        batch = topology.batch
        edges = self.update_edges(nodes, edges, state, topology)
        sums = segment_sum(edges, batch.source_start, batch.source, batch.edge_weight)
        nodes = self.update_nodes(
            torch.cat([nodes, sums / topology.degree, topology.at_nodes(state)], 1)
        )
        of_edges = topology.over_nodes(sums) / topology.n_bonds
        of_nodes = topology.over_nodes(nodes) / topology.n_nodes
        state = self.update_state(torch.cat([state, of_edges, of_nodes], 1))
        return edges + before[0], nodes + before[1], state + before[2]


class _SortedSet2Set(Set2Set):
    """PyG's Set2Set over consecutive segments of rows that may stand for several equal ones."""

    def __init__(self) -> None:
        super().__init__(_WIDTH, processing_steps=2)

    def forward(
        self,
        x: Tensor,
        index: Tensor,
        ptr: Tensor,
        dim_size: int,
        dim: int = -2,
        weight: Tensor | None = None,
    ) -> Tensor:
        """Map rows ``(M, 32)`` of ``S`` segments to ``(S, 64)``; an empty segment pools to 0."""
        pooled = x.new_zeros(dim_size, 2 * _WIDTH)
        memory = (x.new_zeros(1, dim_size, _WIDTH), x.new_zeros(1, dim_size, _WIDTH))
        for _ in range(self.processing_steps):
            query, memory = self.lstm(pooled[None], memory)
            query = query[0]
            pooled = torch.cat([query, attention_pool(x, query, ptr, index, weight)], 1)
        return pooled


class MEGNet(nn.Module):
    """The published network up to its last hidden layer: a batch of graphs to 16 features each.

    One Gaussian ``exp(-d^2 / 2)`` of the bond length (d in Å), a learned 16-vector an element,
    and a state of lattice lengths (Å), angles (degrees), space group number and target gap (eV),
    all of them unscaled, pass through 3 blocks of messages; Set2Set pools nodes and edges.

    Args:
        focus: ``"node"`` adds a learned vector to the node that is to be filled next. ``"index"``
            is the published form, an embedding of that site's number in the state: it lets the
            network count sites but not see which one is meant.

    Raises:
        ValueError: If ``focus`` is neither.
    """

    n_features = 16

    def __init__(self, focus: str = "node") -> None:
        super().__init__()
        if focus not in FOCUS_FORMS:
            raise ValueError(
                f"focus={focus!r} is unknown: expected one of {', '.join(FOCUS_FORMS)}"
            )
        self.embed_element = nn.Embedding(N_ELEMENTS + 1, 16)
        self.focus_vector: nn.Parameter | None = None
        self.embed_focus: nn.Embedding | None = None
        if focus == "node":
            self.focus_vector = nn.Parameter(torch.randn(16))
        else:
            self.embed_focus = nn.Embedding(_MAX_FOCUS_NUMBER + 1, 8)
        self.encode_nodes = _MLP(16, 64, _WIDTH)
        self.encode_edges = _MLP(1, 64, _WIDTH)
        self.encode_state = _MLP(8 if focus == "node" else 16, 64, _WIDTH)
        self.blocks = nn.ModuleList(_Block(first=i == 0) for i in range(_N_BLOCKS))
        self.pool_nodes = _SortedSet2Set()
        self.pool_edges = _SortedSet2Set()
        self.readout = _MLP(5 * _WIDTH, _WIDTH, self.n_features)

    def forward(self, batch: GraphBatch) -> Tensor:
        """Return the features of every crystal, float32 ``(B, 16)``."""
        topology = _Topology.of(batch)
        nodes = self.encode_nodes(self._node_input(batch))
        edges = self._encoded_edges(batch)
        state = self.encode_state(self._state_input(batch))
        for block in self.blocks:
            edges, nodes, state = block(edges, nodes, state, topology)
        pooled = [
            self.pool_nodes(nodes, batch.node_graph, batch.node_start),
            self.pool_edges(edges, batch.edge_graph, batch.edge_start, weight=batch.edge_weight),
            state,
        ]
        return self.readout(torch.cat(pooled, 1))

    def _node_input(self, batch: GraphBatch) -> Tensor:
        nodes = self.embed_element(batch.element_token)
        if self.focus_vector is not None:
            nodes = torch.addcmul(nodes, batch.focus[:, None], self.focus_vector)
        return nodes

    def _encoded_edges(self, batch: GraphBatch) -> Tensor:
        # A bond and its reverse, and bonds that symmetry relates, have the same length: in MP-20
        # six edges share one, and each length is encoded once.
        length = self.encode_edges(torch.exp(-0.5 * batch.distinct_length.square())[:, None])
        return length.index_select(0, batch.length_number)

    def _state_input(self, batch: GraphBatch) -> Tensor:
        state = [batch.lattice, batch.space_group[:, None], batch.target_gap[:, None]]
        if self.embed_focus is not None:
            number = batch.focus_site.clamp(0, _MAX_FOCUS_NUMBER)
            state.append(self.embed_focus(number))
        return torch.cat(state, 1)
