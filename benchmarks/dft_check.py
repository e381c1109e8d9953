"""Designed crystals calculated with Quantum ESPRESSO: do they have the gap that was asked for?

    python benchmarks/dft_check.py [--bc RUN] [--crystals 40] [--workers 2]

The same skeletons for every method and target: drawn (seed 0) from the validation skeletons of at
most 8 sites. Methods: greedy cloning (the designs of the table where --bc names no run), greedy
c-CQL (the bundled policy, or --c-cql RUN), and the search of `crystal-gym design` (beam of the
c-CQL policy under the charge-neutral mask, the best by the surrogate's expected reward).
Preset `fast`, within 3 meV of the label settings. Calculations are stored one by one in a database
(--cache), and the table docs/results/dft_check.csv holds what is finished when the command ends or
is stopped by Ctrl-C: it goes on where it was, on another machine too. What this table holds, or
that of the first check, is not calculated again. --summary prints what a table holds so far.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import numpy as np
import torch
from pymatgen.core import Structure

from crystal_gym.agents import load_policy
from crystal_gym.datasets.replay import load_trajectories
from crystal_gym.design import best_by_reward
from crystal_gym.elements import reduced_formula, symbol_to_token, tokens_to_symbols
from crystal_gym.evaluation import Task, rollout
from crystal_gym.evaluation.intervals import estimates, ratio
from crystal_gym.evaluation.properties import IN_RANGE_EV
from crystal_gym.evaluation.report import markdown_table
from crystal_gym.evaluation.study import rare_gap
from crystal_gym.files import atomic_path
from crystal_gym.labelling import label
from crystal_gym.oracles import CachedOracle, EspressoOracle, Filling
from crystal_gym.oracles.surrogate import SurrogateOracle

TABLE = Path("docs/results/dft_check.csv")
FIRST = Path("docs/results/dft_check_first.csv")  # its search asked the surrogate bundled before
TARGETS_EV = (1.12, 2.0, 3.0, 4.0)
MAX_SITES = 8
PREDICTED = (
    "surrogate_gap_ev",
    "surrogate_gap_std_ev",
    "surrogate_formation_energy_ev_per_atom",
    "surrogate_formation_energy_std_ev_per_atom",
)
CALCULATED = ("dft_status", "dft_gap_ev", "dft_formation_energy_ev_per_atom", "dft_wall_s")
COLUMNS = ("method", "target_ev", "skeleton", "formula", "elements", *PREDICTED, *CALCULATED)


def drawn_task(count: int) -> Task:
    validation = load_trajectories("crystal-mp20-val-v0")
    every = Task.of_trajectories(validation)
    small = np.flatnonzero(every.n_sites <= MAX_SITES)
    rows = np.sort(np.random.default_rng(0).choice(small, count, replace=False))
    return every.rows(rows)


def designs(options, task: Task, surrogate) -> list[dict]:
    conditional = load_policy(options.c_cql)
    cloned = rollout(load_policy(options.bc), task, None) if options.bc else cloned_before(task)
    made = [("bc", None, cloned)]
    for target in TARGETS_EV:
        made.append(("c-cql", target, rollout(conditional, task, target)))
        found = best_by_reward(conditional, surrogate, task, target, progress=True)
        made.append(("search", target, found))
    rows = []
    skeletons = [task.skeletons[number] for number in task.skeleton.tolist()]
    for method, target, tokens in made:
        fillings = [Filling(s, t[: s.n_sites]) for s, t in zip(skeletons, tokens, strict=True)]
        answers = surrogate.evaluate_fillings(fillings)
        for (skeleton, inside), said in zip(fillings, answers, strict=True):
            rows.append(
                {
                    "method": method,
                    "target_ev": "" if target is None else f"{target:g}",
                    "skeleton": skeleton.name,
                    "formula": reduced_formula(inside),
                    "elements": " ".join(map(str, tokens_to_symbols(inside))),
                    **dict(
                        zip(
                            PREDICTED,
                            (
                                said.band_gap_ev,
                                said.details["band_gap_std_ev"],
                                said.formation_energy_ev_per_atom,
                                said.details["formation_energy_std_ev_per_atom"],
                            ),
                            strict=True,
                        )
                    ),
                }
            )
    return rows


def cloned_before(task: Task) -> np.ndarray:
    """Return what cloning made of each skeleton when the table was written."""
    cloned = {r["skeleton"]: tokens_of(r) for r in read(TABLE) if r["method"] == "bc"}
    tokens = np.zeros((len(task), task.skeletons.max_sites), np.int16)
    for row, number in enumerate(task.skeleton.tolist()):
        name = task.skeletons[number].name
        if name not in cloned:
            raise SystemExit(f"{TABLE} holds no filling of {name} by cloning: name its run by --bc")
        tokens[row, : len(cloned[name])] = cloned[name]
    return tokens


def read(path: Path) -> list[dict]:
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def crystal_of(row: dict, skeletons: dict) -> tuple[str, bytes]:
    skeleton = skeletons[row["skeleton"]]
    return skeleton.key, skeleton.canonical_tokens(tokens_of(row))


def tokens_of(row: dict) -> np.ndarray:
    return np.array([symbol_to_token(s) for s in row["elements"].split()])


def write(rows: list[dict]) -> None:
    with atomic_path(TABLE) as path, path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)


def summary(path: Path) -> str:
    """Return success, nu, kappa, errors and energies with 95% intervals, DFT beside surrogate.

    A calculation that failed is a miss; one that is still to be done is left out and counted.
    """
    rows = read(path)
    rare = rare_gap(load_trajectories("crystal-mp20-v0"))
    header = ["method", "target (eV)", "calculated", "success % (DFT)"]
    header += [
        f"{m} ({who})" for m in ("nu %", f"gap > {rare:.2f} eV %") for who in ("DFT", "surr.")
    ]
    header += ["gap error of the surrogate (eV)", "E_form (eV/atom, DFT)", "(surr.)"]
    table = [header]
    groups = dict.fromkeys((r["method"], r["target_ev"]) for r in rows)
    for method, aimed in groups:
        mine = [r for r in rows if (r["method"], r["target_ev"]) == (method, aimed)]
        done = [r for r in mine if r["dft_status"]]
        if not done:
            continue

        def column(name: str, some: list[dict] = done) -> np.ndarray:
            return np.array([float(r[name]) if r[name] else np.nan for r in some])

        gap, energy = column("dft_gap_ev"), column("dft_formation_energy_ev_per_atom")
        said = column("surrogate_gap_ev")
        said_energy = column("surrogate_formation_energy_ev_per_atom")
        ok, has_energy = np.isfinite(gap), np.isfinite(energy)
        for target in [float(aimed)] if aimed else TARGETS_EV:
            found = estimates(
                {
                    "success": ratio(ok),
                    "nu": ratio(ok & (np.abs(np.nan_to_num(gap) - target) <= IN_RANGE_EV)),
                    "nu_said": ratio(np.abs(said - target) <= IN_RANGE_EV),
                    "kappa": ratio(ok & (np.nan_to_num(gap) > rare)),
                    "kappa_said": ratio(said > rare),
                    "error": ratio(np.where(ok, np.abs(said - np.nan_to_num(gap)), 0.0), ok),
                    "energy": ratio(np.where(has_energy, np.nan_to_num(energy), 0.0), has_energy),
                    "energy_said": ratio(np.where(has_energy, said_energy, 0.0), has_energy),
                },
                len(done),
            )
            shares = ("success", "nu", "nu_said", "kappa", "kappa_said")
            cells = [interval(found[n], 100.0, 0) for n in shares]
            cells += [interval(found[n], 1.0, 2) for n in ("error", "energy", "energy_said")]
            name = method if aimed else f"{method} (takes no target)"
            table.append([name, f"{target:g}", f"{len(done)} of {len(mine)}", *cells])
    return markdown_table(table)


def interval(estimate, factor: float, digits: int) -> str:
    numbers = (estimate.value, estimate.low, estimate.high)
    value, low, high = (f"{factor * n:.{digits}f}" for n in numbers)
    return f"{value} [{low}, {high}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bc", help="run of cloning")
    parser.add_argument("--c-cql", help="run of c-CQL")
    parser.add_argument("--summary", nargs="?", type=Path, const=TABLE, metavar="TABLE")
    parser.add_argument("--crystals", type=int, default=40)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--cache")
    parser.add_argument("--timeout", type=float, default=1200.0)
    options = parser.parse_args()
    if options.summary:
        print(summary(options.summary))
        return
    torch.set_num_threads(1)
    task = drawn_task(options.crystals)
    skeletons = {task.skeletons[n].name: task.skeletons[n] for n in task.skeleton.tolist()}
    known: dict[tuple[str, bytes], dict] = {}
    for row in (*read(FIRST), *read(TABLE)):
        if row["dft_status"] and row["skeleton"] in skeletons:
            known[crystal_of(row, skeletons)] = {n: row[n] for n in CALCULATED}
    rows = designs(options, task, SurrogateOracle())
    todo: dict[tuple[str, bytes], Structure] = {}
    for row in rows:
        name = crystal_of(row, skeletons)
        row.update(known.get(name, {}))
        if name not in known and name not in todo:
            tokens = tokens_of(row)
            todo[name] = skeletons[row["skeleton"]].structure(tokens)
    write(rows)
    print(f"{len(rows)} designs, {len(known) + len(todo)} different crystals, {len(todo)} to do")
    oracle = CachedOracle(EspressoOracle("fast", timeout_s=options.timeout), options.cache)
    order = sorted(todo.values(), key=len)  # the smallest first
    try:
        label(order, oracle, workers=options.workers, progress=True)
    finally:  # Ctrl-C too keeps what is finished
        finished = {name: oracle.known(structure) for name, structure in todo.items()}
        for row in rows:
            found = finished.get(crystal_of(row, skeletons))
            if found is not None:
                values = (
                    found.status,
                    found.band_gap_ev,
                    found.formation_energy_ev_per_atom,
                    found.wall_s,
                )
                row.update(zip(CALCULATED, values, strict=True))
        write(rows)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        raise SystemExit(f"interrupted: {TABLE} holds what is finished; the same goes on") from None
