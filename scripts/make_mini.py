#!/usr/bin/env python3
"""Make the DFT table of the bundled set with Quantum ESPRESSO's pw.x.

The crystals are those of ``mini_crystals.py``. Where only the size of a cell is estimated, an
energy-volume fit at the preset "fast" gives it. Then every crystal is calculated at the preset
"labels", the settings behind the labels of Govindarajan et al. 2024 (doi 10.1039/d4dd00024b), so
the numbers can be compared and mixed with theirs. ``crystal_gym/data/mini_labels.json`` is written
whole at the end; ``make mini`` turns it into the bundled set.

Every result goes into a database at once. An interrupted run, started again, goes on from there.

Examples::

    python scripts/make_mini.py --pseudo sssp_efficiency.tar.gz --cache mini.db
    python scripts/make_mini.py --only MgO-rocksalt SrTiO3-perovskite --output two.json
    python scripts/make_mini.py --list
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from mini_crystals import Candidate, candidates, prototypes
from numpy.typing import NDArray
from pymatgen.core import Composition

from crystal_gym.files import atomic_path, cache_dir
from crystal_gym.labelling import label
from crystal_gym.oracles import CachedOracle, EspressoOracle, Properties, Status
from crystal_gym.oracles.espresso.pseudopotentials import Pseudopotentials, install, manifest
from crystal_gym.oracles.references import published_references

DEFAULT_OUTPUT = (
    Path(__file__).resolve().parent.parent / "crystal_gym" / "data" / "mini_labels.json"
)
DESCRIPTION = (
    "Total energies and band gaps of nonmetals in well-known structure types, computed by "
    "scripts/make_mini.py with the settings of the labels of Govindarajan et al. 2024 (doi "
    "10.1039/d4dd00024b). Energies in Ry per cell as pw.x prints them, gaps (LUMO - HOMO on the "
    "k-mesh, clipped at 0) in eV, formation energies (eqn 15) in eV/atom. Entries whose status is "
    "not 'ok' carry the reason; 'left_out' names the crystals whose volume could not be fitted."
)

STEP = 0.05
"""Between the lattice scales of a fit."""
START = (0.95, 1.0, 1.05)
EXTRA_ROUNDS = 3
NOISE_RY = 2e-5
"""Energies of one crystal closer than this say nothing of its volume: pw.x stops at 1e-6 Ry."""

LATTICE_DECIMALS = 6
"""Of lattice vectors in Å; one digit less, and pw.x would no longer find all symmetries."""
COORDINATE_DECIMALS = 8

MAX_VOLUME_BANDS = {"label": 8000.0, "fit and label": 5000.0}
"""Å^3 times bands; the larger cells would take most of the time."""


# --------------------------------------------------------------------------- energy-volume fit


@dataclass(frozen=True)
class Fit:
    """Where the energy is lowest.

    Attributes:
        scale: Of all lattice vectors of the estimate.
        points: Calculations it rests on.
    """

    scale: float
    points: int


class FitError(ValueError):
    """Why a crystal has no fitted volume."""


def parabola_minimum(scales: Sequence[float], energies: Sequence[float]) -> float:
    """Return the lattice scale of lowest energy by the second-order Birch-Murnaghan equation.

    That is a parabola in V^(-2/3), thus in scale^-2; a parabola in the scale itself would be off
    by some 0.4 % of the lattice constant with points 5 % apart.

    Args:
        scales: Three lattice scales.
        energies: Of these, in any unit.

    Raises:
        FitError: If the parabola has no minimum above zero.
    """
    # Differences of energies: the total ones have seven digits before those that matter.
    relative = np.asarray(energies, dtype=float) - min(energies)
    curvature, slope, _ = np.polyfit(np.asarray(scales, dtype=float) ** -2.0, relative, 2)
    if not curvature > 0:
        raise FitError("the energies have no minimum")
    position = -slope / (2 * curvature)
    if not position > 0:
        raise FitError("the energies have no minimum")
    return float(position**-0.5)


def missing_scales(energies: Mapping[float, float | None]) -> list[float]:
    """Return the scales to calculate next: neighbours of the lowest one; none when bracketed.

    Args:
        energies: Energy by scale, None where the calculation failed.

    Raises:
        FitError: If nothing was calculated, or a neighbour of the lowest one failed.
    """
    lowest = _lowest(energies)
    wanted = [round(lowest - STEP, 2), round(lowest + STEP, 2)]
    failed = [scale for scale in wanted if scale in energies and energies[scale] is None]
    if failed:
        raise FitError(f"there is no energy at {failed[0]:.2f} of the estimated lattice constant")
    return [scale for scale in wanted if scale not in energies]


def fit_minimum(energies: Mapping[float, float | None]) -> Fit:
    """Return the minimum from the lowest point and its two neighbours.

    Raises:
        FitError: If the lowest point is not bracketed or the curve is flat.
    """
    if missing_scales(energies):
        raise FitError(
            f"the minimum lies outside {min(energies):.2f} to {max(energies):.2f} of the estimated "
            "lattice constant"
        )
    lowest = _lowest(energies)
    scales = [round(lowest - STEP, 2), lowest, round(lowest + STEP, 2)]
    values = [_known(energies[scale]) for scale in scales]
    if min(values[0], values[2]) - values[1] < NOISE_RY:
        raise FitError(f"the energy changes by less than {NOISE_RY:g} Ry around its minimum")
    known = sum(energy is not None for energy in energies.values())
    return Fit(round(parabola_minimum(scales, values), 6), known)


def _lowest(energies: Mapping[float, float | None]) -> float:
    known = {scale: energy for scale, energy in energies.items() if energy is not None}
    if not known:
        raise FitError("no calculation gave an energy")
    return min(known, key=lambda scale: known[scale])


def _known(energy: float | None) -> float:
    return math.nan if energy is None else energy


def fit_volumes(
    crystals: Sequence[Candidate], oracle: CachedOracle, workers: int
) -> tuple[dict[str, Fit], dict[str, str]]:
    """Return the fit of each crystal by name, and why the others have none.

    All crystals are calculated in common rounds, so that no worker waits for the last of a fit.
    """
    results: dict[str, dict[float, Properties]] = {c.name: {} for c in crystals}
    wanted = {c.name: list(START) for c in crystals}
    fits: dict[str, Fit] = {}
    problems: dict[str, str] = {}
    for round_number in range(1 + EXTRA_ROUNDS):
        jobs = [(c, scale) for c in crystals for scale in wanted.get(c.name, [])]
        if not jobs:
            break
        say(f"energy-volume fits, round {round_number + 1}: {len(jobs)} calculations")
        structures = [crystal.structure(scale) for crystal, scale in jobs]
        answers = label(structures, oracle, workers=workers, progress=True)
        for (crystal, scale), answer in zip(jobs, answers, strict=True):
            results[crystal.name][scale] = answer
        last = round_number == EXTRA_ROUNDS
        for name in list(wanted):
            energies = {s: energy_of(p) for s, p in results[name].items()}
            try:
                wanted[name] = missing_scales(energies)
                if not wanted[name] or last:
                    fits[name] = fit_minimum(energies)
                    del wanted[name]
            except FitError as error:
                problems[name] = explain(error, results[name])
                del wanted[name]
    return fits, problems


def energy_of(properties: Properties) -> float | None:
    """Return the total energy of a calculation that counts, None of a failed one."""
    return properties.total_energy_ry if properties.status is Status.OK else None


def explain(error: FitError, results: Mapping[float, Properties]) -> str:
    """Return the reason for a failed fit, with the first failed calculation there is."""
    failed = [(scale, p) for scale, p in sorted(results.items()) if p.status is not Status.OK]
    if not failed:
        return str(error)
    scale, properties = failed[0]
    return f"{error} (at {scale:.2f}: {properties.status}, {properties.provenance})"


# --------------------------------------------------------------------------- final cells


def final_crystal(candidate: Candidate, fit: Fit | None, source: str) -> Candidate:
    """Return the crystal to label: fitted where it has a fit, with the digits that are written.

    Args:
        candidate: As listed.
        fit: Its fit, None for one that needs none.
        source: What the fit was made with, such as ``pw.x 6.7 preset fast``.
    """
    scale = 1.0 if fit is None else fit.scale
    text = candidate.lattice_source
    if fit is not None:
        text = f"energy-volume fit, {source}: {candidate.describe(scale)}"
    return replace(
        candidate,
        lattice=_rounded(scale * np.array(candidate.lattice), LATTICE_DECIMALS),
        frac_coords=_rounded(np.array(candidate.frac_coords), COORDINATE_DECIMALS),
        lattice_source=text,
        needs_fit=False,
        parameters=tuple((n, scale * v if n in "abc" else v) for n, v in candidate.parameters),
    )


def _rounded(rows: NDArray[np.float64], decimals: int) -> tuple[tuple[float, float, float], ...]:
    return tuple((float(x), float(y), float(z)) for x, y, z in np.round(rows, decimals) + 0.0)


# --------------------------------------------------------------------------- result file


def make_entry(crystal: Candidate, properties: Properties) -> dict[str, Any]:
    """Return what the file says of one crystal."""
    details = properties.details
    # Whether an answer was looked up or calculated just now depends on the run, not the crystal.
    reason = properties.provenance.removesuffix(" (stored)")
    return {
        "name": crystal.name,
        "structure_type": crystal.structure_type,
        "formula": Composition(dict(Counter(crystal.species))).reduced_formula,
        "lattice": [list(row) for row in crystal.lattice],
        "frac_coords": [list(row) for row in crystal.frac_coords],
        "species": list(crystal.species),
        "lattice_source": crystal.lattice_source,
        "nbnd": details.get("n_bands"),
        "status": str(properties.status),
        "reason": None if properties.status is Status.OK else reason,
        "total_energy_ry": properties.total_energy_ry,
        "formation_energy_ev_per_atom": _round(properties.formation_energy_ev_per_atom, 8),
        "band_gap_ev": properties.band_gap_ev,
        "homo_ev": details.get("homo_ev"),
        "lumo_ev": details.get("lumo_ev"),
        "magnetization": details.get("magnetization"),
        "n_electrons": details.get("n_electrons"),
        "n_scf_iterations": details.get("n_iterations"),
        "wall_s": _round(properties.wall_s, 2),
    }


def _round(value: float | None, decimals: int) -> float | None:
    return None if value is None else round(value, decimals)


def make_content(
    oracle: EspressoOracle, entries: Sequence[Mapping[str, Any]], left_out: Mapping[str, str]
) -> dict[str, Any]:
    """Return the whole file as JSON types."""
    settings = {"calculation": "scf", "functional": "PBE", "occupations": "fixed"}
    elements = sorted({symbol for entry in entries for symbol in entry["species"]})
    return {
        "description": DESCRIPTION,
        "code": f"pw.x {oracle.version}",
        "settings": settings | asdict(oracle.settings),
        "pseudopotentials": describe_files(oracle.pseudopotentials, elements),
        "left_out": dict(left_out),
        "entries": list(entries),
    }


def describe_files(files: Pseudopotentials, elements: Iterable[str]) -> dict[str, dict[str, str]]:
    """Return name and MD5 of the pseudopotentials of some elements, as far as there are any."""
    return {e: {"file": files[e].file, "md5": files[e].md5} for e in elements if e in files}


def dump(content: Mapping[str, Any]) -> str:
    """Return the file's text: compact, one entry a line, so that changes can be read."""
    lines = ",\n".join(_compact(entry) for entry in content["entries"])
    head = {key: value for key, value in content.items() if key != "entries"}
    text = json.dumps(head, ensure_ascii=False, indent=1)
    return f'{text[:-2]},\n "entries": [\n{lines}\n ]\n}}\n'


