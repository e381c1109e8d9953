"""Training of the surrogate: one frozen configuration, one folder that repeats it.

A run's folder holds ``config.json`` (settings, versions), ``log.csv`` and ``tensorboard/``,
``checkpoint.pt`` (to go on from, bit for bit on a CPU) and ``surrogate/``, which
:class:`crystal_gym.oracles.SurrogateOracle` and :func:`crystal_gym.agents.load_surrogate` read.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import d3rlpy
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from crystal_gym.agents.batch import GraphBatch, rows_to_batch
from crystal_gym.agents.optimizers import MuonFactory
from crystal_gym.agents.processes import ALONE, Processes, averages_gradients
from crystal_gym.agents.runs import (
    TrainingRun,
    finished_run,
    load_checkpoint,
    prepare_network,
    require,
    require_finite,
    require_usual,
    settings_from_dict,
)
from crystal_gym.agents.schedules import WarmupCosineFactory
from crystal_gym.agents.surrogate import (
    MemberOutput,
    Surrogate,
    SurrogateScores,
    save_surrogate,
)
from crystal_gym.datasets.replay import load_trajectories
from crystal_gym.datasets.trajectories import Trajectories
from crystal_gym.envs.observations import compact_rows
from crystal_gym.files import atomic_path
from crystal_gym.oracles import PropertyTable, Status, load_table

__all__ = ["LabelledCrystals", "SurrogateConfig", "train_surrogate"]

_POOL = 8
"""Batches are drawn by size of the crystal within so many: padding is a third of the work else."""
_TABLE_SHARE = 0.25
"""Crystals of a table in a step, for each of the dataset."""
_SMOOTHING = 0.1
"""Of the labels metal and not: a network that is sure of all of them learns the wrong ones too."""
_ENERGY_WEIGHT, _METAL_WEIGHT, _SCALE_WEIGHT = 4.0, 0.5, 0.1
"""Of the losses beside the gap's: an error of 0.05 eV/atom weighs as one of 0.2 eV in the gap."""


@dataclass(frozen=True)
class SurrogateConfig:
    """Settings of a surrogate.

    Attributes:
        dataset: Minari id; each of its labelled crystals is used once.
        tables: Names or paths of property tables (:func:`crystal_gym.oracles.load_table`) whose
            crystals are learned from as well; every step sees one of each for four of the dataset.
            What a table does not know, such as energies of ``mp20-metals``, it does not teach.
        held_out: Share of the crystals of each that no member learns from: the standard
            deviations are calibrated on the dataset's, the warning of unlike crystals on all.
        members: Networks of the ensemble. They differ in their random start.
        width: Features of a site.
        layers: Rounds of attention and messages.
        heads: Of attention; they divide the width.
        dropout: Share of every layer's change that is left out in training.
        steps: Gradient steps.
        batch_size: Crystals a step.
        learning_rate: At its highest; it falls along a cosine.
        warmup: Steps in which it rises.
        weight_decay: Of the optimizer, :class:`crystal_gym.agents.MuonFactory`.
        averaging: Share of the old value in the running average of the weights, which is what
            predicts; 0 for none.
        evaluate_every: Steps between two looks at the held-out crystals, each of which also writes
            a checkpoint and the surrogate.
        seed: Of everything random.
        device: ``auto``, ``cpu``, ``cuda:0``.
        precision: ``auto`` (``bfloat16`` on CUDA), ``float32`` or ``bfloat16``, in training.
        compile: ``auto`` (on CUDA), ``on`` or ``off``.
    """

    dataset: str = "crystal-mp20-v0"
    tables: tuple[str, ...] = ()
    held_out: float = 0.08
    members: int = 4
    width: int = 96
    layers: int = 4
    heads: int = 6
    dropout: float = 0.1
    steps: int = 1_500
    batch_size: int = 128
    learning_rate: float = 5e-3
    warmup: int = 100
    weight_decay: float = 0.1
    averaging: float = 0.99
    evaluate_every: int = 250
    seed: int = 0
    device: str = "auto"
    precision: str = "auto"
    compile: str = "auto"

    def __post_init__(self) -> None:
        require_usual(self)
        for name in ("members", "width", "layers", "heads"):
            require(self, name, getattr(self, name) >= 1, "a whole number above 0")
        require(self, "heads", self.width % self.heads == 0, f"a divisor of width={self.width}")
        require(self, "held_out", 0 < self.held_out <= 0.5, "a share above 0 and up to 0.5")
        require(self, "dropout", 0 <= self.dropout < 1, "a share from 0 to below 1")
        named = isinstance(self.tables, tuple) and all(isinstance(t, str) for t in self.tables)
        require(self, "tables", named, "a list of names or paths")
        require(self, "tables", len({*self.tables}) == len(self.tables), "each of them once")
        require(self, "seed", 0 <= self.seed < 2**32, "a whole number from 0 to 2^32 - 1")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> SurrogateConfig:
        """Return the settings that a TOML or JSON file holds.

        Args:
            values: Settings by name; those left out keep their defaults.

        Returns:
            The settings, checked.

        Raises:
            ValueError: If a name is unknown or a value is of the wrong kind.
        """
        return settings_from_dict(cls, values)


