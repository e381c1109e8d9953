"""What every training run does alike: its folder, its log, its settings, its device."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
import os
import platform
import shutil
import signal
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from filelock import FileLock, Timeout
from torch import nn
from tqdm import tqdm

from crystal_gym.agents.model_files import load_tensors
from crystal_gym.agents.processes import ALONE, Processes, joined_processes
from crystal_gym.agents.transformer import SiteTransformer
from crystal_gym.files import DAMAGED_TENSORS, atomic_path, first_line, read_json
from crystal_gym.interrupts import noted_interrupts
from crystal_gym.suggestions import did_you_mean

__all__ = [
    "TrainingRun",
    "averaged",
    "finished_run",
    "load_checkpoint",
    "memory_in_one_sentence",
    "pick_device",
    "prepare_network",
    "require",
    "require_finite",
    "require_usual",
    "settings_from_dict",
]

_Config = TypeVar("_Config")

_LOG_EVERY = 50


def settings_from_dict(kind: type[_Config], values: Mapping[str, Any]) -> _Config:
    """Return a configuration from what a TOML or JSON file holds.

    Args:
        kind: Of configuration, a dataclass.
        values: Settings by name; those left out keep their defaults. Lists become tuples.

    Returns:
        The configuration, which has checked its values.

    Raises:
        ValueError: If a name is unknown or a value is of the wrong kind.
    """
    known = {f.name: f for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
    unknown = sorted(set(values) - set(known))
    if unknown:
        raise ValueError(
            f"setting {unknown[0]!r} is unknown{did_you_mean(unknown[0], known)}: expected some of "
            f"{', '.join(known)}"
        )
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    for name, value in values.items():
        default = known[name].default
        kinds = {float: (int, float), int: (int,), str: (str,)}.get(type(default))
        if kinds and (not isinstance(value, kinds) or isinstance(value, bool)):
            raise ValueError(
                f"{name}={value!r} is a {type(value).__name__}: expected a "
                f"{type(default).__name__}, such as {default!r}"
            )
    return kind(**values)


def require(config: object, name: str, holds: bool, expected: str) -> None:
    """Raise a ValueError about a setting unless a condition holds."""
    if not holds:
        raise ValueError(f"{name}={getattr(config, name)!r} is not usable: expected {expected}")


def require_usual(config: Any) -> None:
    """Check the settings that every run has.

    Args:
        config: Settings of a run, with ``steps``, ``batch_size``, ``evaluate_every``,
            ``learning_rate``, ``averaging``, ``precision`` and ``compile``.

    Raises:
        ValueError: If one of them is not usable.
    """
    for name in ("steps", "batch_size", "evaluate_every"):
        require(config, name, getattr(config, name) >= 1, "a whole number above 0")
    require(config, "learning_rate", 0 < config.learning_rate < math.inf, "a number above 0")
    require(config, "averaging", 0 <= config.averaging < 1, "a share from 0 to below 1")
    for name, choices in (
        ("precision", ("auto", "float32", "bfloat16")),
        ("compile", ("auto", "on", "off")),
    ):
        require(config, name, getattr(config, name) in choices, " or ".join(choices))


def _claim_folder(config: Any, folder: Path, device: str, processes: Processes) -> FileLock:
    """Write the settings of a new run, or check that they are those of the run that is here.

    Returns:
        The folder's lock: this process's until it is released, or the process ends in any way.

    Raises:
        ValueError: If the folder holds a run of other settings.
        OSError: If another process is at work there.
    """
    lock = FileLock(folder / ".lock")
    if not processes.first:  # whoever fails takes all down
        return lock
    folder.mkdir(parents=True, exist_ok=True)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise OSError(
            f"another process is training in {folder}: expected one at a time; wait for it, or "
            "choose another folder"
        ) from None
    _check_settings(config, folder / "config.json", device, processes)
    return lock


def _check_settings(config: Any, path: Path, device: str, processes: Processes) -> None:
    mine = json.loads(json.dumps(dataclasses.asdict(config)))
    if path.exists():
        # A run that began before a setting was there has had that setting's default.
        defaults = {f.name: f.default for f in dataclasses.fields(config)}
        theirs = defaults | _settings_in(path)
        other = [k for k in {**mine, **theirs} if theirs.get(k) != mine.get(k)]
        if other:
            raise ValueError(
                f"{path.parent} holds a run with {other[0]}={theirs.get(other[0])!r}, this one "
                f"has {mine.get(other[0])!r}: expected the same settings to go on with it; choose "
                "another folder"
            )
        return
    packages = ("crystal-gym", "d3rlpy", "minari", "numpy", "torch", "torch-geometric")
    text = {
        "settings": mine,
        "device": device,
        "python": platform.python_version(),
        "versions": {name: version(name) for name in packages},
        "threads": torch.get_num_threads(),
        "processes": processes.count,
    }
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(text, indent=2) + "\n", encoding="utf-8")


def _settings_in(path: Path) -> dict[str, Any]:
    try:
        settings: dict[str, Any] = {**read_json(path)["settings"]}
    except (LookupError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} is not the record of a run ({first_line(error)}): "
            "expected JSON with its settings; choose "
            "another folder"
        ) from error
    return settings


@contextmanager
def load_checkpoint(folder: Path, kept: str, device: str) -> Iterator[Mapping[str, Any] | None]:
    """Give the state in a folder's checkpoint, None without one.

    Args:
        folder: Of the run.
        kept: What of the folder a damaged checkpoint does not concern.
        device: Where its tensors go.

    Raises:
        ValueError: If it cannot be read, or the block cannot put it to use.
    """
    path = folder / "checkpoint.pt"
    if not path.exists():
        yield None
        return
    try:
        yield load_tensors(path, device)
    except DAMAGED_TENSORS as error:
        raise ValueError(
            f"{path} is damaged or from another version ({type(error).__name__}): expected a "
            f"checkpoint of this run; move it away to start again, {kept} is not touched"
        ) from error


@contextmanager
def memory_in_one_sentence(batch_size: int, folder: Path | str) -> Iterator[None]:
    """Turn torch's error about memory into a sentence.

    Args:
        batch_size: What the sentence advises to lower.
        folder: Where the last state is kept, for the sentence.

    Raises:
        MemoryError: If a batch does not fit.
    """
    try:
        yield
    except RuntimeError as error:
        if "alloc" not in str(error) and "out of memory" not in str(error):
            raise
        raise MemoryError(
            f"a batch of {batch_size} does not fit: expected a smaller --batch-size; the state "
            f"that was stored last is kept in {folder}"
        ) from error


@torch.no_grad()
def averaged(old: nn.Module, new: nn.Module, averaging: float, step: int) -> None:
    """Move a running average of weights, in place, after a step of training."""
    # In the beginning a long memory would remember the random start.
    keep = min(averaging, step / (step + 9))
    for mean, weight in zip(old.parameters(), new.parameters(), strict=True):
        mean.lerp_(weight, 1.0 - keep)


def pick_device(name: str) -> str:
    """Return the device that a setting names.

    Args:
        name: ``"cpu"``, ``"cuda:0"`` or ``"auto"``: the first GPU where torch sees one.

    Returns:
        ``"cpu"`` or a name such as ``"cuda:0"``.

    Raises:
        ValueError: If it is not here.
    """
    if name == "auto":
        return "cuda:0" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"device={name!r} is not here: torch sees no GPU; expected cpu or auto")
    return name


def prepare_network(network: nn.Module, precision: str, compile: str, device: str) -> None:
    """Set how a network calculates in training.

    Args:
        network: Its site transformers are set in place; other parts stay as they are.
        precision: ``"float32"``, ``"bfloat16"`` or ``"auto"``: bfloat16 on a GPU.
        compile: ``"on"``, ``"off"`` or ``"auto"``: on for a GPU.
        device: Where it is trained, ``"cpu"`` or ``"cuda:0"``.

    Raises:
        ValueError: If compiling is asked for and there is no compiler.
    """
    on_cuda = device.startswith("cuda")
    compiled = on_cuda if compile == "auto" else compile == "on"
    if precision == "auto":
        precision = "bfloat16" if on_cuda else "float32"
    compiler = os.environ.get("CXX", "g++")  # where torch looks
    if compiled and not on_cuda and shutil.which(compiler) is None:
        raise ValueError(
            f"compile='on' needs a C++ compiler and {compiler} is not there: expected g++ in the "
            "PATH, or CXX to name one; or leave it out, training is a third slower then"
        )
    for module in network.modules():
        if isinstance(module, SiteTransformer):
            module.precision = getattr(torch, precision)
            if compiled:
                module.compile_layers()


class _RunLog:
    """``log.csv`` and TensorBoard's events.

    Args:
        folder: Of the run.
        judged: Names of the measures that are only there after an evaluation.
    """

    def __init__(self, folder: Path, judged: tuple[str, ...]) -> None:
        from tensorboardX import SummaryWriter

        self._path, self._judged = folder / "log.csv", judged
        self._board = SummaryWriter(str(folder / "tensorboard"), max_queue=1000)

    def write(
        self,
        step: int,
        seconds: float,
        metrics: Mapping[str, float],
        scores: Mapping[str, float] | None,
    ) -> None:
        """Add a row; the validation columns are empty where nothing was evaluated."""
        judged = {f"val_{name}": "" for name in self._judged}
        for name, value in metrics.items():
            self._board.add_scalar(f"train/{name}", value, step)
        for name, value in (scores or {}).items():
            judged[f"val_{name}"] = f"{value:.5f}"
            self._board.add_scalar(f"validation/{name}", value, step)
        row = {"step": str(step), "seconds": f"{seconds:.1f}"}
        row |= {name: f"{value:.6g}" for name, value in metrics.items()} | judged
        new = not self._path.exists()
        with self._path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(row))
            if new:
                writer.writeheader()
            writer.writerow(row)

    def cut(self, step: int) -> None:
        """Drop rows after a step: they are written again."""
        if not self._path.exists():
            return
        with self._path.open(newline="", encoding="utf-8") as file:
            header, *rows = list(csv.reader(file))
        with atomic_path(self._path) as path, path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([header, *(r for r in rows if int(r[0]) <= step)])

    def close(self) -> None:
        """Write what is queued."""
        self._board.close()


class TrainingRun(ABC):
    """The state of a run, and the loop that every run goes through.

    Attributes:
        network: What is trained.
        averaged: Running average of its weights.
        step: Gradient steps that are done.
        seconds: That they and the evaluations took, with those before an interruption.

    Args:
        config: Settings, with ``seed``, ``steps``, ``batch_size``, ``evaluate_every`` and
            ``averaging``.
        folder: Of the run.
        processes: That train together; what the first evaluates, writes and says is for all.
        device: Of this one.

    Raises:
        ValueError: If the folder holds a run of other settings, or the processes cannot share a
            batch.
        OSError: If another process is at work in the folder.
    """

    network: nn.Module
    averaged: nn.Module
    step: int = 0
    seconds: float = 0.0

    def __init__(
        self, config: Any, folder: Path, processes: Processes = ALONE, device: str = "cpu"
    ) -> None:
        size = config.batch_size
        if size % processes.count:
            raise ValueError(
                f"batch_size={size} cannot be shared by {processes.count} processes: expected a "
                "multiple of their number"
            )
        self.config, self.folder = config, folder
        self.processes, self.device = processes, device
        self._lock = _claim_folder(config, folder, device, processes)
        self._log = _RunLog(folder, self.measures) if processes.first else None

    @property
    @abstractmethod
    def measures(self) -> tuple[str, ...]:
        """Names of what an evaluation gives."""

    @property
    @abstractmethod
    def shown(self) -> dict[str, str]:
        """What the progress bar says beside the losses."""

    @abstractmethod
    def update(self) -> dict[str, float]:
        """Take a gradient step; return its metrics.

        Returns:
            Numbers of the step, such as its losses, by name.

        Raises:
            ValueError: If one of them is not finite.
        """

    @abstractmethod
    def evaluate(self) -> Mapping[str, float]:
        """Judge what is there, store it where it is worth it, and return its measures."""

    @abstractmethod
    def resume(self) -> None:
        """Go on from the folder's checkpoint, if there is one."""

    @abstractmethod
    def save(self) -> None:
        """Write a checkpoint, whole or not at all."""

    def has_enough(self) -> bool:
        """Return whether to stop before the last step."""
        return False

    def train(self, progress: bool) -> None:
        """Train to the end, with a progress bar on standard error.

        Args:
            progress: Show the bar, in the first process alone.

        Raises:
            KeyboardInterrupt: After Ctrl-C or SIGTERM, with the state stored.
        """
        with (
            # In the middle of a step no state is worth keeping.
            noted_interrupts(signal.SIGTERM) as interrupted,
            tqdm(
                total=self.config.steps,
                initial=self.step,
                disable=not (progress and self.processes.first),
                unit="step",
                smoothing=0.05,
            ) as bar,
        ):
            for metrics in self.steps(interrupted):
                bar.update(self.step - bar.n)
                losses = {k: f"{v:.3g}" for k, v in metrics.items()}
                bar.set_postfix(losses | self.shown, refresh=False)

    def steps(self, interrupted: threading.Event) -> Iterator[dict[str, float]]:
        """Train to the end; give the mean metrics of every fifty steps."""
        recent: list[dict[str, float]] = []
        begun = time.monotonic() - self.seconds
        while self.step < self.config.steps:
            # What is drawn in a step, such as dropout, depends on nothing that came before it.
            torch.manual_seed(_seed_of(self.config.seed, self.step, self.processes.rank))
            recent.append(self.update())
            self.step += 1
            averaged(self.averaged, self.network, self.config.averaging, self.step)
            self.seconds = time.monotonic() - begun
            if self.processes.any(interrupted.is_set()):
                self._store()
                raise KeyboardInterrupt
            evaluates = (
                self.step % self.config.evaluate_every == 0 or self.step == self.config.steps
            )
            if self.step % _LOG_EVERY == 0 or evaluates:
                mean = {k: float(np.mean([m[k] for m in recent])) for k in recent[0]}
                mean, recent = self.processes.mean(mean), []
                scores = self.evaluate() if evaluates and self.processes.first else None
                self.seconds = time.monotonic() - begun
                if self._log is not None:
                    self._log.write(self.step, self.seconds, mean, scores)
                yield mean
                if evaluates:
                    self._store()
                if self.processes.from_first(self.has_enough()):
                    return

    def _store(self) -> None:
        if self.processes.first:
            self.save()

    def cut_log(self) -> None:
        """Drop what the log has of steps that are taken again."""
        if self._log is not None:
            self._log.cut(self.step)

    def close(self) -> None:
        """Finish the logs, and leave the folder to others."""
        if self._log is not None:
            self._log.close()
        self._lock.release()


