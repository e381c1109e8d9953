"""The report of ``crystal-gym design``, from its JSON."""

from __future__ import annotations

import html
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from crystal_gym.report import page
from crystal_gym.report.crystals import scene
from crystal_gym.report.periodic_table import periodic_table

__all__ = ["design_report"]


def design_report(results: Mapping[str, Any], path: Path | str) -> None:
    """Write the page.

    Args:
        results: What ``design.json`` holds.
        path: The HTML file.
    """
    source, candidates = results["source"], results["candidates"]
    goal, original = results["goal"], _source_scene(source)
    sections = [
        page.section("Candidates", _table(candidates), _notes(results)),
        page.section("Predicted gap and formation energy", _map(results)),
        page.section(
            "Crystals",
            page.paragraph(
                "Drag to turn, scroll or pinch to zoom. Positions are those of the source crystal: "
                "nothing has moved, so bonds of real compounds will be a little longer or shorter."
            ),
            page.crystal_viewer([(_scene(c, source), original) for c in candidates]),
        ),
        page.section(
            "Elements",
            periodic_table(
                Counter(e for c in candidates for e in set(c["symbols"])),
                f"In how many of the {len(candidates)} candidates each element occurs.",
            ),
        ),
        page.section("How this was made", _record(results)),
    ]
    lead = (
        f"<p>{len(candidates)} proposals for a band gap of <strong>{html.escape(goal)}</strong> on "
        f"the skeleton of {html.escape(source['name'])} ({len(source['symbols'])} sites). "
        f"{_warning(candidates)}</p>"
    )
    page.write_page(path, f"Compounds designed on {source['name']}", lead, sections)


def _warning(candidates: list[Mapping[str, Any]]) -> str:
    n = sum(c["calculated"] is not None for c in candidates)
    text = (
        "<strong>Predicted</strong> values are those of a surrogate, with one standard deviation: "
        "they are estimates, not DFT, and nothing here says that a compound is stable or can be "
        "made. "
    )
    if n:
        text += f"<strong>DFT</strong> values (PBE, Quantum ESPRESSO) are given for {n} of them."
    else:
        text += "Nothing was calculated with DFT."
    return text


def _table(candidates: list[Mapping[str, Any]]) -> str:
    header = [
        "Rank",
        "Formula",
        "Charges",
        "New",
        "Predicted gap (eV, surrogate)",
        "Chance to hit (surrogate)",
        "Predicted formation energy (eV/atom, surrogate)",
        "Expected reward (surrogate)",
    ]
    with_dft = any(c["calculated"] is not None for c in candidates)
    relaxed = any(c["relaxed"] for c in candidates)
    if with_dft:
        header += ["Gap (eV, DFT)", "Formation energy (eV/atom, DFT)", "DFT ended"]
    if relaxed:
        header += [
            "Largest move (Å, potential)",
            "Volume change (%, potential)",
            "Above hull (eV/atom, potential)",
        ]
    rows = []
    for c in candidates:
        p = c["predicted"]
        name = f"{_formula(c['formula'])}"
        if p["unlike_training"]:
            name += ' <span class="flag" title="unlike the surrogate\'s training data">!</span>'
        row = [
            html.escape(str(c["rank"])),
            name,
            html.escape(charges_text(c["charges"], c["common_charges"])),
            "yes" if c["novel"] else "no",
            with_error(p["band_gap_ev"], p["band_gap_std_ev"]),
            _percent(c["hit_probability"]),
            with_error(p["formation_energy_ev_per_atom"], p["formation_energy_std_ev_per_atom"]),
            with_error(c["expected_reward"]),
        ]
        if with_dft:
            dft = c["calculated"] or {}
            row += [
                with_error(dft.get("band_gap_ev")),
                with_error(dft.get("formation_energy_ev_per_atom")),
                html.escape(dft.get("status", "not calculated").replace("_", " ")),
            ]
        if relaxed:
            moved = c["relaxed"] or {}
            row += [
                with_error(moved.get("largest_move_ang")),
                with_error(moved.get("volume_change_percent")),
                with_error(moved.get("energy_above_hull_ev_per_atom")),
            ]
        rows.append(row)
    return page.table(header, rows, "Candidates, the best first.", text_columns=4)


def _notes(results: Mapping[str, Any]) -> str:
    items = [
        f"Chance to hit: that the gap lies from {results['window'][0]:g} to "
        f"{results['window'][1]:g} eV, if the surrogate's standard deviations are right.",
        "Expected reward: eqn (7) of the paper averaged over the predicted gap; 11 would be a "
        "perfect hit at a formation energy of 0.",
        "New: no crystal of this formula among the policy's training data.",
        "Charges: one oxidation state an element that makes the composition neutral (SMACT, "
        "smact14); 'none' where there is none, ? where one of them is unusual: such candidates "
        "come after the others, since the surrogate has hardly seen any.",
        "!: the structure is unlike the surrogate's training data, so its error bars mean little.",
    ]
    return "<ul>" + "".join(f"<li>{html.escape(i)}</li>" for i in items) + "</ul>"


