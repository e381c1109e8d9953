"""The default network: attention over the sites of a cell, aware of its bonds.

References:
    Ying, Cai, Luo, Zheng, Ke, He, Shen, Liu, *Do Transformers Really Perform Badly for Graph
    Representation?*, NeurIPS 2021, arXiv:2106.05234 (attention biased by the graph).
    Schütt, Kindermans, Sauceda, Chmiela, Tkatchenko, Müller, *SchNet*, NeurIPS 2017,
    arXiv:1706.08566 (messages filtered by Gaussians of the distance).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crystal_gym.agents.batch import EVERY_SITE, GraphBatch
from crystal_gym.elements import GROUP, N_ELEMENTS, PERIOD

__all__ = ["SiteTransformer"]

_LENGTHS = (1.0, 4.6, 0.15)
"""Gaussians of a bond length: first and last centre, and their distance, in Å. 99.9% of MP-20's
bonds are in this range."""
_VOLUMES = (1.6, 4.6, 0.2)
"""The same of ln(volume per site / Å^3): from 5 to 100 Å^3."""
_GAPS = (0.0, 8.0, 0.5)
"""The same of the target gap, in eV."""
_N_SPACE_GROUPS = 230
_MESSAGE_WIDTH = 16
_FORBIDDEN = -1e4
"""Logit of attention to padding: its share is exactly 0, in bfloat16 too."""


class _Gaussians(nn.Module):
    """``exp(-((x - centre) / step)^2 / 2)`` on a grid, and 1: a smooth, exact code of a number."""

    def __init__(self, first: float, last: float, step: float) -> None:
        super().__init__()
        self._first, self._step = first, step
        self._count = round((last - first) / step) + 1
        self.width = self._count + 1

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(M,)`` to ``(M, width)``."""
        centres = self._first + self._step * torch.arange(self._count, device=x.device)
        codes = torch.exp(-0.5 * ((x[:, None] - centres) / self._step).square())
        return torch.cat([codes, torch.ones_like(x)[:, None]], 1)


@dataclass(frozen=True, eq=False)
class _Layout:
    """Where rows of a ragged batch lie in padded arrays of ``S`` slots a crystal.

    A crystal's rows are its sites and, in the last slot, its cell.

    Attributes:
        slots: ``S``.
        slot: Padded place of every site and then of every cell, int64 ``(N + B,)``.
        site_slot: The same of sites alone, within the first ``S - 1`` slots, int64 ``(N,)``.
        bonds: Gaussians of the lengths from site to site, ``(B, (S - 1) * K, S - 1)``.
    """

    slots: int
    slot: Tensor
    site_slot: Tensor
    bonds: Tensor

    def padded(self, x: Tensor) -> Tensor:
        """Return rows ``(N + B, n)`` as ``(B, S, n)``, 0 where there is none."""
        flat = x.new_zeros(self.bonds.shape[0] * self.slots, x.shape[1])
        return flat.index_copy(0, self.slot, x).view(-1, self.slots, x.shape[1])


