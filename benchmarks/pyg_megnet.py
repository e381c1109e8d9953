"""The network of :mod:`crystal_gym.agents.megnet` in plain PyTorch Geometric, to compare with.

Every bond is its own edge, every layer its own operation: what one writes from the paper with
``MetaLayer``, ``scatter`` and ``Set2Set``. Parameters have the names of :class:`MEGNet`.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_geometric.data import Batch, Data
from torch_geometric.nn import MetaLayer, Set2Set
from torch_geometric.utils import scatter

from crystal_gym.elements import N_ELEMENTS
from crystal_gym.envs.observations import COMPACT_HEADER
from crystal_gym.skeletons import SkeletonSet


class MLP(nn.Module):
    def __init__(self, *sizes: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(map(nn.Linear, sizes[:-1], sizes[1:]))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = F.softplus(layer(x)) - math.log(2.0)
        return x


class EdgeModel(MLP):
    def forward(self, source, target, edges, state, graph_of_edge):
        return super().forward(torch.cat([source, target, edges, state[graph_of_edge]], 1))


class NodeModel(MLP):
    def forward(self, nodes, edge_index, edges, state, graph):
        mean = scatter(edges, edge_index[1], dim_size=len(nodes), reduce="mean")
        return super().forward(torch.cat([nodes, mean, state[graph]], 1))


class StateModel(MLP):
    def forward(self, nodes, edge_index, edges, state, graph):
        of_edges = scatter(edges, graph[edge_index[0]], dim_size=len(state), reduce="mean")
        of_nodes = scatter(nodes, graph, dim_size=len(state), reduce="mean")
        return super().forward(torch.cat([state, of_edges, of_nodes], 1))


class Block(nn.Module):
    def __init__(self, first: bool) -> None:
        super().__init__()
        self.dense = nn.ModuleList([] if first else [MLP(32, 64, 32) for _ in range(3)])
        self.layer = MetaLayer(
            EdgeModel(128, 64, 64, 32), NodeModel(96, 64, 64, 32), StateModel(96, 64, 64, 32)
        )

    def forward(self, edges, nodes, state, edge_index, graph):
        before = edges, nodes, state
        if len(self.dense):
            edges, nodes, state = (f(x) for f, x in zip(self.dense, before, strict=True))
        nodes, edges, state = self.layer(nodes, edge_index, edges, state, graph)
        return edges + before[0], nodes + before[1], state + before[2]


class PygMEGNet(nn.Module):
    """Batches of graphs to 16 features each, as :class:`crystal_gym.agents.MEGNet`."""

    def __init__(self, focus: str = "node") -> None:
        super().__init__()
        self.embed_element = nn.Embedding(N_ELEMENTS + 1, 16)
        if focus == "node":
            self.focus_vector = nn.Parameter(torch.randn(16))
        else:
            self.embed_focus = nn.Embedding(21, 8)
        self.focus = focus
        self.encode_nodes = MLP(16, 64, 32)
        self.encode_edges = MLP(1, 64, 32)
        self.encode_state = MLP(8 if focus == "node" else 16, 64, 32)
        self.blocks = nn.ModuleList(Block(first=i == 0) for i in range(3))
        self.pool_nodes = Set2Set(32, processing_steps=2)
        self.pool_edges = Set2Set(32, processing_steps=2)
        self.readout = MLP(160, 32, 16)

    def load_fast(self, state: dict[str, Tensor]) -> None:
        """Take the parameters of a :class:`crystal_gym.agents.MEGNet`."""
        models = {"update_edges": "edge_model", "update_nodes": "node_model"}
        models["update_state"] = "global_model"
        renamed = {}
        for name, value in state.items():
            for ours, theirs in models.items():
                name = name.replace(ours, f"layer.{theirs}")
            renamed[name] = value
        self.load_state_dict(renamed)

    def forward(self, batch: Data) -> Tensor:
        nodes, state = self.embed_element(batch.token), batch.state
        if self.focus == "node":
            nodes = nodes + batch.focus[:, None] * self.focus_vector
        else:
            state = torch.cat([state, self.embed_focus(batch.focus_site.clamp(max=20))], 1)
        edges = self.encode_edges(torch.exp(-batch.length.square() / 2)[:, None])
        nodes, state = self.encode_nodes(nodes), self.encode_state(state)
        for block in self.blocks:
            edges, nodes, state = block(edges, nodes, state, batch.edge_index, batch.batch)
        of_edge = batch.batch[batch.edge_index[0]]
        pooled = [
            self.pool_nodes(nodes, batch.batch, dim_size=len(state)),
            self.pool_edges(edges, of_edge, dim_size=len(state)),
            state,
        ]
        return self.readout(torch.cat(pooled, 1))


def pyg_graphs(skeletons: SkeletonSet, rows: np.ndarray) -> list[Data]:
    """Return compact rows as graphs; a row of zeros is a graph without sites."""
    first = len(COMPACT_HEADER)
    graphs = []
    for row in rows:
        n, state = 0, torch.zeros(1, 8)
        edge_index, length = torch.zeros(2, 0, dtype=torch.long), torch.zeros(0)
        if row[0] != 0:
            skeleton = skeletons[int(row[1])]
            n = skeleton.n_sites
            cell = [*skeleton.lattice_parameters, skeleton.space_group_number, row[4] * row[3]]
            state = torch.tensor([cell], dtype=torch.float32)
            edge_index = torch.from_numpy(skeleton.edge_index.astype(np.int64))
            length = torch.from_numpy(skeleton.edge_length)
        graphs.append(
            Data(
                token=torch.from_numpy(row[first : first + n].astype(np.int64)),
                focus=(torch.arange(n) == int(row[2])).float(),
                focus_site=torch.tensor([int(row[2])]),
                edge_index=edge_index,
                length=length,
                state=state,
                num_nodes=n,
            )
        )
    return graphs


class PygQNetwork(nn.Module):
    """The network and the linear layer to the value of every element."""

    def __init__(self, focus: str = "node") -> None:
        super().__init__()
        self.network = PygMEGNet(focus)
        self.head = nn.Linear(16, N_ELEMENTS)

    def forward(self, batch: Data) -> Tensor:
        return self.head(self.network(batch))


class PygCQL:
    """Conservative Q-learning the plain way: the TD and the conservative term each ask anew."""

    def __init__(self, gamma: float = 0.99, tau: float = 0.005) -> None:
        self.gamma, self.tau = gamma, tau
        self.online, self.target = PygQNetwork(), PygQNetwork()
        self.target.load_state_dict(self.online.state_dict())
        self.optimizer = torch.optim.Adam(self.online.parameters(), lr=3e-4)

    def update(
        self,
        graphs: list[Data],
        actions: Tensor,
        rewards: Tensor,
        next_graphs: list[Data],
        terminals: Tensor,
    ) -> float:
        """Take one gradient step on ``B`` graphs and columns ``(B, 1)``; return the loss."""
        now, later = Batch.from_data_list(graphs), Batch.from_data_list(next_graphs)
        with torch.no_grad():
            best = self.target(later).max(1, keepdim=True).values
            goal = rewards + self.gamma * (1 - terminals) * best
        td_loss = 0.5 * F.mse_loss(self.online(now).gather(1, actions), goal)
        values = self.online(now)
        conservative_loss = (values.logsumexp(1, keepdim=True) - values.gather(1, actions)).mean()
        loss = td_loss + conservative_loss
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.online.parameters(), 5.0)
        self.optimizer.step()
        with torch.no_grad():
            for old, new in zip(self.target.parameters(), self.online.parameters(), strict=True):
                old.lerp_(new, self.tau)
        return loss.item()
