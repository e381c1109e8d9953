"""The whole path in a few minutes: data, two trained policies, baselines, a table, a picture."""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import minari
import numpy as np
from tqdm import tqdm

from crystal_gym.datasets.build import build_mini, labelled_table
from crystal_gym.datasets.labels import has_label_table
from crystal_gym.datasets.trajectories import Trajectories, plan_trajectories
from crystal_gym.elements import formula_counts, reduced_formula
from crystal_gym.evaluation import (
    MajorityPolicy,
    Policy,
    RandomPolicy,
    Scores,
    Task,
    evaluate,
    rollout,
    text_table,
)
from crystal_gym.evaluation.metrics import compositions
from crystal_gym.evaluation.report import markdown_table
from crystal_gym.extras import require_agents, require_extra
from crystal_gym.files import atomic_path, raw_data_dir
from crystal_gym.oracles import Filling, PropertyTable, TableOracle, load_table
from crystal_gym.validity import smact_valid

__all__ = ["quickstart"]

_TARGETS_EV = (1.0, 3.0, 5.0)
_BATCH = 128
_LEARNING_RATE = 3e-3


@dataclass(frozen=True)
class _Data:
    """Crystals to learn from, skeletons to fill, and where both are from."""

    name: str
    training: Trajectories
    known: set[str]
    held_out: Task
    table: PropertyTable
    remark: str


def quickstart(
    output: Path | str, *, minutes: float = 3.0, crystals: int = 800, seed: int = 0
) -> str:
    """Train c-CQL and BC, judge them beside the baselines, and write ``table.md`` and a picture.

    MP-20 is used where its files are (``CRYSTAL_GYM_DATA``, or fetched), else the bundled set.

    Args:
        output: Folder for ``table.md``, ``picture.png`` and ``settings.json``.
        minutes: Training time of both policies together.
        crystals: Training crystals taken from MP-20.
        seed: Of everything random.

    Returns:
        The text of ``table.md``.

    Raises:
        ImportError: If the extra ``agents`` is not installed.
    """
    started = time.monotonic()
    if not 0 < minutes < float("inf"):
        raise ValueError(f"minutes={minutes} is no training time: expected more than 0, such as 3")
    require_agents()
    require_extra("report", "the picture of a quickstart")
    output = Path(output)
    output.mkdir(parents=True, exist_ok=True)  # fail before the training, not after it
    data = _mp20_data(crystals) if _has_mp20() else _mini_data()
    _say(
        f"{data.name}: {len(data.training)} training episodes "
        f"({len(data.training.actions):,} transitions), {len(data.held_out)} held-out skeletons"
    )
    curves: dict[str, list[tuple[float, float]]] = {}
    policies: dict[str, Policy] = {
        "random": RandomPolicy(seed),
        "majority element": MajorityPolicy(data.training),
    }
    for name, target in (("BC", "hindsight"), ("c-CQL", "uniform")):
        policies[name], curves[name] = _train(name, target, data.training, minutes * 30, seed)
    scores = evaluate(policies, data.held_out, data.known, target_gap=3.0, progress=True)
    text = _text(data, scores, _fillings(policies["c-CQL"], data), minutes)
    with atomic_path(output / "table.md") as path:
        path.write_text(text, encoding="utf-8")
    with atomic_path(output / "picture.png") as path:
        _picture(path, data.name, scores, curves)
    settings = _settings(data, minutes, crystals, seed, time.monotonic() - started)
    with atomic_path(output / "settings.json") as path:
        path.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    return text


def _has_mp20() -> bool:
    folder = raw_data_dir()
    names = ("train.csv", "train.csv.gz")
    found = any((folder / "mp20" / name).exists() for name in names) and (folder / "qe").exists()
    if not found and os.environ.get("CRYSTAL_GYM_DATA"):
        raise FileNotFoundError(
            f"CRYSTAL_GYM_DATA={folder} holds no MP-20: expected mp20/train.csv and qe/ in it; "
            "correct it, or unset it to use the bundled crystals"
        )
    return found