class _Attention(nn.Module):
    """Multi-head attention among the sites and the cell of a crystal."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self._heads = heads
        self.project = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, layout: _Layout, bias: Tensor) -> Tensor:
        padded = layout.padded(self.project(x))
        b, s, _ = padded.shape
        width = padded.shape[2] // (3 * self._heads)
        query, key, value = padded.view(b, s, 3, self._heads, width).permute(2, 0, 3, 1, 4)
        scale = query.shape[-1] ** -0.5
        logits = torch.matmul(query * scale, key.transpose(2, 3)) + bias
        mixed = torch.matmul(logits.softmax(3), value)
        rows = mixed.transpose(1, 2).reshape(b * s, self._heads * width)
        rows = rows.index_select(0, layout.slot)
        return self.out(rows)


class _Messages(nn.Module):
    r"""Sums over bonds, :math:`W \sum_j g(d_{ij}) \otimes V x_j`: every filter of SchNet's at once.

    Unlike attention, which averages, sums tell how many bonds there are and how long they are.
    """

    def __init__(self, width: int, n_gaussians: int) -> None:
        super().__init__()
        self.send = nn.Linear(width, _MESSAGE_WIDTH, bias=False)
        self.receive = nn.Linear(n_gaussians * _MESSAGE_WIDTH, width, bias=False)

    def forward(self, x: Tensor, layout: _Layout) -> Tensor:
        """Map rows ``(N, width)`` of sites to the same shape."""
        b, _, sites = layout.bonds.shape
        sent = self.send(x)
        sent = sent.new_zeros(b * sites, _MESSAGE_WIDTH).index_copy(0, layout.site_slot, sent)
        sent = sent.view(b, sites, _MESSAGE_WIDTH)
        received = torch.bmm(layout.bonds, sent)
        received = received.view(b * sites, self.receive.in_features)
        return self.receive(received.index_select(0, layout.site_slot))


class _Layer(nn.Module):
    """Attention and messages, then two dense layers, each added to what it was given."""

    def __init__(self, width: int, heads: int, n_gaussians: int, dropout: float) -> None:
        super().__init__()
        self.norm_mix = nn.LayerNorm(width)
        self.attention = _Attention(width, heads)
        self.messages = _Messages(width, n_gaussians)
        self.norm_dense = nn.LayerNorm(width)
        self.dense = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )
        self._dropout = dropout

    def forward(self, x: Tensor, layout: _Layout, bias: Tensor) -> Tensor:
        normed = self.norm_mix(x).to(layout.bonds.dtype)
        n_sites = len(layout.site_slot)
        messages = F.pad(self.messages(normed[:n_sites], layout), (0, 0, 0, len(x) - n_sites))
        x = x + self._dropped(self.attention(normed, layout, bias) + messages)
        return x + self._dropped(self.dense(self.norm_dense(x)))

    def _dropped(self, x: Tensor) -> Tensor:
        if not self.training or self._dropout == 0.0:
            return x
        # One random byte a feature: nn.Dropout takes 2.7 times as long on a CPU.
        draws = torch.empty(-(-x.numel() // 8), dtype=torch.int64, device=x.device).random_(
            -(2**63), None
        )
        left_out = round(256 * self._dropout)
        kept = draws.view(torch.uint8)[: x.numel()].view(x.shape) >= left_out
        return x * kept.to(x.dtype).mul_(1.0 / (1.0 - left_out / 256))


class SiteTransformer(nn.Module):
    """Features of every site, and of the one to fill next.

    Sites enter by their element (or its absence) and the lengths of their bonds, the cell by its
    shape, volume per site, space group and target. No input says where a site stands in the list:
    renumbering the sites renumbers the features. Which site is in focus matters only when its
    features are read out, so one pass serves every site that may be filled next.

    Args:
        width: Of a site's features.
        n_layers: Rounds of attention and messages.
        heads: Of attention.
        dropout: Share of every layer's change that is left out in training, to 1/256.

    Attributes:
        precision: Number format of the arithmetic; weights, sums and results are in float32.
    """

    every_site = True

    def __init__(
        self, width: int = 128, n_layers: int = 5, heads: int = 8, dropout: float = 0.1
    ) -> None:
        super().__init__()
        self.n_features = width
        self.precision: torch.dtype = torch.float32
        self._heads = heads
        self.lengths = _Gaussians(*_LENGTHS)
        self.volumes = _Gaussians(*_VOLUMES)
        self.gaps = _Gaussians(*_GAPS)
        self.embed_element = nn.Embedding(N_ELEMENTS + 1, width)
        self.embed_group = nn.Embedding(int(GROUP.max()) + 2, width)
        self.embed_period = nn.Embedding(int(PERIOD.max()) + 2, width)
        self.embed_lengths = nn.Linear(self.lengths.width, width)
        self.embed_space_group = nn.Embedding(_N_SPACE_GROUPS + 1, width)
        n_cell = 6 + 2 + self.volumes.width + self.gaps.width
        self.embed_cell = nn.Sequential(
            nn.Linear(n_cell, width), nn.GELU(), nn.Linear(width, width)
        )
        self.bond_bias = nn.Sequential(
            nn.Linear(self.lengths.width, 32), nn.GELU(), nn.Linear(32, n_layers * heads)
        )
        # Of a pair of different sites, a site and itself, and the cell: as target, source, both.
        self.pair_bias = nn.Parameter(torch.zeros(5, n_layers * heads))
        self.layers = nn.ModuleList(
            _Layer(width, heads, self.lengths.width, dropout) for _ in range(n_layers)
        )
        self.norm = nn.LayerNorm(width)
        self.readout = nn.Sequential(nn.Linear(2 * width, width), nn.GELU())
        for table in (self.embed_element, self.embed_group, self.embed_period):
            nn.init.normal_(table.weight, std=0.5)
        nn.init.normal_(self.embed_space_group.weight, std=0.1)

    def forward(self, batch: GraphBatch) -> Tensor:
        """Return the features of the site in focus, ``(B, width)``.

        After the last site, when no site is in focus, they are the cell's. Where the focus is
        :data:`crystal_gym.agents.batch.EVERY_SITE` in all rows, they are those of every empty
        site, ``(M, width)``, in the order of ``batch.empty_sites``.
        """
        with self._arithmetic(batch):
            sites, cells = self._encoded(batch)
            if len(batch) and bool((batch.focus_site == EVERY_SITE).all()):
                place = batch.empty_sites
                focus, cells = sites[place], cells[batch.node_graph[place]]
            else:
                present = (batch.focus_site >= 0) & (batch.focus_site < batch.n_nodes)
                # Where no site is in focus, any row will do: it is not used.
                place = torch.where(present, batch.node_start[:-1] + batch.focus_site, 0)
                anywhere = torch.cat([sites, cells[:1]])
                focus = torch.where(present[:, None], anywhere[place], cells)
            return self.readout(torch.cat([focus, cells], 1)).float()

    def whole_crystals(self, batch: GraphBatch, known: Tensor | float = 0.0) -> Tensor:
        """Return features of each crystal, ``(B, width)``: of the mean of its sites and its cell.

        A property per atom is a mean over the sites of a cell, whatever its size.

        Args:
            batch: Crystals.
            known: What else is known of each cell, in features ``(B, width)``.

        Returns:
            float32 ``(B, width)``.
        """
        with self._arithmetic(batch):
            sites, cells = self._encoded(batch, known)
            mean = torch.zeros_like(cells).index_add_(0, batch.node_graph, sites)
            mean = mean / batch.n_nodes.clamp(min=1)[:, None]
            return self.readout(torch.cat([mean, cells], 1)).float()

    def _arithmetic(self, batch: GraphBatch) -> torch.autocast:
        halves = self.precision != torch.float32
        return torch.autocast(batch.lattice.device.type, self.precision, enabled=halves)

    def compile_layers(self) -> None:
        """Turn the layers into compiled code, at their next use, for batches of any size."""
        for layer in self.layers:
            layer.compile(dynamic=True)

    def _encoded(self, batch: GraphBatch, known: Tensor | float = 0.0) -> tuple[Tensor, Tensor]:
        """Return what the layers make of sites ``(N, width)`` and cells ``(B, width)``."""
        lengths = self.lengths(batch.distinct_length)
        bonds = lengths.index_select(0, batch.length_number) * batch.edge_weight[:, None]
        layout, biases = self._layout(batch, lengths, bonds)
        cells = self._cell_input(batch) + known
        x = torch.cat([self._site_input(batch, bonds, cells), cells])
        for layer, bias in zip(self.layers, biases, strict=True):
            x = layer(x, layout, bias)  # by its number it would be compiled for every layer anew
        x = self.norm(x)
        return x[: len(batch.element_token)], x[len(batch.element_token) :]

    def _site_input(self, batch: GraphBatch, bonds: Tensor, cells: Tensor) -> Tensor:
        token = batch.element_token
        group, period = _chemistry(token.device)
        around = bonds.new_zeros(len(token), bonds.shape[1]).index_add_(0, batch.source, bonds)
        return (
            self.embed_element(token)
            + self.embed_group(group[token])
            + self.embed_period(period[token])
            + self.embed_lengths(around)
            + cells.index_select(0, batch.node_graph)
        )

    def _cell_input(self, batch: GraphBatch) -> Tensor:
        cosines = torch.cos(torch.deg2rad(batch.lattice[:, 3:]))
        # A row of zeros is a crystal without sites or cell: keep the logarithms finite.
        lengths = batch.lattice[:, :3].clamp(min=0.1)
        n_sites = batch.n_nodes.clamp(min=1).to(lengths.dtype)
        box = 1.0 - cosines.square().sum(1) + 2.0 * cosines.prod(1)
        volume = lengths.prod(1) * box.clamp(min=1e-6).sqrt() / n_sites
        cell = [
            torch.log(lengths) - 1.8,
            cosines,
            torch.log(n_sites)[:, None] - 2.0,
            batch.conditional[:, None],
            self.volumes(torch.log(volume)),
            self.gaps(batch.target_gap) * batch.conditional[:, None],
        ]
        number = batch.space_group.long().clamp(0, _N_SPACE_GROUPS)
        return self.embed_cell(torch.cat(cell, 1)) + self.embed_space_group(number)

    def _layout(
        self, batch: GraphBatch, lengths: Tensor, bonds: Tensor
    ) -> tuple[_Layout, list[Tensor]]:
        """Return where things lie, and each layer's attention logits ``(B, heads, S, S)``."""
        n_graphs, n_nodes = len(batch), batch.n_nodes
        sites = int(n_nodes.max()) if n_graphs else 0
        slots = sites + 1
        graphs = torch.arange(n_graphs, device=n_nodes.device)
        site = torch.arange(len(batch.node_graph), device=n_nodes.device)
        site = site - batch.node_start.index_select(0, batch.node_graph)
        source = site.index_select(0, batch.source)
        target = site.index_select(0, batch.target)

        kind = torch.zeros(slots, slots, dtype=torch.long, device=n_nodes.device)
        kind.fill_diagonal_(1)
        kind[-1], kind[:, -1], kind[-1, -1] = 2, 3, 4
        padding = torch.arange(slots, device=n_nodes.device) >= n_nodes[:, None]
        padding[:, -1] = False
        forbidden = torch.where(padding, _FORBIDDEN, 0.0)[:, None, None, :]
        # Few pairs of sites are bonded: each bond's bias goes straight to its place.
        of_edge = self.bond_bias(lengths).index_select(0, batch.length_number)
        number_format = of_edge.dtype  # of the arithmetic: autocast's, where it is on
        of_edge = (of_edge.float() * batch.edge_weight[:, None]).t()

        # Bonds, target by source: a row of sums for every target and Gaussian.
        width = bonds.shape[1]
        row = (batch.edge_graph * sites + source) * sites + target
        pairs = bonds.new_zeros(n_graphs * sites * sites, width).index_add_(0, row, bonds)
        pairs = pairs.view(n_graphs, sites, sites, width).to(number_format).transpose(2, 3)

        head = torch.arange(self._heads, device=n_nodes.device)[:, None]
        place = (batch.edge_graph * self._heads + head) * slots + source
        place = (place * slots + target).flatten()
        of_pair = self.pair_bias[kind].permute(2, 0, 1)
        biases = []
        for own, common in zip(of_edge.split(self._heads), of_pair.split(self._heads), strict=True):
            logits = (common + forbidden).flatten()
            logits = logits.index_add(0, place, own.flatten())
            biases.append(logits.view(n_graphs, self._heads, slots, slots))
        layout = _Layout(
            slots=slots,
            slot=torch.cat([batch.node_graph * slots + site, graphs * slots + sites]),
            site_slot=batch.node_graph * sites + site,
            bonds=pairs.reshape(n_graphs, sites * width, sites),
        )
        return layout, biases


@lru_cache(maxsize=8)
def _chemistry(device: torch.device) -> tuple[Tensor, Tensor]:
    """Return group and period of every token, 0 for none."""
    return tuple(  # type: ignore[return-value]
        F.pad(torch.as_tensor(values, dtype=torch.long, device=device) + 1, (1, 0))
        for values in (GROUP, PERIOD)
    )