def _compact(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def write(path: Path, content: Mapping[str, Any]) -> None:
    """Replace the file in one step, so that an interrupted run leaves a whole one."""
    with atomic_path(path) as temporary:
        temporary.write_text(dump(content), encoding="utf-8")


def summary(entries: Sequence[Mapping[str, Any]], left_out: Mapping[str, str]) -> str:
    """Return what the file holds, in a few lines."""
    done = [entry for entry in entries if entry["status"] == "ok"]
    gaps = [entry["band_gap_ev"] for entry in done]
    statuses = Counter(entry["status"] for entry in entries)
    lines = [
        f"{len(entries)} crystals in {len({e['structure_type'] for e in entries})} structure types "
        f"of {len({s for e in entries for s in e['species']})} elements: "
        + ", ".join(f"{count} {status}" for status, count in statuses.most_common())
    ]
    if gaps:
        edges = [0.0, 0.05, 1.0, 2.0, 3.0, 5.0, 7.0, math.inf]
        counts = np.histogram(gaps, edges)[0]
        bins = zip(edges, edges[1:], counts, strict=False)
        lines.append("gaps in eV: " + ", ".join(f"{a:g} to {b:g}: {n}" for a, b, n in bins))
    lines += [f"left out {name}: {reason}" for name, reason in left_out.items()]
    return "\n".join(lines)


# --------------------------------------------------------------------------- command line


def select(crystals: Sequence[Candidate], names: Sequence[str] | None) -> list[Candidate]:
    """Return the crystals asked for, in list order.

    Raises:
        ValueError: If a name is unknown.
    """
    if names is None:
        return list(crystals)
    unknown = sorted(set(names) - {crystal.name for crystal in crystals})
    if unknown:
        raise ValueError(f"unknown crystals {', '.join(unknown)}: see --list")
    return [crystal for crystal in crystals if crystal.name in set(names)]


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the command line's arguments."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--pseudo",
        type=Path,
        metavar="FOLDER_OR_ARCHIVE",
        help="UPF files (default: where `crystal-gym data fetch sssp` puts them)",
    )
    parser.add_argument(
        "--cache",
        metavar="DATABASE",
        help="keeps every calculation (default: mini.db in the user's cache)",
    )
    parser.add_argument("--workers", type=int, default=2, help="calculations at a time")
    parser.add_argument("--output", type=Path, help="JSON file (default: the bundled one)")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these crystals; needs --output")
    parser.add_argument("--pw", default="pw.x", help="the pw.x executable")
    parser.add_argument("--timeout", type=float, default=3600.0, help="seconds per calculation")
    parser.add_argument("--list", action="store_true", help="print the crystals and stop")
    arguments = parser.parse_args(argv)
    if arguments.workers < 1:
        parser.error(f"--workers {arguments.workers}: expected at least 1")
    if arguments.only and not arguments.output and not arguments.list:
        parser.error("--only needs --output: the bundled file holds all crystals")
    return arguments


