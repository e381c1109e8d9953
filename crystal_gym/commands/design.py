"""The command ``crystal-gym design``: a crystal in, compounds on its skeleton out."""

from __future__ import annotations

import argparse
import dataclasses
import json
import platform
import time
from collections.abc import Container, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from crystal_gym.design import Candidate, DesignProblem, DesignSettings, design
from crystal_gym.elements import EMPTY
from crystal_gym.evaluation.report import markdown_table
from crystal_gym.files import atomic_path, read_json, safe_name
from crystal_gym.known_formulas import KnownFormulas
from crystal_gym.oracles.base import Filling, Properties
from crystal_gym.report.design import charges_text, design_report, with_error
from crystal_gym.structures import read_structures, site_symbols

__all__ = ["design_compounds", "planned", "write_report"]


def design_compounds(options: argparse.Namespace) -> str:
    """Do what the command line asks; return what to print at the end."""
    begun = time.monotonic()
    settings = _settings(options)
    problem = _problem(options.structure)
    folder = _folder(options, problem, settings)
    folder.mkdir(parents=True, exist_ok=True)
    replaced = _written_before(folder)
    from crystal_gym.agents import load_policy
    from crystal_gym.oracles.surrogate import SurrogateOracle

    policy = load_policy(options.policy)
    if not hasattr(policy, "values"):
        raise ValueError(
            f"{options.policy} acts on the history of an episode: expected a policy with values"
        )
    surrogate = SurrogateOracle(options.surrogate)
    known = KnownFormulas.bundled() if options.policy is None else _known(policy.metadata)
    conditional = _takes_target(policy.metadata)
    candidates = design(problem, settings, policy, surrogate, known, conditional=conditional)
    dft = None
    if options.relax:
        candidates = _relaxed(problem, candidates, options)
    if options.verify is not None:
        candidates, dft = _verified(problem, candidates, options)
    cifs = [f"{rank:03d}-{c.formula}.cif" for rank, c in enumerate(candidates, start=1)]
    results = {
        "kind": "design",
        "source": _source(problem, surrogate),
        "goal": _goal(settings),
        "window": settings.window,
        "settings": {k: v for k, v in dataclasses.asdict(settings).items() if v != ()},
        "policy": "bundled" if options.policy is None else Path(options.policy).name,
        "surrogate": repr(surrogate),
        "dft": dft,
        "versions": {
            "python": platform.python_version(),
            **{p: version(p) for p in ("crystal-gym", "numpy", "pymatgen", "smact", "torch")},
        },
        "seconds": time.monotonic() - begun,
        "candidates": [
            _as_json(problem, c, rank, cif)
            for rank, (c, cif) in enumerate(zip(candidates, cifs, strict=True), start=1)
        ],
    }
    with atomic_path(folder / "design.json") as path:
        path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    for old in replaced:
        old.unlink()
    _write_cifs(problem, candidates, [folder / name for name in cifs])
    page = write_report(folder)
    return (
        f"{_text_table(results['candidates'])}\n\n"  # type: ignore[arg-type]
        f"{problem.name}: {len(candidates)} candidates for {_goal(settings)}; predicted values are "
        "a surrogate's (one standard deviation), not DFT; !: unlike its training data; "
        "?: an unusual oxidation state\n"
        f"{page}, design.json and {len(cifs)} CIF files beside it"
    )


def planned(options: argparse.Namespace) -> str:
    """Say what a design would do; nothing is written and no candidate made."""
    settings = _settings(options)
    problem = _problem(options.structure)
    folder = _folder(options, problem, settings)
    sites = problem.skeleton.n_sites
    text = (
        f"{settings.count} candidates for {_goal(settings)} on the {sites} sites of {problem.name} "
        f"into {folder}: {'up to ' if sites < 22 else ''}half a minute (8, 22 and 56 sites took "
        "9, 24 and 17 s on two cores)"
    )
    if options.relax:
        text += f"; then {options.top} relaxed with CHGNet"
    if options.verify is not None:
        from crystal_gym.commands.label import calculation_of, expected_time

        oracle = calculation_of(options)
        text += (
            f"; then at most {options.top} calculated with {oracle.oracle!r}"
            f"{expected_time(oracle, options.top, options.workers)}"
        )
    return f"{text}; nothing was done"


