"""The command ``crystal-gym train``: settings from words and files, a run or its plan out."""

from __future__ import annotations

import argparse
import csv
import sys
from pathlib import Path
from typing import Any

from crystal_gym.commands.arguments import TRAIN_SETTINGS
from crystal_gym.commands.terminal import shows_progress
from crystal_gym.files import first_line, read_text

__all__ = ["train_as_told"]


def train_as_told(options: argparse.Namespace) -> str | None:
    """Train what the command line names; return what to print at the end.

    Args:
        options: What was parsed for ``train`` (:mod:`crystal_gym.commands.arguments`).

    Returns:
        The text, or None in all processes of ``torchrun`` but the first.
    """
    from crystal_gym.extras import require_agents

    require_agents()
    import torch

    from crystal_gym.agents.processes import is_first
    from crystal_gym.agents.surrogate_training import SurrogateConfig
    from crystal_gym.agents.training import TrainConfig

    if options.threads is not None:
        torch.set_num_threads(options.threads)
    settings = _settings(options)
    config: TrainConfig | SurrogateConfig
    if settings.get("algorithm") == "surrogate":
        name = settings.pop("algorithm")
        config = SurrogateConfig.from_dict(settings)
    else:
        config = TrainConfig.from_dict(settings)
        name = config.algorithm
    folder: Path = options.output or Path("runs") / name
    if options.dry_run:
        return _planned(config, name, folder)
    if isinstance(config, SurrogateConfig):
        text = _train_surrogate(config, folder)
    else:
        text = _train_policy(config, folder)
    return text if is_first() else None


def _settings(options: argparse.Namespace) -> dict[str, Any]:
    settings = _read_toml(options.config) if options.config is not None else {}
    names = ("algorithm", *TRAIN_SETTINGS)
    settings |= {n: getattr(options, n) for n in names if getattr(options, n) is not None}
    if options.target_gap is not None:
        settings["target_gap"] = [_number_or_word(t) for t in options.target_gap]
    return settings


def _train_policy(config: Any, folder: Path) -> str:
    from crystal_gym.agents.training import train
    from crystal_gym.evaluation import text_table

    scores = train(config, folder, progress=shows_progress())
    return (
        f"best policy in {folder / 'policy'}; on validation crystals, per cent, filled greedily "
        f"without a mask:\n\n{text_table({config.algorithm: scores})}"
    )


def _train_surrogate(config: Any, folder: Path) -> str:
    from crystal_gym.agents.surrogate_training import train_surrogate

    scores = train_surrogate(config, folder, progress=shows_progress())
    return (
        f"surrogate in {folder / 'surrogate'}; on crystals of the training data that it did not "
        f"learn from: mean absolute error of the gap {scores.gap_mae_ev:.3f} eV, of the formation "
        f"energy {scores.energy_mae_ev_per_atom:.3f} eV/atom, {100 * scores.metal_accuracy:.1f}% "
        "rightly said to have a gap or none"
    )


# Seconds a step with a batch of so many on one core of docs/benchmarks.md's machine.
_MEASURED = {
    ("default", True): (0.31, 256),  # cloning, bfloat16
    ("paper", False): (0.40, 1024),  # c-CQL
    ("surrogate", True): (0.70, 128),  # 2,000 steps with two tables in 23 minutes
}


def _planned(config: Any, name: str, folder: Path) -> str:
    """Say what a training would do, and how long it took where that was measured."""
    from crystal_gym.datasets.minari_io import load_trajectories

    data = load_trajectories(config.dataset)  # refuses a dataset that is not here
    done = _last_step(folder)
    left = max(0, config.steps - done)
    text = f"{name} on {config.dataset} ({len(data):,} episodes, {len(data.actions):,} transitions)"
    text += f": {config.steps:,} steps of {config.batch_size:,} into {folder}"
    if done:
        text += f", which has done {done:,}: {left:,} are left"
    key = getattr(config, "preset", "surrogate"), name in ("bc", "goal-bc", "surrogate")
    if key in _MEASURED:
        seconds, batch = _MEASURED[key]
        hours = left * seconds * config.batch_size / batch / 3600
        text += (
            f"; about {_duration(3600 * hours)} on one core at the rate of docs/benchmarks.md, on "
            "crystals of MP-20's size, evaluations aside"
        )
    else:
        text += "; no time was measured for this network and algorithm"
    return text + "; nothing was done"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"


def _last_step(folder: Path) -> int:
    """Return how many steps the log of a run has, 0 where there is none."""
    path = folder / "log.csv"
    if not (folder / "checkpoint.pt").exists() or not path.exists():
        return 0
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return int(rows[-1]["step"]) if rows else 0


_LONGEST_SETTINGS = 1_000_000


def _read_toml(path: Path) -> dict[str, Any]:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        return tomllib.loads(read_text(path, _LONGEST_SETTINGS))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(
            f"{path} is not TOML ({first_line(error)}): expected lines of name = value"
        ) from error


def _number_or_word(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text