@dataclass(frozen=True, eq=False)
class LabelledCrystals:
    """Finished crystals with their DFT labels, one row each.

    Attributes:
        rows: Compact rows whose focus is no site, float32 ``(K, D)``.
        n_sites: int64 ``(K,)``.
        band_gap_ev: float64 ``(K,)``, NaN where unknown.
        formation_energy_ev_per_atom: float64 ``(K,)``, NaN where unknown.
    """

    rows: NDArray[np.float32]
    n_sites: NDArray[np.int64]
    band_gap_ev: NDArray[np.float64]
    formation_energy_ev_per_atom: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.rows)

    @classmethod
    def of_trajectories(cls, data: Trajectories) -> LabelledCrystals:
        """Return every crystal of some episodes once."""
        first = np.sort(data.crystals)
        skeleton, n_sites = data.skeleton[first], data.skeletons.n_sites[data.skeleton[first]]
        return cls(
            compact_rows(data.skeletons, skeleton, data.finished[first], n_sites, None),
            n_sites,
            data.band_gap_ev[first],
            data.formation_energy_ev_per_atom[first],
        )

    @classmethod
    def of_table(cls, table: PropertyTable) -> LabelledCrystals:
        """Return every entry of which the gap or the formation energy is known."""
        gap, energy = table.band_gap_ev, table.formation_energy_ev_per_atom
        usable = (table.status == Status.OK.value) & ~(np.isnan(gap) & np.isnan(energy))
        table = table.of_entries(np.flatnonzero(usable))
        n_sites = table.skeletons.n_sites[table.skeleton]
        tokens = np.zeros((len(table), table.skeletons.max_sites), np.int16)
        tokens[np.arange(tokens.shape[1]) < n_sites[:, None]] = table.tokens
        return cls(
            compact_rows(table.skeletons, table.skeleton, tokens, n_sites, None),
            n_sites,
            table.band_gap_ev,
            table.formation_energy_ev_per_atom,
        )

    def subset(self, which: NDArray[np.integer]) -> LabelledCrystals:
        """Return some crystals by number."""
        return LabelledCrystals(
            *(getattr(self, field.name)[which] for field in dataclasses.fields(self))
        )

    @cached_property
    def labels(self) -> Tensor:
        """Gap (eV) and formation energy (eV/atom), float32 ``(K, 2)``, NaN where unknown."""
        both = np.column_stack([self.band_gap_ev, self.formation_energy_ev_per_atom])
        return torch.from_numpy(both.astype(np.float32))


def train_surrogate(
    config: SurrogateConfig, folder: Path | str, *, progress: bool = True
) -> SurrogateScores:
    """Train a surrogate, or go on with a run that was interrupted.

    Under ``torchrun`` every process takes its share of each batch, and the first one evaluates and
    writes.

    Args:
        config: Settings.
        folder: The run's folder; one that holds a run of the same settings is continued.
        progress: Show a progress bar on standard error.

    Returns:
        Its measures on the held-out crystals of the training data.

    Raises:
        ValueError: If the folder holds a run of other settings, the dataset is not there or too
            small, or the loss is not finite.
        MemoryError: If a batch does not fit into memory.
        OSError: If another process is training there.
        KeyboardInterrupt: After Ctrl-C or SIGTERM, with the state stored.
    """
    with finished_run(_Run, config, folder, progress) as run:
        if run.scores is None and run.processes.first:  # a run that was at its end already
            run.evaluate()
        scores: SurrogateScores | None = run.processes.from_first(run.scores)
    assert scores is not None
    return scores