def _map(results: Mapping[str, Any]) -> str:
    traces = []
    for novel, name, symbol in ((True, "new", "circle"), (False, "in the training data", "square")):
        some = [
            c
            for c in results["candidates"]
            if c["novel"] is novel and c["predicted"]["band_gap_ev"] is not None
        ]
        if some:
            traces.append(
                {
                    "type": "scatter",
                    "mode": "markers",
                    "name": f"predicted (surrogate), {name}",
                    "x": [c["predicted"]["band_gap_ev"] for c in some],
                    "y": [c["predicted"]["formation_energy_ev_per_atom"] for c in some],
                    "error_x": _bars([c["predicted"]["band_gap_std_ev"] for c in some]),
                    "error_y": _bars(
                        [c["predicted"]["formation_energy_std_ev_per_atom"] for c in some]
                    ),
                    "text": [f"{c['rank']}. {c['formula']}" for c in some],
                    "hovertemplate": "%{text}<br>%{x:.2f} eV, %{y:.2f} eV/atom<extra></extra>",
                    "marker": {"size": 10, "symbol": symbol},
                }
            )
    known = [
        c
        for c in results["candidates"]
        if c["calculated"] and c["calculated"].get("formation_energy_ev_per_atom") is not None
    ]
    if known:
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": "DFT",
                "x": [c["calculated"]["band_gap_ev"] for c in known],
                "y": [c["calculated"]["formation_energy_ev_per_atom"] for c in known],
                "text": [f"{c['rank']}. {c['formula']}" for c in known],
                "hovertemplate": "%{text}<br>%{x:.2f} eV, %{y:.2f} eV/atom (DFT)<extra></extra>",
                "marker": {"size": 12, "symbol": "star"},
            }
        )
    low, high = results["window"]
    layout = {
        "xaxis": {"title": {"text": "band gap (eV)"}},
        "yaxis": {"title": {"text": "formation energy (eV/atom)"}},
        "shapes": [
            {
                "type": "rect",
                "xref": "x",
                "yref": "paper",
                "x0": low,
                "x1": high,
                "y0": 0,
                "y1": 1,
                "fillcolor": "#808080",
                "opacity": 0.15,
                "line": {"width": 0},
            }
        ],
    }
    caption = (
        "Every candidate by its predicted gap and formation energy; bars are one standard "
        f"deviation of the surrogate. The grey band, {low:g} to {high:g} eV, counts as a hit."
    )
    return page.figure(traces, layout, caption)


def _bars(sizes: list[float]) -> dict[str, Any]:
    return {"type": "data", "array": sizes, "thickness": 1, "width": 0}


def _scene(candidate: Mapping[str, Any], source: Mapping[str, Any]) -> dict[str, Any]:
    p = candidate["predicted"]
    title = f"{candidate['rank']}. {candidate['formula']}"
    if p["band_gap_ev"] is not None:
        title += f", predicted gap {p['band_gap_ev']:.2f} ± {p['band_gap_std_ev']:.2f} eV"
    if candidate["calculated"] and candidate["calculated"].get("band_gap_ev") is not None:
        title += f", DFT {candidate['calculated']['band_gap_ev']:.2f} eV"
    return scene(source["lattice"], source["frac_coords"], candidate["symbols"], title)


def _source_scene(source: Mapping[str, Any]) -> dict[str, Any]:
    title = f"{source['name']}, the source"
    p = source["predicted"]
    if p is not None and p["band_gap_ev"] is not None:
        title += f", predicted gap {p['band_gap_ev']:.2f} ± {p['band_gap_std_ev']:.2f} eV"
    return scene(source["lattice"], source["frac_coords"], source["symbols"], title)


def _record(results: Mapping[str, Any]) -> str:
    rows = [(name, str(value)) for name, value in results["settings"].items()]
    rows += [("policy", results["policy"]), ("surrogate", results["surrogate"])]
    if results.get("dft"):
        rows.append(("DFT", results["dft"]))
    rows += [(name, str(v)) for name, v in results["versions"].items()]
    rows.append(("time", f"{results['seconds']:.0f} s"))
    return page.record(rows)


def _formula(formula: str) -> str:
    out = "".join(f"<sub>{c}</sub>" if c.isdigit() else html.escape(c) for c in formula)
    return out.replace("</sub><sub>", "")


def charges_text(charges: Mapping[str, int] | None, common: bool = True) -> str:
    """Return oxidation states as chemists write them: ``Sr2+ Ti4+ O2−``, ``?`` if unusual."""
    if charges is None:
        return "none"
    return ("" if common else "? ") + " ".join(
        f"{symbol}{abs(n) if abs(n) > 1 else ''}{'+' if n > 0 else '−'}" if n else f"{symbol}0"
        for symbol, n in sorted(charges.items(), key=lambda c: -c[1])
    )


def with_error(value: float | None, error: float | None = None) -> str:
    """Return ``1.23 ± 0.20``, or a dash where nothing is known."""
    if value is None:
        return "–"
    return f"{value:.2f}" if error is None else f"{value:.2f} ± {error:.2f}"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.0f} %"
