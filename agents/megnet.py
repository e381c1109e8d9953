"""MEGNet as the paper behind crystal_gym uses it, written for speed.

References:
    Chen, Ye, Zuo, Zheng, Ong, *Graph Networks as a Universal Machine Learning Framework for
    Molecules and Crystals*, Chem. Mater. 2019, 31, 3564, doi 10.1021/acs.chemmater.9b01294.
    Govindarajan et al., *Learning conditional policies for crystal design using offline
    reinforcement learning*, Digital Discovery 2024, 3, 769, doi 10.1039/d4dd00024b.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_geometric.nn.aggr import Set2Set

from crystal_gym.agents.batch import GraphBatch
from crystal_gym.agents.kernels import Pairs, attention_pool, edge_mlp, mlp
from crystal_gym.agents.topology import Topology
from crystal_gym.elements import N_ELEMENTS

__all__ = ["FOCUS_FORMS", "MEGNet"]

FOCUS_FORMS = ("node", "index")
"""How the network learns which site is next: see :class:`MEGNet`."""

_WIDTH = 32
_N_BLOCKS = 3
_MAX_FOCUS_NUMBER = 20
"""Largest site number of the published network: MP-20 has at most 20 sites, and 20 is "none"."""


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
        self,
        edges: Tensor,
        skip: Tensor,
        nodes: Tensor,
        state: Tensor,
        topology: Topology,
        pairs: Pairs,
        before: Sequence[nn.Linear] = (),
    ) -> tuple[Tensor, Tensor]:
        """Map edges, which pass through other layers before, to the MLP's result and it + skip."""
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
            skip,
            ends,
            pairs,
            len(before),
            *(p for layer in before for p in (layer.weight, layer.bias)),
            of_edge,
            first.bias,
            *(p for layer in others for p in (layer.weight, layer.bias)),
        )


class _Block(nn.Module):
    """One round of messages: edges, then nodes, then the state, each added to what it was."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number
        self.dense = nn.ModuleList(
            [] if number == 0 else [_MLP(_WIDTH, 64, _WIDTH) for _ in ("edges", "nodes", "state")]
        )
        self.update_edges = _EdgeMLP()
        self.update_nodes = _MLP(3 * _WIDTH, 64, 64, _WIDTH)
        self.update_state = _MLP(3 * _WIDTH, 64, 64, _WIDTH)

    def forward(
        self, edges: Tensor, nodes: Tensor, state: Tensor, topology: Topology
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Map edges ``(E, 32)``, nodes ``(N, 32)``, state ``(B, 32)`` to the same shapes.

        Edges of the first block, and those that enter the second, are one a class, ``(K, 32)``.
        """
        nodes_before, state_before = nodes, state
        if self.dense:
            nodes, state = self.dense[1](nodes), self.dense[2](state)
        messages, edges = self._edges(edges, nodes, state, topology)
        is_first = self.number == 0
        sums = topology.over_first_edges(messages) if is_first else topology.over_edges(messages)
        nodes = self.update_nodes(
            torch.cat([nodes, sums / topology.degree, topology.at_nodes(state)], 1)
        )
        of_edges = topology.over_nodes(sums) / topology.n_bonds
        of_nodes = topology.over_nodes(nodes) / topology.n_nodes
        state = self.update_state(torch.cat([state, of_edges, of_nodes], 1))
        return edges, nodes + nodes_before, state + state_before

    def _edges(
        self, edges: Tensor, nodes: Tensor, state: Tensor, topology: Topology
    ) -> tuple[Tensor, Tensor]:
        """Return the messages along edges, and edges with these added."""
        first = topology.first
        if self.number == 0:
            return self.update_edges(edges, edges, nodes, state, topology, first.pairs)
        if self.number == 1:
            skip, edges = first.to_all(edges), first.to_all(self.dense[0](edges))
            return self.update_edges(edges, skip, nodes, state, topology, topology.pairs)
        dense = self.dense[0]
        assert isinstance(dense, _MLP)
        before = dense.linears()
        return self.update_edges(edges, edges, nodes, state, topology, topology.pairs, before)


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
        self.blocks = nn.ModuleList(_Block(i) for i in range(_N_BLOCKS))
        self.pool_nodes = _SortedSet2Set()
        self.pool_edges = _SortedSet2Set()
        self.readout = _MLP(5 * _WIDTH, _WIDTH, self.n_features)

    def forward(self, batch: GraphBatch) -> Tensor:
        """Return the features of every crystal, float32 ``(B, 16)``."""
        kinds = self._node_kinds()
        kind = batch.element_token
        if self.focus_vector is not None:
            kind = kind + (N_ELEMENTS + 1) * batch.focus.long()
        topology = Topology.of(batch, kind, len(kinds))
        nodes = F.embedding(kind, self.encode_nodes(kinds))
        # A bond and its reverse, and bonds that symmetry relates, have the same length: in MP-20
        # six edges share one, and each length is encoded once.
        lengths = self.encode_edges(torch.exp(-0.5 * batch.distinct_length.square())[:, None])
        edges = lengths.index_select(0, topology.first.length_number)
        state = self.encode_state(self._state_input(batch))
        for block in self.blocks:
            edges, nodes, state = block(edges, nodes, state, topology)
        pooled = [
            self.pool_nodes(nodes, batch.node_graph, batch.node_start),
            self.pool_edges(edges, batch.edge_graph, batch.edge_start, weight=batch.edge_weight),
            state,
        ]
        return self.readout(torch.cat(pooled, 1))

    def _node_kinds(self) -> Tensor:
        """Return what nodes can be before any message: every element, then each with the focus."""
        elements = self.embed_element.weight
        if self.focus_vector is None:
            return elements
        return torch.cat([elements, elements + self.focus_vector])

    def _state_input(self, batch: GraphBatch) -> Tensor:
        state = [batch.lattice, batch.space_group[:, None], batch.target_gap[:, None]]
        if self.embed_focus is not None:
            number = batch.focus_site.clamp(0, _MAX_FOCUS_NUMBER)
            state.append(self.embed_focus(number))
        return torch.cat(state, 1)
