"""A surrogate of the DFT table: an ensemble of networks from finished crystals to properties.

What it says is a prediction with a standard deviation, never DFT. A saved surrogate is a folder of
two files, ``config.json`` and ``weights.pt``, neither of which can run code.
"""

from __future__ import annotations

import dataclasses
import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, reduce
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase.data import covalent_radii
from numpy.typing import NDArray
from torch import Tensor, nn

import crystal_gym
from crystal_gym.agents.batch import GraphBatch, rows_to_batch
from crystal_gym.agents.model_files import (
    CONFIG,
    WEIGHTS,
    model_folder,
    one_line,
    read_weights,
    require_modest,
    write_model,
)
from crystal_gym.agents.transformer import SiteTransformer
from crystal_gym.elements import ATOMIC_NUMBERS, ELEMENTS, N_ELEMENTS
from crystal_gym.envs.observations import finished_rows
from crystal_gym.files import read_json, sha256_of
from crystal_gym.skeletons import Skeleton

__all__ = [
    "BUNDLED_SURROGATE",
    "Surrogate",
    "SurrogatePrediction",
    "SurrogateScores",
    "load_surrogate",
    "save_surrogate",
]

BUNDLED_SURROGATE = Path(crystal_gym.__file__).parent / "data" / "surrogate"
"""Folder of the surrogate that comes with the package; its model card is beside it."""

_CHUNK = 256
_FORMAT = 3
_SCALE = ":scale"
_N_EXTENTS = 5
_ONE_SIGMA = 68.27
"""Per cent of a normal distribution within one standard deviation."""

_UNLIKE = 99.0
"""Per cent of held-out training crystals that count as like the training data."""


@dataclass(frozen=True, eq=False)
class MemberOutput:
    """What one member says of ``B`` crystals.

    Attributes:
        features: What its heads read, ``(B, width)``.
        metal_logit: Log-odds of a gap of 0, ``(B,)``.
        gap: eV, ``(B,)``; may be below 0.
        energy: Formation energy, eV/atom, ``(B,)``.
        log_scale: Natural logarithm of the mean absolute errors it expects of gap (eV) and energy
            (eV/atom), ``(B, 2)``.
    """

    features: Tensor
    metal_logit: Tensor
    gap: Tensor
    energy: Tensor
    log_scale: Tensor