@dataclass(frozen=True)
class _Part:
    """Crystals of one origin: learned from, held out, and how many a step sees."""

    training: LabelledCrystals
    held_out: LabelledCrystals
    batch_size: int

    @classmethod
    def of(
        cls, crystals: LabelledCrystals, origin: str, config: SurrogateConfig, batch_size: int
    ) -> _Part:
        order = np.random.default_rng([config.seed, 0]).permutation(len(crystals))
        n_held_out = round(config.held_out * len(crystals))
        if n_held_out < 2 or len(crystals) - n_held_out < 2:
            raise ValueError(
                f"{origin} has {len(crystals)} crystals, of which held_out="
                f"{config.held_out:g} leaves {n_held_out} to calibrate on: expected at least 2 on "
                "either side"
            )
        held_out = crystals.subset(np.sort(order[:n_held_out]))
        return cls(crystals.subset(np.sort(order[n_held_out:])), held_out, batch_size)

    def batch(
        self, config: SurrogateConfig, step: int, device: str, share: slice
    ) -> tuple[GraphBatch, Tensor]:
        """Return a share of the crystals of a step and their labels ``(B, 2)``."""
        sizes = self.training.n_sites
        numbers = _numbers_of_step(sizes, self.batch_size, config.seed, step)[share]
        rows = torch.from_numpy(self.training.rows[numbers]).to(device)
        return rows_to_batch(rows), self.training.labels[torch.from_numpy(numbers)].to(device)


