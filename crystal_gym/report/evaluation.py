"""The report of ``crystal-gym evaluate``, from its folder."""

from __future__ import annotations

import html
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crystal_gym.elements import ELEMENTS, EMPTY, reduced_formula
from crystal_gym.report import page
from crystal_gym.report.crystals import scene
from crystal_gym.report.periodic_table import periodic_table

__all__ = ["evaluation_report"]

Arrays = Mapping[str, NDArray[Any]]

_BRACKETS = "In brackets: 95% intervals. A dash: nothing to measure."

_EXAMPLES = 12
"""Crystals in the viewer."""


def evaluation_report(
    results: Mapping[str, Any],
    tables: Sequence[tuple[str, Sequence[Sequence[str]]]],
    crystals: Arrays,
    designs: Sequence[tuple[str, float | None, Arrays]],
    path: Path | str,
) -> None:
    """Write the page.

    Args:
        results: What ``results.json`` holds.
        tables: Headings and rows, the first the header.
        crystals: What ``crystals.npz`` holds.
        designs: Method, target (eV) and stored arrays of every design.
        path: The HTML file.
    """
    oracle, seed = results["oracle"], html.escape(str(results["settings"]["seed"]))
    lead = (
        f"<p>{results['crystals']:,} skeletons of {html.escape(results['settings']['dataset'])}, "
        f"filled by every method. Gaps and energies of designs: <strong>{html.escape(oracle)}"
        "</strong>. Those of source crystals are DFT labels. In brackets and as bars: 95% "
        f"intervals (bootstrap over skeletons, seed {seed}).</p>"
    )
    sections = [
        page.section(heading, page.table(rows[0], _escaped(rows[1:]), _BRACKETS))
        for heading, rows in tables
    ]
    policies = [d for d in designs if d[0] in _shown(results) and _is_policy(results, d[0])]
    sections += [
        page.section("In range and out of distribution", *_bars(results)),
        page.section("Distributions", *_distributions(results, crystals, policies)),
        page.section("Elements", *_elements(crystals, policies)),
    ]
    if results.get("regret"):
        sections.append(page.section("Regret on the tabular set", _regret(results)))
    if results.get("learning_curves"):
        sections.append(page.section("Learning curves", _curves(results)))
    if policies:
        sections.append(
            page.section(
                "Crystals",
                page.paragraph(
                    "Designs beside the crystals whose skeletons they fill. Drag to turn, scroll "
                    "or pinch to zoom."
                ),
                page.crystal_viewer(_examples(results, crystals, policies)),
            )
        )
    sections.append(page.section("How this was made", _record(results)))
    page.write_page(path, "Evaluation of crystal designs", lead, sections)


def _escaped(rows: Sequence[Sequence[str]]) -> list[list[str]]:
    return [[html.escape(cell) for cell in row] for row in rows]


def _is_policy(results: Mapping[str, Any], method: str) -> bool:
    return any(r["kind"] == "policy" for r in results["designs"] if r["method"] == method)


def _shown(results: Mapping[str, Any]) -> list[str]:
    """Return the methods that figures show: of runs that differ in their seed, the first."""
    first: dict[str, str] = {}
    for row in results["designs"]:
        first.setdefault(row["family"] or row["method"], row["method"])
    return list(first.values())


def _bars(results: Mapping[str, Any]) -> list[str]:
    oracle = results["oracle"]
    methods = _shown(results)
    traces = []
    for method in methods:
        rows = [r for r in results["at_target"] if r["method"] == method]
        traces.append(
            {
                "type": "bar",
                "name": method,
                "x": [f"{r['target_ev']:g} eV" for r in rows],
                **_with_interval([r["measures"]["nu"] for r in rows]),
            }
        )
    nu = page.figure(
        traces,
        {
            "barmode": "group",
            "yaxis": {"title": {"text": "in range, nu (%)"}},
            "xaxis": {"type": "category"},
        },
        f"Share of designs whose gap lies within 0.25 eV of each target ({oracle}). Methods that "
        "take no target have the same designs at all of them. Of runs that differ in their seed "
        "alone the first is shown. Random and majority designs are mostly unlike what a surrogate "
        "has learned from: see the column for that above.",
    )
    rows = [row for row in results["designs"] if row["method"] in methods]
    names = [_named(r["method"], r["target_ev"]) for r in rows]
    kappa = page.figure(
        [
            {
                "type": "bar",
                "orientation": "h",
                "y": names,
                **_with_interval([r["measures"]["kappa"] for r in rows], "x"),
            }
        ],
        {
            "xaxis": {"title": {"text": "out of distribution, kappa (%)"}},
            "yaxis": {"autorange": "reversed", "type": "category"},
            "height": 120 + 22 * len(rows),
        },
        f"Share of designs with a gap above {results['rare_gap_ev']:.2f} eV, which only one in "
        f"twenty training crystals has ({oracle}).",
    )
    return [nu, kappa]


def _with_interval(measures: Sequence[Sequence[float | None]], axis: str = "y") -> dict[str, Any]:
    values = [None if m[0] is None else 100 * m[0] for m in measures]
    above = [0.0 if None in m else 100 * (m[2] - m[0]) for m in measures]  # type: ignore[operator]
    below = [0.0 if None in m else 100 * (m[0] - m[1]) for m in measures]  # type: ignore[operator]
    error = {
        "type": "data",
        "symmetric": False,
        "array": above,
        "arrayminus": below,
        "thickness": 1.5,
        "width": 3,
    }
    return {axis: values, f"error_{axis}": error}