def electron_parity(batch: GraphBatch) -> Tensor:
    """Return whether electrons can pair: what sums over sites and attention cannot count.

    Bands of an odd number of electrons in a cell are half full: a metal, or a magnet.

    Args:
        batch: Finished crystals. A pseudopotential leaves out an even number of electrons.

    Returns:
        int64 ``(B,)``: 0 where the formula unit has an even number of electrons, 1 where it has an
        odd one and the cell an even one, 2 where the cell has an odd one.
    """
    token, n_graphs = batch.element_token, len(batch)
    counts = torch.zeros(n_graphs, N_ELEMENTS + 1, dtype=torch.long, device=token.device)
    counts.index_put_((batch.node_graph, token), torch.ones_like(token), accumulate=True)
    counts = counts[:, 1:]
    units = reduce(torch.gcd, counts.unbind(1)).clamp(min=1)
    numbers = torch.as_tensor(ATOMIC_NUMBERS, dtype=torch.long, device=token.device)
    in_cell = (counts * numbers).sum(1)
    return in_cell.remainder(2) + (in_cell // units).remainder(2)


class SurrogateMember(nn.Module):
    """One network from crystals to properties."""

    def __init__(self, width: int, n_layers: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.encoder = SiteTransformer(width, n_layers, heads, dropout)
        self.electrons = nn.Embedding(3, width)
        self.out = nn.Linear(width, 5)
        # An element's own share of the energy: reference energies differ by whole eV.
        self.element_energy = nn.Embedding(N_ELEMENTS + 1, 1)
        nn.init.zeros_(self.element_energy.weight)

    def forward(self, batch: GraphBatch) -> MemberOutput:
        """Return what it says of the crystals of a batch."""
        features = self.encoder.whole_crystals(batch, self.electrons(electron_parity(batch)))
        metal, gap, energy, *log_scale = self.out(features).unbind(1)
        atoms = self.element_energy(batch.element_token)[:, 0]
        total = torch.zeros_like(energy).index_add_(0, batch.node_graph, atoms)
        energy = energy + total / batch.n_nodes.clamp(min=1)
        return MemberOutput(features, metal, gap, energy, torch.stack(log_scale, 1).clamp(-6, 3))


@dataclass(frozen=True, eq=False)
class SurrogatePrediction:
    """What an ensemble says of ``B`` crystals; nothing of it is DFT.

    Attributes:
        band_gap_ev: Not below 0, ``(B,)``.
        band_gap_std_ev: ``(B,)``.
        formation_energy_ev_per_atom: ``(B,)``.
        formation_energy_std_ev_per_atom: ``(B,)``.
        metal_probability: Of a DFT gap of 0, ``(B,)``.
        training_distance: Mahalanobis distance of the ensemble's features to those of the
            training crystals, in units of what 99 in 100 held-out ones stay below, ``(B,)``.
        unlike_training: Above 1, or with an element, a number of sites, a density or a shortest
            bond (both also in units of the atoms' radii) beyond those of the training crystals,
            bool ``(B,)``.
    """

    band_gap_ev: NDArray[np.float64]
    band_gap_std_ev: NDArray[np.float64]
    formation_energy_ev_per_atom: NDArray[np.float64]
    formation_energy_std_ev_per_atom: NDArray[np.float64]
    metal_probability: NDArray[np.float64]
    training_distance: NDArray[np.float64]
    unlike_training: NDArray[np.bool_]


@dataclass(frozen=True)
class SurrogateScores:
    """Errors against DFT labels.

    Attributes:
        gap_mae_ev: Mean absolute error of the gap, eV.
        energy_mae_ev_per_atom: Of the formation energy, eV/atom.
        metal_accuracy: Share of crystals rightly said to have a gap, or none.
    """

    gap_mae_ev: float
    energy_mae_ev_per_atom: float
    metal_accuracy: float


class Surrogate(nn.Module):
    """An ensemble, its calibration and what it remembers of its training data.

    The mean over the members predicts; a crystal that is more likely a metal than not has a gap of
    0. A standard deviation joins the spread of the members with the errors that they expect, times
    a factor for which 68% of held-out training crystals lie within one.

    Args:
        members: Networks.
        width: Features of a site.
        n_layers: Rounds of attention and messages.
        heads: Of attention.
        dropout: Share of every layer's change that is left out in training.
    """

    factor: Tensor
    feature_mean: Tensor
    whitening: Tensor
    usual_distance: Tensor
    lowest: Tensor
    highest: Tensor
    elements: Tensor

    def __init__(
        self, members: int, width: int, n_layers: int, heads: int, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.shape = {"members": members, "width": width, "n_layers": n_layers, "heads": heads}
        self.members = nn.ModuleList(
            SurrogateMember(width, n_layers, heads, dropout) for _ in range(members)
        )
        n_features = members * width
        self.register_buffer("factor", torch.ones(2))
        self.register_buffer("feature_mean", torch.zeros(n_features))
        self.register_buffer("whitening", torch.eye(n_features))
        self.register_buffer("usual_distance", torch.ones(()))
        self.register_buffer("lowest", torch.full((_N_EXTENTS,), -math.inf))
        self.register_buffer("highest", torch.full((_N_EXTENTS,), math.inf))
        self.register_buffer("elements", torch.ones(N_ELEMENTS + 1))

    @torch.no_grad()
    def start_from_mean(self, mean: Tensor) -> None:
        """Let every member begin with the mean gap (eV) and formation energy (eV/atom)."""
        for member in self.members:
            assert isinstance(member, SurrogateMember)
            member.out.bias[1:3] = mean

    def predict(self, rows: NDArray[np.float32]) -> SurrogatePrediction:
        """Return predictions for finished crystals.

        Args:
            rows: Compact or packed rows whose focus is no site, float32 ``(B, D)``.

        Returns:
            Arrays ``(B,)``, in eV and eV/atom, in the order of the rows.
        """
        said = self._say(rows)
        std = said.spread * self.factor.double().cpu().numpy()
        distance = self._distance(said.features) / float(self.usual_distance)
        return SurrogatePrediction(
            band_gap_ev=said.values[:, 0],
            band_gap_std_ev=std[:, 0],
            formation_energy_ev_per_atom=said.values[:, 1],
            formation_energy_std_ev_per_atom=std[:, 1],
            metal_probability=said.metal,
            training_distance=distance,
            unlike_training=(distance > 1.0) | said.beyond,
        )

    def predict_fillings(
        self, skeletons: Sequence[Skeleton], tokens: Sequence[NDArray[np.integer]]
    ) -> SurrogatePrediction:
        """Return predictions for filled skeletons of any sets.

        Args:
            skeletons: Of each crystal.
            tokens: Its elements, no site empty, ``(n_sites,)``.

        Returns:
            Arrays with a number for every crystal, in eV and eV/atom, in the order given.
        """
        return self.predict(finished_rows(skeletons, tokens))

    def calibrate(
        self,
        training_rows: Sequence[NDArray[np.float32]],
        held_out_rows: Sequence[NDArray[np.float32]],
        labels: NDArray[np.float64],
    ) -> SurrogateScores:
        """Fit standard deviations and the warning to crystals that no member learned from.

        Args:
            training_rows: Rows of the crystals that were learned from, of each origin.
            held_out_rows: Rows of crystals that were not, of each origin.
            labels: Gaps (eV) and formation energies (eV/atom) of the first origin's, ``(K, 2)``;
                the standard deviations are fitted to these.

        Returns:
            Errors on the held-out crystals of the first origin, in eV and eV/atom.
        """
        learned = _Said.joined([self._say(rows) for rows in training_rows])
        self.feature_mean.copy_(torch.from_numpy(learned.features.mean(0)))
        covariance = np.cov(learned.features, rowvar=False)
        # Directions in which nothing varied may not decide: a crystal is not strange for them.
        covariance += 1e-3 * np.trace(covariance) / len(covariance) * np.eye(len(covariance))
        self.whitening.copy_(torch.from_numpy(np.linalg.cholesky(np.linalg.inv(covariance))))
        self.lowest.copy_(torch.from_numpy(learned.extent.min(0)))
        self.highest.copy_(torch.from_numpy(learned.extent.max(0)))
        self.elements.copy_(torch.from_numpy(learned.elements.any(0)))
        said, *others = [self._say(rows) for rows in held_out_rows]
        distances = self._distance(_Said.joined([said, *others]).features)
        self.usual_distance.fill_(float(np.percentile(distances, _UNLIKE)))
        error = np.abs(said.values - labels)
        ratio = np.percentile(error / said.spread, _ONE_SIGMA, axis=0)
        self.factor.copy_(torch.from_numpy(ratio))
        return SurrogateScores(
            gap_mae_ev=float(error[:, 0].mean()),
            energy_mae_ev_per_atom=float(error[:, 1].mean()),
            metal_accuracy=float(((said.metal > 0.5) == (labels[:, 0] == 0)).mean()),
        )

    def _distance(self, features: NDArray[np.float64]) -> NDArray[np.float64]:
        mean, whitening = (t.double().cpu().numpy() for t in (self.feature_mean, self.whitening))
        distance: NDArray[np.float64] = np.linalg.norm((features - mean) @ whitening, axis=1)
        return distance / math.sqrt(features.shape[1])

    @torch.inference_mode()
    def _say(self, rows: NDArray[np.float32]) -> _Said:
        self.eval()
        parts = []
        for first in range(0, max(1, len(rows)), _CHUNK):
            part = torch.from_numpy(np.ascontiguousarray(rows[first : first + _CHUNK]))
            batch = rows_to_batch(part.to(self.factor.device))
            parts.append(self._say_of(batch))
        return _Said.joined(parts)

    def _say_of(self, batch: GraphBatch) -> _Said:
        found = [member(batch) for member in self.members]
        both = torch.stack([torch.stack([m.gap, m.energy], 1) for m in found]).double()
        metal = torch.stack([m.metal_logit for m in found]).double().sigmoid().mean(0)
        mean = both.mean(0)
        gap = torch.where(metal > 0.5, 0.0, mean[:, 0].clamp(min=0.0))
        expected = torch.stack([m.log_scale for m in found]).double().exp().mean(0)
        # An expected absolute error of a Laplace distribution has sqrt(2) times that deviation.
        spread = (both.var(0, unbiased=False) + 2.0 * expected.square()).sqrt()
        extent = _extent(batch)
        seen = torch.zeros(len(batch), N_ELEMENTS + 1, dtype=torch.bool, device=gap.device)
        seen[batch.node_graph, batch.element_token] = True
        beyond = ((extent < self.lowest) | (extent > self.highest)).any(1)
        beyond |= (seen & (self.elements == 0)).any(1)
        features = torch.cat([m.features for m in found], 1).double()
        tensors = (torch.stack([gap, mean[:, 1]], 1), spread, metal, features, extent, seen, beyond)
        return _Said(*(t.cpu().numpy() for t in tensors))


@dataclass(frozen=True, eq=False)
class _Said:
    """What an ensemble says before calibration, and what it looks at, of ``B`` crystals."""

    values: NDArray[np.float64]
    spread: NDArray[np.float64]
    metal: NDArray[np.float64]
    features: NDArray[np.float64]
    extent: NDArray[np.float32]
    elements: NDArray[np.bool_]
    beyond: NDArray[np.bool_]

    @classmethod
    def joined(cls, parts: Sequence[_Said]) -> _Said:
        names = [f.name for f in dataclasses.fields(cls)]
        return cls(*(np.concatenate([getattr(p, name) for p in parts]) for name in names))


def _extent(batch: GraphBatch) -> Tensor:
    """Return what a crystal's size and density are judged by, ``(B, 5)``.

    Number of sites; volume per site (Å^3); shortest bond (Å); the shortest bond over the sum of the
    covalent radii of its atoms; and the volume over the sum of their cubes. The last two know that
    what is usual between hydrogen atoms is far too close for caesium.
    """
    n_sites = batch.n_nodes.float()
    lengths, angles = batch.lattice[:, :3], torch.deg2rad(batch.lattice[:, 3:])
    cos = angles.cos()
    root = 1.0 + 2.0 * cos.prod(1) - cos.square().sum(1)
    volume = lengths.prod(1) * root.clamp(min=0.0).sqrt()
    radius = _radii(batch.lattice.device).index_select(0, batch.element_token)
    filled = torch.zeros_like(volume).index_add_(0, batch.node_graph, radius**3)
    shortest, closest = (torch.full_like(volume, math.inf) for _ in range(2))
    shortest.scatter_reduce_(0, batch.edge_graph, batch.edge_length, "amin")
    touching = radius.index_select(0, batch.source) + radius.index_select(0, batch.target)
    closest.scatter_reduce_(0, batch.edge_graph, batch.edge_length / touching, "amin")
    per_site = volume / n_sites.clamp(min=1.0)
    return torch.stack([n_sites, per_site, shortest, closest, volume / filled], 1)


@lru_cache(maxsize=8)
def _radii(device: torch.device) -> Tensor:
    """Return the covalent radius (Å) by element token; Cordero et al., doi 10.1039/b801115j."""
    known = covalent_radii[ATOMIC_NUMBERS]
    return torch.tensor([1.0, *known], dtype=torch.float32, device=device)


def in_eight_bits(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return weights for a small file: matrices as whole numbers, a scale for each row beside them.

    What is no matrix of a network is small; it stays, in 16 bits where it is a network's.
    """
    small = {}
    for name, tensor in weights.items():
        if not name.startswith("members."):
            small[name] = tensor
        elif tensor.ndim == 2 and tensor.shape[1] > 1:
            scale = tensor.abs().amax(1, keepdim=True).clamp(min=1e-12) / 127.0
            small[name] = (tensor / scale).round().to(torch.int8)
            small[name + _SCALE] = scale
        else:
            small[name] = tensor.half()
    return small


def _in_full(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights that :func:`in_eight_bits` made small; others as they are."""
    return {
        name: tensor * weights[name + _SCALE] if name + _SCALE in weights else tensor
        for name, tensor in weights.items()
        if not name.endswith(_SCALE)
    }


def save_surrogate(
    surrogate: Surrogate, folder: Path | str, metadata: dict[str, Any] | None = None
) -> None:
    """Write a surrogate to a folder, without pickles.

    Args:
        surrogate: Trained and calibrated.
        folder: Where to write ``config.json`` and ``weights.pt``; made if need be.
        metadata: Anything JSON can hold.
    """
    config = {
        "format": _FORMAT,
        "type": "crystal_surrogate",
        "shape": surrogate.shape,
        "elements": " ".join(ELEMENTS),
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "metadata": metadata or {},
    }
    write_model(Path(folder), config, surrogate.state_dict())


def load_surrogate(
    path: Path | str | None = None, device: str = "cpu"
) -> tuple[Surrogate, dict[str, Any]]:
    """Return a surrogate and its metadata, by default the one that comes with the package.

    Args:
        path: Folder of :func:`save_surrogate`, or of ``crystal-gym train surrogate``; None
            for the bundled one.
        device: ``"cpu"`` or ``"cuda:0"``.

    Returns:
        The surrogate on the device, not in training mode; and its metadata, with the checksum of
        the weights as ``weights_sha256``.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If it is damaged, of another version, or could run code.
    """
    folder = BUNDLED_SURROGATE if path is None else surrogate_folder(path)
    for file in (folder, folder / CONFIG, folder / WEIGHTS):
        if not file.exists():
            raise FileNotFoundError(
                f"{file} does not exist: expected the folder of a surrogate, with {CONFIG} and "
                f"{WEIGHTS}, or a run of `crystal-gym train surrogate`; check the path"
            )
    weights_file = folder / WEIGHTS
    try:
        config = read_json(folder / CONFIG)
        found, shape = (config["type"], config["format"]), config["shape"]
        if found != ("crystal_surrogate", _FORMAT) or config["elements"].split() != [*ELEMENTS]:
            raise ValueError(f"type and format {found}")
        n_features = shape["members"] * shape["width"]
        require_modest({**shape, "whitening": [n_features, n_features]}, weights_file)
        surrogate = Surrogate(**shape)
        metadata = {**config["metadata"], "weights_sha256": str(config.get("weights_sha256"))}
    except _NO_SURROGATE as error:
        raise ValueError(
            f"{folder / CONFIG} does not describe a surrogate of this version "
            f"({one_line(error)}): expected one of save_surrogate(); train it again"
        ) from error
    if sha256_of(folder / WEIGHTS) != config.get("weights_sha256"):
        raise ValueError(
            f"{folder / WEIGHTS} is not the file that {CONFIG} was written with: expected the "
            f"checksum {str(config.get('weights_sha256'))[:64]}; copy or train the surrogate again"
        )
    weights = read_weights(folder / WEIGHTS, "save_surrogate()")
    try:
        surrogate.load_state_dict(_in_full(weights))
    except (LookupError, RuntimeError, TypeError) as error:
        raise ValueError(
            f"{folder / WEIGHTS} does not fit the network in {CONFIG}: expected weights of the "
            "same surrogate; copy or train it again"
        ) from error
    return surrogate.to(device).eval(), metadata


# What torch raises on a shape that is none.
_NO_SURROGATE = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    MemoryError,
    RuntimeError,
    TypeError,
    ValueError,
)


def surrogate_folder(path: Path | str) -> Path:
    """Return the folder of a saved surrogate: ``surrogate/`` in that of a run, or itself."""
    return model_folder(path, "surrogate")