def _mp20_data(crystals: int) -> _Data:
    folder = raw_data_dir()
    table, problems = labelled_table(folder, "train", limit=crystals, progress=True)
    if problems:
        _say(f"left out {len(problems)} crystals: {next(iter(problems.items()))}")
    split = "val" if has_label_table(folder) else "train"
    if split == "train":  # without validation labels the last quarter is held out
        cut = 3 * len(table) // 4
        return _split(table, "MP-20", np.arange(len(table)) < cut, _SHORT)
    held_out, _ = labelled_table(folder, "val", limit=max(1, crystals // 4), progress=True)
    training = plan_trajectories(table)
    known = compositions(table.entry_tokens(i) for i in range(len(table)))
    task = Task.of_skeletons(held_out.skeletons)
    return _Data(f"MP-20, {len(table)} crystals", training, known, task, held_out, _SHORT)


def _mini_data() -> _Data:
    if "crystal-mini-v0" not in minari.list_local_datasets():
        try:  # for what the reader does next; nothing below depends on it
            _say(str(build_mini()))
        except OSError as error:
            _say(f"crystal-mini-v0 is not built: {error}")
    table = load_table("mini")
    return _split(table, "bundled set mini", np.arange(len(table.skeletons)) % 4 != 3, _SMALL)


_SHORT = (
    "A few hundred crystals and a minute and a half are a demonstration; the published policies "
    "learned from 8,813 crystals in 200,000 steps of 1,024."
)
_SMALL = (
    "So few crystals are learned by heart rather than generalised from: this run shows that every "
    "part works, not how good a policy can be. With the files of MP-20 (CRYSTAL_GYM_DATA) the same "
    "command learns from 800 crystals."
)


def _split(table: PropertyTable, name: str, trains: np.ndarray, remark: str) -> _Data:
    """Split by skeleton: ``trains`` says which ones are learned from, ``(n_skeletons,)``."""
    trajectories = plan_trajectories(table)
    training = trajectories.subset(np.flatnonzero(trains[trajectories.skeleton]))
    entries = np.flatnonzero(trains[table.skeleton])
    known = compositions(table.entry_tokens(int(i)) for i in entries)
    task = Task.of_skeletons(table.skeletons, np.flatnonzero(~trains).tolist())
    title = f"{name}, {int(trains.sum())} crystals"
    return _Data(title, training, known, task, table, remark)


def _train(
    name: str, target: str, training: Trajectories, seconds: float, seed: int
) -> tuple[Policy, list[tuple[float, float]]]:
    """Train for a time; return the policy and (seconds, loss) points."""
    import d3rlpy

    from crystal_gym.agents import CrystalBCConfig, CrystalCQLConfig, GreedyPolicy, MuonFactory
    from crystal_gym.datasets.replay import load_d3rlpy

    d3rlpy.seed(seed)
    buffer = load_d3rlpy(training, target_gap=target, reorder=0.5, seed=seed)
    settings: dict[str, Any] = {
        "batch_size": _BATCH,
        "learning_rate": _LEARNING_RATE,
        "optim_factory": MuonFactory(weight_decay=0.1, clip_grad_norm=1.0),
    }
    if name == "c-CQL":
        algorithm = CrystalCQLConfig(conservative_weight=5.0, **settings).create(device="cpu")
    else:
        algorithm = CrystalBCConfig(**settings).create(device="cpu")
    algorithm.build_with_dataset(buffer)
    curve: list[tuple[float, float]] = []
    begun = time.monotonic()
    bar = tqdm(
        total=round(seconds), desc=f"training {name}", unit="s", bar_format=_BAR, disable=None
    )
    while (passed := time.monotonic() - begun) < seconds or not curve:
        # Half a cosine over the time there is: the last steps settle instead of wandering.
        rate = _LEARNING_RATE * 0.5 * (1.0 + np.cos(np.pi * passed / seconds))
        for group in algorithm.impl.modules.optim.optim.param_groups:
            group["lr"] = rate
        metrics = algorithm.update(buffer.sample_transition_batch(_BATCH))
        curve.append((passed, float(metrics["loss"])))
        bar.set_postfix(steps=len(curve), loss=f"{curve[-1][1]:.2f}", refresh=False)
        bar.update(min(int(passed), bar.total) - bar.n)
    bar.update(bar.total - bar.n)
    bar.close()
    return GreedyPolicy(algorithm), curve


_BAR = "{l_bar}{bar}| {n_fmt}/{total_fmt} s [{remaining} left{postfix}]"


def _fillings(policy: Policy, data: _Data) -> list[list[str]]:
    """Fill the first held-out skeleton of a middling size for each target."""
    sizes = data.held_out.n_sites
    row = int(np.argsort(np.abs(sizes - 5), kind="stable")[0])
    number = int(data.held_out.skeleton[row])
    skeleton = data.held_out.skeletons[number]
    one = Task(data.held_out.skeletons, np.array([number]), data.held_out.traversal[[row]])
    oracle = TableOracle(data.table)
    rows = [["target gap (eV)", "filling", "smact14 valid", "DFT gap (eV)"]]
    for target in _TARGETS_EV:
        tokens = rollout(policy, one, target)[0, : skeleton.n_sites]
        (found,) = oracle.evaluate_fillings([Filling(skeleton, tokens)])
        gap = "not calculated" if found.band_gap_ev is None else f"{found.band_gap_ev:.2f}"
        valid = "yes" if smact_valid(formula_counts(tokens)) else "no"
        rows.append([f"{target:g}", reduced_formula(tokens), valid, gap])
    rows.append(["source crystal", reduced_formula(skeleton.reference), "", ""])
    return rows


def _text(data: _Data, scores: dict[str, Scores], fillings: list[list[str]], minutes: float) -> str:
    return "\n".join(
        [
            f"# Quickstart: {data.name}",
            "",
            f"Trained on {len(data.training.actions):,} transitions for {minutes * 30:.0f} s each "
            f"(default preset, batch {_BATCH}, c-CQL with w = 5); judged on {len(data.held_out)} "
            "held-out skeletons, filled greedily from empty at a target of 3 eV. Per cent.",
            "",
            text_table(scores),
            "",
            "validity: SMACT with smact14 oxidation states. novelty: formula not among the "
            "training crystals. exact match: the source crystal, up to symmetry.",
            "",
            data.remark,
            "",
            "One held-out skeleton filled by c-CQL for three targets (the DFT gap is looked up, "
            "never estimated):",
            "",
            markdown_table(fillings),
            "",
        ]
    )


def _picture(
    path: Path,
    title: str,
    scores: dict[str, Scores],
    curves: dict[str, list[tuple[float, float]]],
) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    learning, bars = figure.subplots(1, 2, width_ratios=[1, 1.6])
    colours = {"random": "#9aa0a6", "majority element": "#5f6368", "BC": "#1f77b4"}
    colours["c-CQL"] = "#d1495b"
    for name, curve in curves.items():
        seconds, loss = np.array(curve).T
        width = max(1, len(loss) // 50)
        smooth = np.convolve(loss, np.ones(width) / width, mode="valid")
        learning.plot(
            seconds[width - 1 :], smooth / smooth[0], color=colours[name], label=name, lw=2
        )
    learning.set(xlabel="training time (s)", ylabel="loss relative to its start", ylim=(0, None))
    learning.legend(frameon=False)
    measures = ("accuracy", "similarity", "validity", "exact_match")
    place = np.arange(len(measures))
    for i, (name, values) in enumerate(scores.items()):
        heights = [100 * getattr(values, m) for m in measures]
        drawn = bars.bar(
            place + (i - 1.5) * 0.2, heights, 0.18, color=colours.get(name), label=name
        )
        bars.bar_label(drawn, fmt="%.0f", fontsize=8, padding=1)
    bars.set_xticks(place, [m.replace("_", " ") for m in measures])
    bars.set(ylabel="held-out skeletons (%)", ylim=(0, 122), yticks=range(0, 101, 20))
    bars.legend(frameon=False, ncols=2, fontsize=9)
    for axes in (learning, bars):
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title)
    figure.savefig(path, format="png", dpi=130)


def _settings(
    data: _Data, minutes: float, crystals: int, seed: int, seconds: float
) -> dict[str, Any]:
    packages = ("crystal-gym", "d3rlpy", "gymnasium", "minari", "numpy", "pymatgen", "torch")
    return {
        "data": data.name,
        "skeleton_table_id": data.training.skeletons.table_id,
        "minutes": minutes,
        "crystals": crystals,
        "seed": seed,
        "batch_size": _BATCH,
        "learning_rate": _LEARNING_RATE,
        "seconds_in_all": round(seconds, 1),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in packages},
    }


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")
