"""Errors and calibration of the surrogate on the 2,484 validation labels, which it never saw.

    OMP_NUM_THREADS=1 python benchmarks/surrogate.py [RUN] [--output docs/results]

RUN is a folder of `crystal-gym train surrogate`; the bundled one by default. Labels are DFT,
predictions are not. Writes surrogate.json and surrogate.png.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import matplotlib
import numpy as np
import torch
from dft_check import FIRST, read, tokens_of
from scipy.stats import spearmanr

from crystal_gym.agents.surrogate import Surrogate, load_surrogate
from crystal_gym.agents.surrogate_training import LabelledCrystals
from crystal_gym.datasets.replay import load_trajectories
from crystal_gym.evaluation.intervals import estimates, ratio
from crystal_gym.evaluation.report import markdown_table

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.ticker import NullFormatter

KINDS = ("gap (eV)", "formation energy (eV/atom)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", nargs="?", type=Path)
    parser.add_argument("--dataset", default="crystal-mp20-val-v0")
    parser.add_argument("--output", type=Path, default=Path("docs/results"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    surrogate, metadata = load_surrogate(options.run)
    crystals = LabelledCrystals.of_trajectories(load_trajectories(options.dataset))
    begun = time.process_time()
    found = surrogate.predict(crystals.rows)
    rate = len(crystals) / (time.process_time() - begun)
    labels = crystals.labels.double().numpy()
    values = np.stack([found.band_gap_ev, found.formation_energy_ev_per_atom], 1)
    stds = np.stack([found.band_gap_std_ev, found.formation_energy_std_ev_per_atom], 1)
    errors = np.abs(values - labels)
    metal = (found.metal_probability > 0.5) == (labels[:, 0] == 0)
    zero = np.mean(labels[:, 0] == 0)
    statistics = {
        "gap_mae_ev": ratio(errors[:, 0]),
        "energy_mae_ev_per_atom": ratio(errors[:, 1]),
        "metal_accuracy": ratio(metal),
    }
    measured = {
        name: [e.value, e.low, e.high] for name, e in estimates(statistics, len(crystals)).items()
    }
    result = {
        "dataset": options.dataset,
        "crystals": len(crystals),
        "measures_with_95_percent_intervals": measured,
        "share_of_metals": zero,
        "settings": metadata.get("settings"),
        "tables": metadata.get("tables"),
        "training_minutes": round(metadata.get("seconds", 0.0) / 60, 1),
        "predictions_per_cpu_s": round(rate),
        "unlike_training": float(found.unlike_training.mean()),
        "calibration": {},
    }
    print(f"{len(crystals):,} crystals of {options.dataset}; predictions against DFT labels")
    for name, (value, low, high) in measured.items():
        print(f"{name:24s} {value:.4f} [{low:.4f}, {high:.4f}]")
    print(f"{'always a gap':24s} {1 - zero:.4f} (metal accuracy of a constant)")
    print(
        f"{rate:.0f} predictions/CPU-s; {100 * found.unlike_training.mean():.1f}% unlike training\n"
    )
    for name, table in metadata.get("tables", {}).items():
        print(
            f"of the table {name}: a gap or none is right for {100 * table['metal_accuracy']:.1f}% "
            f"of {table['held_out_crystals']:,} crystals that were held out\n"
        )
    for column, kind in enumerate(KINDS):
        rows, bins = reliability(errors[:, column], stds[:, column])
        z = errors[:, column] / stds[:, column]
        within = [float((z <= k).mean()) for k in (1, 2)]
        rank = float(spearmanr(errors[:, column], stds[:, column]).statistic)
        result["calibration"][kind] = {
            "within_1_std": within[0],
            "within_2_std": within[1],
            "rank_correlation_of_error_and_std": rank,
            "bins": bins,
        }
        print(
            f"{kind}: {100 * within[0]:.1f}% within one standard deviation (68.3 of a normal "
            f"distribution), {100 * within[1]:.1f}% within two (95.4); rank correlation of error "
            f"and standard deviation {rank:.2f}\n"
        )
        print(markdown_table(rows) + "\n")
    print(on_designs(surrogate, result))
    far = found.training_distance > np.median(found.training_distance)
    near, other = (float(errors[half, 0].mean()) for half in (~far, far))
    result["gap_mae_ev_near_and_far_half"] = [near, other]
    print(f"gap MAE, half nearer to the training data: {near:.3f} eV; other half: {other:.3f} eV")
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "surrogate.json").write_text(json.dumps(result, indent=1) + "\n")
    draw(values, labels, result, options.output / "surrogate.png")


def on_designs(surrogate: Surrogate, result: dict) -> str:
    """Return what it says of designs that DFT was asked about, and that it did not choose."""
    validation = load_trajectories("crystal-mp20-val-v0")
    skeletons = {s.name: s for s in (validation.skeletons[n] for n in set(validation.skeleton))}
    rows = [r for r in read(FIRST) if r["dft_status"] == "ok" and r["dft_gap_ev"]]
    table = [["designs of", "different crystals", "gap of 0 by DFT %", "of these said to be"]]
    table[0] += ["gap MAE (eV)", "mean error (eV)", "E_form MAE (eV/atom)"]
    result["designs"] = {}
    for method in dict.fromkeys(r["method"] for r in rows):
        mine = {(r["skeleton"], r["elements"]): r for r in rows if r["method"] == method}
        found = surrogate.predict_fillings(
            [skeletons[r["skeleton"]] for r in mine.values()], [tokens_of(r) for r in mine.values()]
        )
        said = np.stack([found.band_gap_ev, found.formation_energy_ev_per_atom], 1)
        names = ("dft_gap_ev", "dft_formation_energy_ev_per_atom")
        known = np.array([[float(r[n] or "nan") for n in names] for r in mine.values()])
        metal, errors = known[:, 0] == 0, said - known
        numbers = {
            "metals": 100 * metal.mean(),
            "recognised": 100 * (said[metal, 0] == 0).mean(),
            "gap_mae_ev": np.abs(errors[:, 0]).mean(),
            "gap_bias_ev": errors[:, 0].mean(),
            "energy_mae_ev_per_atom": np.nanmean(np.abs(errors[:, 1])),
        }
        result["designs"][method] = {"crystals": len(mine), **numbers}
        forms = ("{:.0f}", "{:.0f}%", "{:.2f}", "{:+.2f}", "{:.2f}")
        cells = [form.format(n) for form, n in zip(forms, numbers.values(), strict=True)]
        table.append([method, str(len(mine)), *cells])
    return markdown_table(table) + "\n"


def reliability(errors: np.ndarray, stds: np.ndarray) -> tuple[list[list[str]], list[dict]]:
    """Return crystals in tenths by their predicted standard deviation."""
    rows = [["tenth by predicted std", "mean predicted std", "error at 68.3%", "mean error"]]
    bins = []
    for number, part in enumerate(np.array_split(np.argsort(stds), 10), start=1):
        said, inside, mean = (
            stds[part].mean(),
            np.percentile(errors[part], 68.27),
            errors[part].mean(),
        )
        bins.append({"mean_predicted_std": said, "error_at_68": inside, "mean_error": mean})
        rows.append([str(number), *(f"{x:.3f}" for x in (said, inside, mean))])
    return rows, bins


def draw(values: np.ndarray, labels: np.ndarray, result: dict, path: Path) -> None:
    figure, axes = plt.subplots(1, 3, figsize=(12, 4), constrained_layout=True)
    for axis, column, limits in ((axes[0], 0, (0, 10)), (axes[1], 1, (-5, 0.5))):
        axis.plot(limits, limits, color="#888888", linewidth=1)
        axis.plot(labels[:, column], values[:, column], ".", markersize=3, alpha=0.35)
        axis.set(xlim=limits, ylim=limits, xlabel=f"DFT {KINDS[column]}")
        axis.set_ylabel(f"surrogate {KINDS[column]}")
        axis.set_aspect("equal")
    for kind, marker in zip(KINDS, "os", strict=True):
        bins = result["calibration"][kind]["bins"]
        said, found = np.array([[b["mean_predicted_std"], b["error_at_68"]] for b in bins]).T
        # Sure metals, whose errors are 0, have no place on a logarithmic axis.
        axes[2].loglog(said[found > 0], found[found > 0], marker + "-", label=kind)
    ends = axes[2].get_xlim()
    axes[2].plot(ends, ends, color="#888888", linewidth=1, label="perfectly calibrated")
    axes[2].set(xlabel="predicted standard deviation", ylabel="error that 68.3% stay below")
    for axis in (axes[2].xaxis, axes[2].yaxis):
        axis.set_minor_formatter(NullFormatter())
    axes[2].legend(frameon=False)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