def is_wanted(candidate: Candidate) -> bool:
    """Return whether a crystal can have a formation energy, and its label takes seconds.

    The time of a calculation grows with volume times bands.
    """
    files = manifest()
    if any(symbol not in files for symbol in candidate.species):
        return False
    if published_references().missing({s: files[s].md5 for s in candidate.species}):
        return False  # its pseudopotential is not the one behind the reference energy
    electrons = sum(files[symbol].valence for symbol in candidate.species)
    limit = MAX_VOLUME_BANDS["fit and label" if candidate.needs_fit else "label"]
    return candidate.structure().volume * max(64.0, 0.6 * electrons) <= limit


def say(text: str) -> None:
    """Print a stage on standard error, where the progress bars are."""
    print(text, file=sys.stderr, flush=True)


def make_oracles(
    arguments: argparse.Namespace, stack: ExitStack
) -> tuple[CachedOracle, CachedOracle, EspressoOracle]:
    """Return the oracles of fits and labels, on one database, and the latter's calculator."""
    pseudo: Path | None = arguments.pseudo
    if pseudo is not None and not pseudo.is_dir():
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="make-mini-upf-"))
        install(pseudo, folder)
        pseudo = Path(folder)
    options = {"pseudopotentials": pseudo, "pw": arguments.pw, "timeout_s": arguments.timeout}
    fast, labels = (EspressoOracle(preset, **options) for preset in ("fast", "labels"))
    database = arguments.cache or cache_dir() / "mini.db"
    final = CachedOracle(labels, database)
    return CachedOracle(fast, final.store), final, labels


