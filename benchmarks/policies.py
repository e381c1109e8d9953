"""Measures of trained policies on the 2,484 validation crystals, filled greedily from empty.

    python benchmarks/policies.py RUN [RUN ...] [--gap-model gap.pt] [--mask] [--output FILE.json]

RUN is a folder of `crystal-gym train`, or `bundled`. Conditional policies are judged at 1.12, 2, 3
and 4 eV. Orders are the stored ones of crystal-mp20-val-v0, blind to the elements; policies trained
under the published protocol (`--site-order source`) are judged under it. With --mask only elements
are allowed that keep a valid composition within reach; without, all of them. Seeds of one algorithm
are averaged, and their standard deviation is given. The mean predicted gap is
that of benchmarks/gap_regressor.py, a surrogate, on fillings that no DFT has seen.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path

import numpy as np
import torch
from gap_regressor import load

from crystal_gym.agents import TrainConfig, load_policy
from crystal_gym.charge_masks import ChargeNeutralMask
from crystal_gym.datasets.replay import load_trajectories
from crystal_gym.datasets.trajectories import in_source_order
from crystal_gym.evaluation import Task, rollout, score
from crystal_gym.evaluation.metrics import compositions
from crystal_gym.evaluation.report import markdown_table

TARGETS_EV = (1.12, 2.0, 3.0, 4.0)
MEASURES = ("accuracy", "similarity", "validity", "novelty", "exact_match")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+")
    parser.add_argument("--gap-model", type=Path)
    parser.add_argument("--mask", action="store_true", help="the charge-neutral one")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    validation = load_trajectories("crystal-mp20-val-v0")
    known = compositions(load_trajectories("crystal-mp20-v0").finished)
    gap_model, error = (None, None) if options.gap_model is None else load(options.gap_model)
    rule = ChargeNeutralMask().rows if options.mask else None
    results = []
    for name in options.runs:
        policy = load_policy(None if name == "bundled" else name)
        settings = TrainConfig.from_dict(policy.metadata["settings"])
        source = settings.site_order == "source"
        task = Task.of_trajectories(in_source_order(validation) if source else validation)
        for target in (None,) if settings.targets is None else TARGETS_EV:
            tokens = rollout(policy, task, target, action_mask=rule, progress=True)
            row = {
                "run": Path(name).name,
                "mask": options.mask,
                "algorithm": settings.algorithm,
                "seed": settings.seed,
            }
            row |= {"target_ev": target, **dataclasses.asdict(score(tokens, task, known))}
            if gap_model is not None and not source:
                gaps = gap_model.predict(task.skeletons, task.skeleton, tokens)
                row["mean_predicted_gap_ev"] = float(np.mean(gaps))
            results.append(row)
    header = ["run", "target", *(m.replace("_", " ") for m in MEASURES), "predicted gap (eV)"]
    rows = [[r["run"], _target(r), *(f"{v:.2f}" for v in _numbers(r))] for r in results]
    for group in _seeds(results):
        found = np.array([_numbers(r) for r in group])
        numbers = zip(found.mean(0), found.std(0, ddof=1), strict=True)
        name = f"{group[0]['algorithm']}, {len(group)} seeds"
        rows.append([name, _target(group[0]), *(f"{m:.2f} ± {d:.2f}" for m, d in numbers)])
    columns = max(map(len, rows))  # the last one only where a surrogate predicted gaps
    rows = [row + ["-"] * (columns - len(row)) for row in rows]
    print(markdown_table([header[:columns], *rows]))
    if error is not None:
        print(f"\npredicted gaps are a surrogate's (validation MAE {error:.3f} eV), not DFT")
    if options.output is not None:
        options.output.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


def _target(row: dict) -> str:
    return "-" if row["target_ev"] is None else f"{row['target_ev']:g}"


def _numbers(row: dict) -> list[float]:
    gap = [row["mean_predicted_gap_ev"]] if "mean_predicted_gap_ev" in row else []
    return [100 * row[measure] for measure in MEASURES] + gap


def _seeds(results: list[dict]) -> list[list[dict]]:
    """Return the rows that differ in their seed alone, where there are several."""
    groups: dict[tuple, list[dict]] = {}
    for row in results:
        groups.setdefault((row["algorithm"], row["target_ev"]), []).append(row)
    return [rows for rows in groups.values() if len({r["seed"] for r in rows}) > 1]


if __name__ == "__main__":
    main()