def write_report(folder: Path) -> Path:
    """Write ``report.html`` from the ``design.json`` in a folder; return its path."""
    results = read_json(folder / "design.json")
    design_report(results, folder / "report.html")
    return folder / "report.html"


def _folder(options: argparse.Namespace, problem: DesignProblem, settings: DesignSettings) -> Path:
    goal = "-".join(f"{gap:g}" for gap in dict.fromkeys(settings.target_gap))
    return options.output or Path(f"design-{safe_name(problem.name, 'structure')}-{goal}eV")


def _settings(options: argparse.Namespace) -> DesignSettings:
    gaps = options.target_gap
    if len(gaps) > 2:
        raise ValueError(
            f"--target-gap {' '.join(map(str, gaps))}: expected one gap in eV, or two for a range"
        )
    return DesignSettings(
        target_gap=(gaps[0], gaps[-1]),
        count=options.count,
        include=tuple(options.include),
        exclude=tuple(options.exclude),
        only=tuple(options.only),
        keep=tuple(options.keep),
        isostructural=options.sites == "equivalent",
        neutral=options.mask == "charge_neutral",
        rank=options.rank,
        width=options.width,
        samples=options.samples,
        seed=options.seed,
    )


def _problem(path: Path) -> DesignProblem:
    if path.is_dir():
        raise ValueError(f"{path} is a folder: expected one CIF, POSCAR or extended XYZ file")
    found = list(read_structures(path))
    if len(found) != 1:
        raise ValueError(
            f"{path} holds {len(found)} structures: expected one; write the one you mean to a file"
        )
    ((name, structure),) = found
    return DesignProblem.of(structure, name)


def _known(metadata: Mapping[str, Any]) -> Container[str]:
    """Return the formulas of the dataset that a policy was trained on, where it is here."""
    import minari

    from crystal_gym.datasets.minari_io import load_trajectories
    from crystal_gym.evaluation.metrics import compositions

    dataset = metadata.get("settings", {}).get("dataset")
    if dataset not in minari.list_local_datasets():
        return KnownFormulas.bundled()
    return compositions(load_trajectories(dataset).finished)


def _takes_target(metadata: Mapping[str, Any]) -> bool:
    """Return whether a policy was trained with targets, which one that does not say so was."""
    from crystal_gym.agents.training import TrainConfig

    settings = metadata.get("settings")
    return settings is None or TrainConfig.from_dict(settings).targets is not None


def _goal(settings: DesignSettings) -> str:
    low, high = settings.target_gap
    return f"{low:g} eV" if low == high else f"{low:g} to {high:g} eV"


def _relaxed(
    problem: DesignProblem, candidates: list[Candidate], options: argparse.Namespace
) -> list[Candidate]:
    from tqdm import tqdm

    from crystal_gym.relaxation import Relaxer

    relaxer = Relaxer(options.references)
    top = candidates[: options.top]
    out = [
        dataclasses.replace(c, relaxed=relaxer(problem.structure(c.tokens)))
        for c in tqdm(top, desc=f"relaxing ({relaxer.name})", unit="crystal", disable=None)
    ]
    return out + candidates[len(top) :]


def _verified(
    problem: DesignProblem, candidates: list[Candidate], options: argparse.Namespace
) -> tuple[list[Candidate], str]:
    """Calculate the best candidates with pw.x, at the positions of the source."""
    from crystal_gym.commands.label import calculation_of, label_as_told

    oracle = calculation_of(options)
    top = candidates[: options.top]
    structures = [problem.structure(c.tokens) for c in top]
    results = label_as_told(options, oracle, structures)
    out = [dataclasses.replace(c, calculated=r) for c, r in zip(top, results, strict=True)]
    return out + candidates[len(top) :], repr(oracle.oracle)


def _written_before(folder: Path) -> list[Path]:
    """Return the CIF files that an earlier design in this folder wrote, by its own record."""
    try:
        names = [candidate["cif"] for candidate in read_json(folder / "design.json")["candidates"]]
    except FileNotFoundError:
        return []
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{folder / 'design.json'} is no record of a design, and would be replaced: choose "
            "another folder with -o"
        ) from error
    ours = {*names, *(_relaxed_name(name) for name in names)}
    return [path for path in folder.glob("*.cif") if path.name in ours]