def _seed_of(seed: int, step: int, rank: int) -> int:
    return int(np.random.SeedSequence([seed, step, rank]).generate_state(1)[0])


_Run = TypeVar("_Run", bound=TrainingRun)


@contextmanager
def finished_run(
    kind: type[_Run], config: Any, folder: Path | str, progress: bool
) -> Iterator[_Run]:
    """Give a run that was trained to its end, or gone on with, among the processes there are.

    Args:
        kind: Of run.
        config: Its settings, with ``device`` and ``batch_size``.
        folder: Its folder.
        progress: Show a progress bar on standard error.

    Yields:
        The run after its last step; it is closed afterwards.

    Raises:
        MemoryError: If a batch does not fit into memory.
        KeyboardInterrupt: After Ctrl-C or SIGTERM, with the state stored.
    """
    with joined_processes(pick_device(config.device)) as (processes, device):
        run = kind(config, Path(folder), processes, device)
        try:
            run.resume()
            with memory_in_one_sentence(config.batch_size, folder):
                run.train(progress)
            yield run
        finally:
            run.close()


def require_finite(metrics: Mapping[str, float], config: Any, step: int, kept: str) -> None:
    """Raise a ValueError unless all metrics of a step are numbers."""
    if not all(map(math.isfinite, metrics.values())):
        raise ValueError(
            f"the loss is not finite at step {step} ({metrics}): expected a lower "
            f"--learning-rate than {config.learning_rate:g}; {kept}"
        )
