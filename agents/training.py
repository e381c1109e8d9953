"""Training runs: one frozen configuration, one folder that says everything needed to repeat it.

A run's folder holds ``config.json`` (settings, versions, data), ``log.csv`` and ``tensorboard/``
(losses and validation measures), ``checkpoint.pt`` (to go on from, bit for bit on a CPU) and
``policy/`` (the best policy so far, :func:`crystal_gym.agents.load_saved_policy`).
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import d3rlpy
import numpy as np
import torch
from d3rlpy.algos.qlearning.base import QLearningAlgoBase
from d3rlpy.base import LearnableConfig
from d3rlpy.constants import ActionSpace
from d3rlpy.serializable_config import CONFIG_STORAGE
from d3rlpy.torch_utility import unwrap_ddp_model
from torch import nn

from crystal_gym.agents.cloning import CrystalBCConfig
from crystal_gym.agents.cql import CrystalCQLConfig
from crystal_gym.agents.encoders import MEGNetEncoderFactory
from crystal_gym.agents.optimizers import MuonFactory
from crystal_gym.agents.policy import GreedyPolicy, load_weights, save_policy
from crystal_gym.agents.processes import ALONE, Processes
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
from crystal_gym.datasets.replay import CrystalReplayBuffer, load_d3rlpy
from crystal_gym.datasets.splits import SPLITS, load_split
from crystal_gym.datasets.trajectories import Trajectories, in_source_order
from crystal_gym.evaluation import Scores, Task, rollout, score
from crystal_gym.evaluation.metrics import compositions, valid
from crystal_gym.files import atomic_path
from crystal_gym.suggestions import did_you_mean

__all__ = ["PRESETS", "TrainConfig", "train"]

PRESETS: dict[str, tuple[type[LearnableConfig], tuple[str, ...] | None]] = {
    "bc": (CrystalBCConfig, None),
    "goal-bc": (CrystalBCConfig, ("hindsight",)),
    "u-cql": (CrystalCQLConfig, None),
    "c-cql": (CrystalCQLConfig, ("hindsight", "uniform")),
}
"""Algorithms by the name that a run takes, and the targets that their samples are given."""


@dataclass(frozen=True)
class TrainConfig:
    """Settings of a training run.

    Attributes:
        algorithm: ``bc`` (cloning), ``goal-bc`` (cloning towards the crystal's own gap), ``u-cql``
            (unconditional), ``c-cql`` (one policy for all targets), or d3rlpy's name of a discrete
            algorithm, such as ``discrete_cql`` or ``dqn``.
        dataset: Minari id.
        validation: Minari id; by default the dataset's own ``-val`` split where it is built, else
            every tenth skeleton is held out.
        split: ``published`` (this), or ``composition``: a fifth of the dataset's own crystals is
            held out such that no chemical system is on both sides.
        crystals: ``all``, or ``valid``: learn only from those whose composition passes SMACT
            (smact14), 95.6% of MP-20's; all are judged either way.
        target_gap: Targets in eV, ``uniform`` or ``hindsight``, one of them drawn for each
            sample; by default what the algorithm's name says.
        balance: 0 draws all transitions alike, 1 all ranges of gaps.
        reorder: Share of the samples that fill their crystal in an order drawn at random instead
            of the stored one.
        n_steps: Steps that a transition leads on; 1 as in Algorithm 1 of the paper, 20 for whole
            returns in MP-20, with which Q-learning follows its target far better
            (docs/agents.md).
        preset: Network, ``default`` or ``paper``.
        focus: How the network is told the next site: ``node``, or ``index`` as published.
        site_order: ``canonical``, or ``source``: the order of the files, which leaks the elements
            and is there to reproduce the published protocol.
        steps: Gradient steps.
        batch_size: Transitions a step.
        learning_rate: At its highest; it falls along a cosine.
        warmup: Steps in which it rises.
        weight_decay: Of the optimizer, :class:`MuonFactory`.
        conservative_weight: Weight of CQL's conservative term.
        gamma: Discount factor.
        averaging: Share of the old value in the running average of the weights, which is what
            acts; 0 for none.
        start_from: Folder of a saved policy whose weights training starts from.
        evaluate_every: Steps between two evaluations, each of which also writes a checkpoint.
        validation_crystals: How many held-out crystals an evaluation fills.
        patience: Evaluations without a better accuracy after which training stops; 0 for never.
        seed: Of everything random.
        device: ``auto``, ``cpu``, ``cuda:0``.
        precision: ``auto`` (``bfloat16`` on CUDA), ``float32`` or ``bfloat16``, in training.
        compile: ``auto`` (on CUDA), ``on`` or ``off``: compiled layers for the default network,
            which take a minute or two at the start, and a C++ compiler on a CPU.
    """

    algorithm: str = "bc"
    dataset: str = "crystal-mp20-v0"
    validation: str | None = None
    split: str = "published"
    crystals: str = "all"
    target_gap: tuple[float | str, ...] | None = None
    balance: float = 0.0
    reorder: float = 0.5
    n_steps: int = 1
    preset: str = "default"
    focus: str = "node"
    site_order: str = "canonical"
    steps: int = 4_000
    batch_size: int = 256
    learning_rate: float = 5e-3
    warmup: int = 200
    weight_decay: float = 0.1
    conservative_weight: float = 5.0
    gamma: float = 0.99
    averaging: float = 0.999
    start_from: str | None = None
    evaluate_every: int = 500
    validation_crystals: int = 500
    patience: int = 0
    seed: int = 0
    device: str = "auto"
    precision: str = "auto"
    compile: str = "auto"

    def __post_init__(self) -> None:
        require_usual(self)
        enough = self.validation_crystals >= 1
        require(self, "validation_crystals", enough, "a whole number above 0")
        for name, choices in (
            ("split", SPLITS),
            ("crystals", ("all", "valid")),
            ("site_order", ("canonical", "source")),
        ):
            require(self, name, getattr(self, name) in choices, " or ".join(choices))
        if self.algorithm not in PRESETS:
            _d3rlpy_config(self.algorithm)

    @property
    def targets(self) -> tuple[float | str, ...] | None:
        """Targets of the samples: those that were set, else those of the algorithm's name."""
        if self.target_gap is not None or self.algorithm not in PRESETS:
            return self.target_gap
        return PRESETS[self.algorithm][1]

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrainConfig:
        """Return the settings that a TOML or JSON file holds.

        Args:
            values: Settings by name; those left out keep their defaults.

        Returns:
            The settings, checked.

        Raises:
            ValueError: If a name is unknown or a value is of the wrong kind.
        """
        return settings_from_dict(cls, values)


def _d3rlpy_config(name: str) -> type[LearnableConfig]:
    types = CONFIG_STORAGE[LearnableConfig].config_list
    if name not in types:
        raise ValueError(
            f"algorithm={name!r} is unknown{did_you_mean(name, [*PRESETS, *types])}: expected one "
            f"of {', '.join(PRESETS)}, or d3rlpy's name of a discrete algorithm, "
            "such as discrete_cql, discrete_bcq, dqn"
        )
    return types[name]


def train(config: TrainConfig, folder: Path | str, *, progress: bool = True) -> Scores:
    """Train a policy, or go on with a run that was interrupted.

    Under ``torchrun`` every process takes its share of each batch, and the first one evaluates and
    writes.

    Args:
        config: Settings.
        folder: The run's folder; one that holds a run of the same settings is continued.
        progress: Show a progress bar on standard error.

    Returns:
        The best policy's measures on the validation crystals that evaluations use.

    Raises:
        ValueError: If the folder holds a run of other settings, or the loss is not finite.
        MemoryError: If a batch does not fit into memory.
        OSError: If another process is training there.
        KeyboardInterrupt: After Ctrl-C or SIGTERM, with the state stored.
    """
    with finished_run(_Run, config, folder, progress) as run:
        best: Scores | None = run.processes.from_first(run.best)
    assert best is not None
    return best


class _Run(TrainingRun):
    """The state of a run."""

    def __init__(
        self,
        config: TrainConfig,
        folder: Path,
        processes: Processes = ALONE,
        device: str = "cpu",
    ) -> None:
        training, validation = _data(config)  # before the folder is claimed: it may be missing
        super().__init__(config, folder, processes, device)
        d3rlpy.seed(config.seed)
        self.buffer = _buffer(config, training)
        self.known = compositions(training.finished)
        numbers = np.random.default_rng(0).permutation(len(validation))
        held_out = validation.subset(np.sort(numbers[: config.validation_crystals]))
        self.task = Task.of_trajectories(held_out)
        self.targets = held_out.band_gap_ev if self.buffer.targets.conditional else None
        self.algorithm = _algorithm(config, self.device, processes)
        self.algorithm.build_with_dataset(self.buffer)
        acting = GreedyPolicy(self.algorithm)
        self.network = acting.stored
        if config.start_from is not None:
            self.network.load_state_dict(load_weights(config.start_from))
            modules = self.algorithm.impl.modules
            if hasattr(modules, "targ_q_funcs"):
                unwrap_ddp_model(modules.targ_q_funcs).load_state_dict(
                    unwrap_ddp_model(modules.q_funcs).state_dict()
                )
        # Acts by the running average of the weights, in float32.
        self.policy = copy.deepcopy(acting)
        self.averaged = self.policy.stored.requires_grad_(False)
        for network in _stateful(self.algorithm.impl.modules).values():
            if isinstance(network, nn.Module):
                prepare_network(network, config.precision, config.compile, self.device)
        self.saved_step = self.stale = 0
        self.best: Scores | None = None

    @property
    def measures(self) -> tuple[str, ...]:
        """Names of what an evaluation gives."""
        return tuple(f.name for f in dataclasses.fields(Scores))

    @property
    def shown(self) -> dict[str, str]:
        """What the progress bar says beside the losses."""
        return {"val": f"{self.best.accuracy:.3f}"} if self.best else {}

    def update(self) -> dict[str, float]:
        """Take a gradient step; return its metrics."""
        batch = self.buffer.sample_transition_batch(self.config.batch_size)
        metrics = self.algorithm.update(batch.of_rows(self.processes.share))
        kept = f"the state of step {self.saved_step} is kept in {self.folder}"
        require_finite(metrics, self.config, self.step, kept)
        return metrics

    def has_enough(self) -> bool:
        """Return whether accuracy has not risen for as long as the settings allow."""
        return 0 < self.config.patience <= self.stale

    def evaluate(self) -> dict[str, float]:
        """Judge the averaged policy; store it if it is the best so far."""
        tokens = rollout(self.policy, self.task, self.targets)
        scores = score(tokens, self.task, self.known)
        if self.best is None or scores.accuracy > self.best.accuracy:
            self.best, self.stale = scores, 0
            metadata = {
                "settings": dataclasses.asdict(self.config),
                "step": self.step,
                "seconds": round(self.seconds, 1),
                "validation": dataclasses.asdict(scores),
            }
            save_policy(
                self.algorithm, self.folder / "policy", metadata, weights=self.averaged.state_dict()
            )
        else:
            self.stale += 1
        return dataclasses.asdict(scores)

    def save(self) -> None:
        """Write a checkpoint, whole or not at all."""
        modules = _stateful(self.algorithm.impl.modules)
        state = {
            "step": self.step,
            "seconds": self.seconds,
            "stale": self.stale,
            "best": None if self.best is None else dataclasses.asdict(self.best),
            "modules": {name: module.state_dict() for name, module in modules.items()},
            "averaged": self.averaged.state_dict(),
            "sampling": self.buffer.generator.bit_generator.state,
        }
        with atomic_path(self.folder / "checkpoint.pt") as path:
            torch.save(state, path)
        self.saved_step = self.step

    def resume(self) -> None:
        """Go on from the folder's checkpoint, if there is one."""
        with load_checkpoint(self.folder, "policy/", self.device) as state:
            if state is None:
                return
            for name, module in _stateful(self.algorithm.impl.modules).items():
                module.load_state_dict(state["modules"][name])
            self.averaged.load_state_dict(state["averaged"])
            self.buffer.generator.bit_generator.state = state["sampling"]
        self.step = self.saved_step = state["step"]
        self.seconds, self.stale = state["seconds"], state["stale"]
        self.best = None if state["best"] is None else Scores(**state["best"])
        self.algorithm._grad_step = self.step
        self.cut_log()


def _data(config: TrainConfig) -> tuple[Trajectories, Trajectories]:
    """Return the episodes that are learned from and those that judge."""
    parts = list(load_split(config.dataset, config.validation, config.split))
    if config.crystals == "valid":
        parts[0] = _only_valid(parts[0])
    if config.site_order == "source":
        parts = list(map(in_source_order, parts))
    return parts[0], parts[1]


def _only_valid(episodes: Trajectories) -> Trajectories:
    passing = valid(episodes.finished)
    if not passing.any():
        raise ValueError(
            f"none of the {len(passing)} crystals to learn from passes SMACT: expected "
            "--crystals all for this dataset"
        )
    return episodes.subset(np.flatnonzero(passing))


def _buffer(config: TrainConfig, training: Trajectories) -> CrystalReplayBuffer:
    return load_d3rlpy(
        training,
        config.targets,
        balance=config.balance,
        reorder=config.reorder,
        n_steps=config.n_steps,
        gamma=config.gamma,
        seed=config.seed,
    )


def _algorithm(config: TrainConfig, device: str, processes: Processes) -> Any:
    kind = PRESETS.get(config.algorithm, (None,))[0] or _d3rlpy_config(config.algorithm)
    optimizer = MuonFactory(
        weight_decay=config.weight_decay,
        clip_grad_norm=1.0,
        lr_scheduler_factory=WarmupCosineFactory(config.warmup, config.steps),
    )
    wanted = {
        "batch_size": config.batch_size,
        "learning_rate": config.learning_rate,
        "gamma": config.gamma,
        "conservative_weight": config.conservative_weight,
        "encoder_factory": MEGNetEncoderFactory(config.preset, config.focus),
        "optim_factory": optimizer,
    }
    known = {f.name for f in dataclasses.fields(kind)}
    settings = kind(**{k: v for k, v in wanted.items() if k in known})
    algorithm = settings.create(device=device, enable_ddp=processes.several)
    if (
        not isinstance(algorithm, QLearningAlgoBase)
        or algorithm.get_action_type() != ActionSpace.DISCRETE
    ):
        raise ValueError(
            f"algorithm={config.algorithm!r} does not learn from transitions with discrete "
            "actions: expected one that does, such as discrete_cql; docs/algorithms.md shows how "
            "to train the others from Python"
        )
    return algorithm


def _stateful(modules: Any) -> dict[str, Any]:
    """Return the networks, as they are without other processes, and optimizers by name."""
    found = {f.name: getattr(modules, f.name) for f in dataclasses.fields(modules)}
    return {
        name: unwrap_ddp_model(value) if isinstance(value, nn.Module) else value
        for name, value in found.items()
        if hasattr(value, "state_dict")
    }