def _relaxed_name(name: str) -> str:
    return name.removesuffix(".cif") + "-relaxed.cif"


def _write_cifs(problem: DesignProblem, candidates: list[Candidate], paths: list[Path]) -> None:
    from pymatgen.core import Structure

    for candidate, path in zip(candidates, paths, strict=True):
        problem.structure(candidate.tokens).to(filename=str(path))
        if candidate.relaxed:
            after = Structure.from_dict(candidate.relaxed["structure"])
            after.to(filename=str(path.with_name(_relaxed_name(path.name))))


def _source(problem: DesignProblem, surrogate: Any) -> dict[str, Any]:
    skeleton, predicted = problem.skeleton, None
    if (skeleton.reference != EMPTY).all():
        filling = Filling(skeleton, skeleton.reference)
        predicted = _prediction(surrogate.evaluate_fillings([filling])[0])
    return {
        "name": problem.name,
        "lattice": problem.source.lattice.matrix.tolist(),
        "frac_coords": problem.source.frac_coords.tolist(),
        "symbols": site_symbols(problem.source),
        "predicted": predicted,
    }


def _as_json(problem: DesignProblem, candidate: Candidate, rank: int, cif: str) -> dict[str, Any]:
    calculated = candidate.calculated
    return {
        "rank": rank,
        "formula": candidate.formula,
        "charges": candidate.charges,
        "common_charges": candidate.common,
        "novel": candidate.novel,
        "log_probability": candidate.log_probability,
        "expected_reward": candidate.expected_reward,
        "hit_probability": candidate.hit_probability,
        "predicted": _prediction(candidate.predicted),
        "calculated": None if calculated is None else _calculation(calculated),
        "relaxed": candidate.relaxed or None,
        "symbols": site_symbols(problem.structure(candidate.tokens)),
        "cif": cif,
    }


def _prediction(properties: Properties) -> dict[str, Any]:
    return {
        **_calculation(properties),
        "band_gap_std_ev": None,
        "formation_energy_std_ev_per_atom": None,
        "unlike_training": None,
        **properties.details,
    }


def _calculation(properties: Properties) -> dict[str, Any]:
    names = ("band_gap_ev", "formation_energy_ev_per_atom", "total_energy_ry", "provenance")
    return {n: getattr(properties, n) for n in names} | {"status": str(properties.status)}


def _text_table(candidates: list[dict[str, Any]]) -> str:
    header = ["formula", "charges", "new", "gap (eV, surrogate)", "hit", "E_form (eV/atom, surr.)"]
    with_dft = any(c["calculated"] is not None for c in candidates)
    relaxed = any(c["relaxed"] for c in candidates)
    if with_dft:
        header += ["gap (eV, DFT)", "E_form (eV/atom, DFT)"]
    if relaxed:
        header += ["moved (Å, pot.)", "volume (%, pot.)", "above hull (eV/atom, pot.)"]
    rows = [header]
    for c in candidates:
        p, dft, hit = c["predicted"], c["calculated"], c["hit_probability"]
        row = [
            f"{c['rank']:3d} {c['formula']}{' !' if p['unlike_training'] else ''}",
            charges_text(c["charges"], c["common_charges"]),
            "yes" if c["novel"] else "no",
            with_error(p["band_gap_ev"], p["band_gap_std_ev"]),
            "–" if hit is None else f"{100 * hit:.0f}%",
            with_error(p["formation_energy_ev_per_atom"], p["formation_energy_std_ev_per_atom"]),
        ]
        if with_dft and dft is None:
            row += ["", ""]
        elif with_dft:
            failed = dft["status"] if dft["status"] != "ok" else "–"
            row += [
                with_error(dft["band_gap_ev"]) if dft["band_gap_ev"] is not None else failed,
                with_error(dft["formation_energy_ev_per_atom"]),
            ]
        if relaxed:
            moved = c["relaxed"] or {}
            names = ("largest_move_ang", "volume_change_percent", "energy_above_hull_ev_per_atom")
            row += [with_error(moved.get(name)) if moved else "" for name in names]
        rows.append(row)
    return markdown_table(rows)