def _distributions(
    results: Mapping[str, Any],
    crystals: Arrays,
    policies: Sequence[tuple[str, float | None, Arrays]],
) -> list[str]:
    out = []
    energy = "formation_energy_ev_per_atom"
    for column, label, axis, edges in (
        ("band_gap_ev", "Band gaps", "band gap (eV)", np.linspace(0, 8, 33)),
        (energy, "Formation energies", "formation energy (eV/atom)", np.linspace(-5, 1, 31)),
    ):
        traces = [_histogram(crystals[column], edges, "source crystals (DFT)", "dot")]
        for method, target, arrays in policies:
            traces.append(_histogram(arrays[column], edges, _named(method, target), "solid"))
        out.append(
            page.figure(
                traces,
                {
                    "xaxis": {"title": {"text": axis}},
                    "yaxis": {"title": {"text": "share of crystals (%)"}},
                },
                f"{label} of designs ({results['oracle']}) and of source crystals (DFT labels). "
                "What lies beyond the ends is counted in the last bin; failures are left out.",
            )
        )
    return out


def _histogram(
    values: NDArray[np.float64], edges: NDArray[np.float64], name: str, dash: str
) -> dict[str, Any]:
    known = values[np.isfinite(values)]
    inside = np.clip(known, edges[0], edges[-1] - 1e-9)
    counts = np.histogram(inside, edges)[0]
    share = 100.0 * counts / max(1, len(known))
    return {
        "type": "scatter",
        "mode": "lines",
        "name": name,
        "x": np.round((edges[:-1] + edges[1:]) / 2, 4).tolist(),
        "y": np.round(share, 2).tolist(),
        "line": {"dash": dash, "shape": "hvh", "width": 2},
    }


def _elements(crystals: Arrays, policies: Sequence[tuple[str, float | None, Arrays]]) -> list[str]:
    shown = [("the source crystals", crystals["reference"])]
    if policies:
        method, target, arrays = policies[-1]
        shown.append((f"the designs of {_named(method, target)}", arrays["tokens"]))
    return [
        periodic_table(
            _uses(tokens), f"Crystals of {len(tokens):,} that hold each element: {name}."
        )
        for name, tokens in shown
    ]


def _uses(tokens: NDArray[np.integer]) -> Counter[str]:
    return Counter(ELEMENTS[t - 1] for row in tokens for t in np.unique(row).tolist() if t != EMPTY)


def _regret(results: Mapping[str, Any]) -> str:
    traces = [
        {
            "type": "bar",
            "name": row["method"],
            "x": [f"{t:g} eV" for t in row["targets_ev"]],
            "y": row["mean_regret"],
        }
        for row in results["regret"]
    ]
    return page.figure(
        traces,
        {
            "barmode": "group",
            "yaxis": {"title": {"text": "mean regret"}},
            "xaxis": {"type": "category"},
        },
        "Reward missed on the bundled tabular set, where every valid filling was calculated with "
        "DFT: the best reward on a skeleton minus that of the design, by DFT; what the table does "
        "not hold counts as a reward of 0.",
    )


def _curves(results: Mapping[str, Any]) -> str:
    traces = [
        {
            "type": "scatter",
            "mode": "lines+markers",
            "name": curve["method"],
            "x": [round(s / 60, 2) for s in curve["seconds"]],
            "y": [100 * v for v in curve["accuracy"]],
        }
        for curve in results["learning_curves"]
    ]
    return page.figure(
        traces,
        {
            "xaxis": {"title": {"text": "training time (minutes)"}},
            "yaxis": {"title": {"text": "accuracy on held-out crystals (%)"}},
        },
        "Accuracy on the held-out crystals that a run judges itself by, in the course of training.",
    )


def _examples(
    results: Mapping[str, Any],
    crystals: Arrays,
    policies: Sequence[tuple[str, float | None, Arrays]],
) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Return designs of the last policy that differ from their source, drawn with a seed."""
    method, target, arrays = policies[-1]
    tokens, reference = arrays["tokens"], crystals["reference"]
    other = np.flatnonzero((tokens != reference).any(axis=1))
    drawn = np.random.default_rng(0).permutation(other)[:_EXAMPLES]
    pairs = []
    for row in np.sort(drawn).tolist():
        n = int(crystals["n_sites"][row])
        lattice, places = crystals["lattice"][row], crystals["frac_coords"][row, :n]
        sides = []
        for filling, gap, words in (
            (tokens[row, :n], arrays["band_gap_ev"][row], _gap_words(results["oracle"])),
            (reference[row, :n], crystals["band_gap_ev"][row], "DFT"),
        ):
            title = reduced_formula(filling)
            title += f", {words} gap {gap:.2f} eV" if np.isfinite(gap) else ", no gap known"
            symbols = [ELEMENTS[t - 1] for t in filling.tolist()]
            sides.append((symbols, title))
        aim = "" if target is None else f" for {target:g} eV"
        left = scene(lattice, places, sides[0][0], f"{sides[0][1]}{aim} ({method})")
        right = scene(lattice, places, sides[1][0], f"{sides[1][1]}, the source")
        pairs.append((left, right))
    return pairs


def _gap_words(oracle: str) -> str:
    return "predicted" if oracle.startswith("surrogate") else "DFT"


def _named(method: str, target: float | None) -> str:
    return method if target is None else f"{method}, {target:g} eV"


def _record(results: Mapping[str, Any]) -> str:
    rows = [(name, str(value)) for name, value in results["settings"].items()]
    rows += [("oracle", results["oracle"]), ("python", results["python"])]
    rows += [(name, str(v)) for name, v in results["versions"].items()]
    return page.record(rows)
