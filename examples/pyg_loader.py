"""A PyTorch Geometric DataLoader over skeletons, and a small graph network that learns from it.

Every graph is a bundled crystal: elements on the nodes, distances on the edges, its DFT gap as the
answer. Prints a batch, and the error on a quarter of the crystals that was held out beside that of
always guessing the median. Half a minute. The bundled surrogate is a far better predictor.

python examples/pyg_loader.py [EPOCHS]
"""

import sys

import torch
from torch import Tensor, nn
from torch_geometric.data import Batch, Data
from torch_geometric.loader import DataLoader
from torch_geometric.nn import CGConv, global_mean_pool

from crystal_gym.oracles import PropertyTable, Status, load_table


def to_graph(table: PropertyTable, entry: int) -> Data:
    """Return a crystal of the table as a graph."""
    skeleton = table.skeletons[int(table.skeleton[entry])]
    return Data(
        element_token=torch.from_numpy(table.entry_tokens(entry)).long(),
        edge_index=torch.from_numpy(skeleton.edge_index).long(),
        edge_length=torch.from_numpy(skeleton.edge_length.copy()),  # Å
        band_gap_ev=torch.tensor([table.band_gap_ev[entry]]).float(),
        num_nodes=skeleton.n_sites,
    )


class Network(nn.Module):
    """Crystal-graph convolutions and a mean over the sites."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.embed = nn.Embedding(89, width)
        self.layers = nn.ModuleList(CGConv(width, dim=16, batch_norm=True) for _ in range(3))
        self.answer = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 1))

    def forward(self, batch: Batch) -> Tensor:
        """Return a gap (eV) for every crystal."""
        centres = torch.linspace(1.0, 5.0, 16)  # Å
        edges = torch.exp(-((batch.edge_length[:, None] - centres) ** 2) / 0.1)
        nodes = self.embed(batch.element_token)
        for layer in self.layers:
            nodes = layer(nodes, batch.edge_index, edges)
        return self.answer(global_mean_pool(nodes, batch.batch))[:, 0]


def main(epochs: int = 60) -> None:
    """Train and print errors."""
    torch.manual_seed(0)
    table = load_table("mini")
    graphs = [to_graph(table, i) for i in range(len(table)) if table.status[i] == Status.OK]
    held_out = next(iter(DataLoader(graphs[3::4], batch_size=len(graphs))))
    training = [graph for i, graph in enumerate(graphs) if i % 4 != 3]
    loader = DataLoader(training, batch_size=32, shuffle=True)
    print(next(iter(loader)))
    median = torch.cat([graph.band_gap_ev for graph in training]).median()
    print(f"always the median: {(held_out.band_gap_ev - median).abs().mean():.2f} eV")
    network = Network()
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3)
    for epoch in range(1, epochs + 1):
        network.train()
        for batch in loader:
            optimizer.zero_grad()
            (network(batch) - batch.band_gap_ev).abs().mean().backward()
            optimizer.step()
        if epoch % max(1, epochs // 5) == 0:
            with torch.no_grad():
                error = (network.eval()(held_out) - held_out.band_gap_ev).abs().mean()
            print(f"epoch {epoch:3d}: mean absolute error {error:.2f} eV")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