class _Run(TrainingRun):
    """The state of a surrogate's run."""

    network: Surrogate
    averaged: Surrogate

    def __init__(
        self,
        config: SurrogateConfig,
        folder: Path,
        processes: Processes = ALONE,
        device: str = "cpu",
    ) -> None:
        crystals = LabelledCrystals.of_trajectories(load_trajectories(config.dataset))
        size = config.batch_size
        self.parts = [_Part.of(crystals, f"dataset={config.dataset!r}", config, size)]
        size = max(1, round(_TABLE_SHARE * size))
        for name in config.tables:
            crystals = LabelledCrystals.of_table(load_table(name))
            self.parts.append(_Part.of(crystals, f"table {name!r}", config, size))
        super().__init__(config, folder, processes, device)
        d3rlpy.seed(config.seed)
        self.network = Surrogate(
            config.members, config.width, config.layers, config.heads, config.dropout
        ).to(self.device)
        self.network.start_from_mean(self.parts[0].training.labels.mean(0))
        self.averaged = copy.deepcopy(self.network).requires_grad_(False)
        prepare_network(self.network, config.precision, config.compile, self.device)
        modules = list(self.network.members.named_modules())
        optimizer = MuonFactory(config.weight_decay).create_optimizer(modules, config.learning_rate)
        self.optimizer = optimizer
        self.schedule = WarmupCosineFactory(config.warmup, config.steps).create(optimizer)
        self.members = [averages_gradients(m, processes) for m in self.network.members]
        self.scores: SurrogateScores | None = None

    @property
    def measures(self) -> tuple[str, ...]:
        """Names of what an evaluation gives."""
        names = [f.name for f in dataclasses.fields(SurrogateScores)]
        return (*names, *map(_of_table, self.config.tables))

    @property
    def shown(self) -> dict[str, str]:
        """What the progress bar says beside the losses."""
        return {} if self.scores is None else {"val_gap": f"{self.scores.gap_mae_ev:.3f}"}

    def update(self) -> dict[str, float]:
        """Take a gradient step of every member; return the mean losses."""
        batches = [
            part.batch(self.config, self.step, self.device, self.processes.share)
            for part in self.parts
        ]
        seen: list[dict[str, Tensor]] = []
        self.network.train()
        for member in self.members:
            losses, *of_tables = (_losses(member(batch), labels) for batch, labels in batches)
            if of_tables:
                of_all = torch.stack([loss for of_one in of_tables for loss in of_one.values()])
                losses["table_loss"] = _TABLE_SHARE * of_all.sum()
            torch.stack(list(losses.values())).sum().backward()
            seen.append(losses)
        found = {k: float(torch.stack([s[k].detach() for s in seen]).mean()) for k in seen[0]}
        kept = f"the state that was stored last is kept in {self.folder}"
        require_finite(found, self.config, self.step, kept)
        for member in self.network.members:  # one that strays does not slow the others
            nn.utils.clip_grad_norm_(member.parameters(), 1.0)
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad()
        return found

    def evaluate(self) -> dict[str, float]:
        """Calibrate and store what is there; return its measures on the held-out crystals."""
        held_out = self.parts[0].held_out
        scores = self.scores = self.averaged.calibrate(
            [part.training.rows for part in self.parts],
            [part.held_out.rows for part in self.parts],
            held_out.labels.double().numpy(),
        )
        measures, tables = dataclasses.asdict(scores), {}
        for name, part in zip(self.config.tables, self.parts[1:], strict=True):
            measures[_of_table(name)] = self._metal_accuracy(part.held_out)
            tables[name] = {
                "training_crystals": len(part.training),
                "held_out_crystals": len(part.held_out),
                "metal_accuracy": measures[_of_table(name)],
            }
        metadata = {
            "settings": dataclasses.asdict(self.config),
            "step": self.step,
            "seconds": round(self.seconds, 1),
            "training_crystals": len(self.parts[0].training),
            "held_out_crystals": len(held_out),
            "held_out": dataclasses.asdict(scores),
            "tables": tables,
        }
        save_surrogate(self.averaged, self.folder / "surrogate", metadata)
        return measures

    def _metal_accuracy(self, crystals: LabelledCrystals) -> float:
        known = crystals.subset(np.flatnonzero(~np.isnan(crystals.band_gap_ev)))
        said = self.averaged.predict(known.rows).metal_probability > 0.5
        return float(np.mean(said == (known.band_gap_ev == 0)))

    def save(self) -> None:
        """Write a checkpoint, whole or not at all."""
        state = {
            "step": self.step,
            "seconds": self.seconds,
            "network": self.network.members.state_dict(),
            "averaged": self.averaged.members.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
        }
        with atomic_path(self.folder / "checkpoint.pt") as path:
            torch.save(state, path)

    def resume(self) -> None:
        """Go on from the folder's checkpoint, if there is one."""
        with load_checkpoint(self.folder, "surrogate/", self.device) as state:
            if state is None:
                return
            self.network.members.load_state_dict(state["network"])
            self.averaged.members.load_state_dict(state["averaged"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.schedule.load_state_dict(state["schedule"])
            self.step, self.seconds = state["step"], state["seconds"]
        self.cut_log()


def _of_table(name: str) -> str:
    """Return what the measure of a table's held-out crystals is called."""
    return f"metal_accuracy {name}"


def _losses(found: MemberOutput, labels: Tensor) -> dict[str, Tensor]:
    """Return the losses of a member against labels ``(B, 2)``.

    The scales follow the errors that are made; the predictions do not follow the scales, which
    would let the network give up on what is hard. A label that is NaN has no part in it.
    """
    said, known = torch.stack([found.gap, found.energy], 1), ~labels.isnan()
    number = known.sum(0).clamp(min=1)
    error = said.sub(torch.where(known, labels, said.detach())).abs()
    scale = found.log_scale + error.detach() * torch.exp(-found.log_scale)
    scale = scale.mul(known).sum(0) / number
    is_metal = (labels[:, 0] == 0).float() * (1.0 - _SMOOTHING) + 0.5 * _SMOOTHING
    metal = F.binary_cross_entropy_with_logits(
        found.metal_logit, is_metal, known[:, 0].float(), reduction="sum"
    )
    gap, energy = error.sum(0) / number
    return {
        "gap_loss": gap,
        "energy_loss": _ENERGY_WEIGHT * energy,
        "metal_loss": _METAL_WEIGHT * metal / number[0],
        "scale_loss": _SCALE_WEIGHT * scale.sum(),
    }


def _numbers_of_step(
    n_sites: NDArray[np.int64], batch_size: int, seed: int, step: int
) -> NDArray[np.int64]:
    """Return the crystals of a step, ``(batch_size,)``: a function of seed and step alone."""
    size = min(batch_size, len(n_sites))
    a_pass = len(n_sites) // size
    epoch, place = divmod(step, a_pass)
    generator = np.random.default_rng([seed, 1, epoch])
    order = generator.permutation(len(n_sites))[: a_pass * size]
    batches = []
    for first in range(0, len(order), _POOL * size):
        pool = order[first : first + _POOL * size]
        batches.append(pool[np.argsort(n_sites[pool], kind="stable")].reshape(-1, size))
    return generator.permutation(np.concatenate(batches))[place]
