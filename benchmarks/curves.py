"""Learning curves of training runs as a picture.

    python benchmarks/curves.py docs/results/*.csv -o docs/results/curves.png

Takes the log.csv of runs (or copies of them, whose file names become the labels).
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("logs", nargs="+", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    options = parser.parse_args()
    figure, (held_out, training) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for path in options.logs:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        label = path.parent.name if path.name == "log.csv" else path.stem
        minutes = [float(r["seconds"]) / 60 for r in rows]
        judged = [(m, r) for m, r in zip(minutes, rows, strict=True) if r["val_accuracy"]]
        (line,) = held_out.plot(
            [m for m, _ in judged],
            [100 * float(r["val_accuracy"]) for _, r in judged],
            marker="o",
            markersize=3,
            label=f"{label}, accuracy",
        )
        held_out.plot(
            [m for m, _ in judged],
            [100 * float(r["val_exact_match"]) for _, r in judged],
            color=line.get_color(),
            linestyle="--",
            label=f"{label}, exact match",
        )
        training.plot(minutes, [float(r["loss"]) for r in rows], label=label)
    held_out.set(xlabel="minutes", ylabel="500 validation crystals (%)", ylim=(0, 80))
    training.set(xlabel="minutes", ylabel="training loss", ylim=(0, None))
    for axes in (held_out, training):
        axes.legend(frameon=False, fontsize=9)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(options.output, dpi=110)


if __name__ == "__main__":
    main()