def run(arguments: argparse.Namespace, crystals: Sequence[Candidate], stack: ExitStack) -> None:
    """Fit, label and write."""
    fast, final, calculator = make_oracles(arguments, stack)
    estimated = [crystal for crystal in crystals if crystal.needs_fit]
    fits, left_out = fit_volumes(estimated, fast, arguments.workers)
    source = f"pw.x {calculator.version} preset fast"
    ready = [
        final_crystal(crystal, fits.get(crystal.name), source)
        for crystal in crystals
        if crystal.name not in left_out
    ]
    say(f"labels: {len(ready)} calculations")
    structures = [crystal.structure() for crystal in ready]
    results = label(structures, final, workers=arguments.workers, progress=True)
    entries = [make_entry(*pair) for pair in zip(ready, results, strict=True)]
    output = arguments.output or DEFAULT_OUTPUT
    write(output, make_content(calculator, entries, left_out))
    print(summary(entries, left_out))
    print(f"written to {output}")


def main(argv: Sequence[str] | None = None) -> int:
    """Make the file, or list the crystals."""
    arguments = parse_arguments(argv)
    try:
        crystals = select([*candidates(), *prototypes()], arguments.only)
        if arguments.only is None:
            crystals = [crystal for crystal in crystals if is_wanted(crystal)]
        if arguments.list:
            for crystal in crystals:
                sites = len(crystal.species)
                print(f"{crystal.name:<44} {sites} sites  {crystal.lattice_source}")
            return 0
        with ExitStack() as stack:
            run(arguments, crystals, stack)
    except KeyboardInterrupt:
        say("interrupted: what is calculated is kept; run the same command again to go on")
        return 130
    except BrokenProcessPool:
        say("error: a worker was killed; what is calculated is kept, run the same command again")
        return 1
    except (ImportError, OSError, ValueError) as error:
        say(f"error: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
