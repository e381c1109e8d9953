"""What is installed, whether it works, and how to install what is missing."""

from __future__ import annotations

import importlib.util
import shutil
import tempfile
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

from crystal_gym.files import cache_dir
from crystal_gym.oracles.base import Status
from crystal_gym.oracles.espresso import EspressoOracle, Pseudopotentials
from crystal_gym.oracles.espresso.oracle import find_pw, pw_version

__all__ = ["Finding", "examine"]

# Silicon at low cutoffs, with the pseudopotential of the manifest (pw.x 6.7, Debian).
_SI_ENERGY_RY, _SI_GAP_EV = -22.6449, 0.637
_TOLERANCES = 1e-3, 5e-3


class Finding(NamedTuple):
    """One line of the doctor's: what was looked at, whether it is well, and a sentence."""

    subject: str
    well: bool
    text: str


def examine(pseudopotentials: Path | str | None = None, pw: str = "pw.x") -> Iterator[Finding]:
    """Yield findings, the quick ones first; the last one runs pw.x for about a second.

    Args:
        pseudopotentials: Folder of UPF files; defaults to the usual one.
        pw: The executable.
    """
    yield from _packages()
    pw_finding = _pw(pw)
    yield pw_finding
    if shutil.which("mpirun") is None:
        yield Finding("mpirun", True, "not installed: only --ranks above 1 needs it")
    upf_finding = _pseudopotentials(pseudopotentials)
    yield upf_finding
    if pw_finding.well and upf_finding.well:
        yield _silicon(pseudopotentials, pw)
    yield Finding("cache", True, str(cache_dir()))


def _packages() -> Iterator[Finding]:
    yield Finding("crystal-gym", True, version("crystal-gym"))
    for name, module, purpose in (
        ("torch", "torch", "training: pip install torch==2.13.0"),
        ("d3rlpy", "d3rlpy", "training: pip install crystal-gym[agents]"),
        ("psycopg2", "psycopg2", "PostgreSQL caches: pip install crystal-gym[postgresql]"),
    ):
        if importlib.util.find_spec(module) is None:
            yield Finding(name, True, f"not installed; needed for {purpose}")
            continue
        try:
            found = version(name)
        except PackageNotFoundError:  # installed under another name, such as psycopg2-binary
            found = "installed"
        yield Finding(name, True, found)


def _pw(pw: str) -> Finding:
    try:
        path = find_pw(pw)
        return Finding("pw.x", True, f"{pw_version(path)} in {path}")
    except (FileNotFoundError, ValueError) as error:
        return Finding("pw.x", False, str(error))


def _pseudopotentials(folder: Path | str | None) -> Finding:
    try:
        found = Pseudopotentials(folder)
        differing, missing = found.differing(), found.missing()
    except (OSError, ValueError) as error:
        return Finding("pseudopotentials", False, str(error))
    text = f"{len(found)} elements in {found.folder}"
    if missing:
        text += f"; missing: {', '.join(missing)}"
    if differing:
        text += "; not those of the manifest, so other energies: " + "; ".join(differing)
    return Finding("pseudopotentials", True, text)


def _silicon(folder: Path | str | None, pw: str) -> Finding:
    from pymatgen.core import Lattice, Structure

    silicon = Structure(
        Lattice([[0, 2.7155, 2.7155], [2.7155, 0, 2.7155], [2.7155, 2.7155, 0]]),
        ["Si", "Si"],
        [[0.0, 0.0, 0.0], [0.25, 0.25, 0.25]],
    )
    with tempfile.TemporaryDirectory(prefix="crystal-gym-doctor-") as scratch:
        try:
            oracle = EspressoOracle(
                "labels",
                ecutwfc_ry=12.0,
                ecutrho_ry=60.0,
                k_mesh=(2, 2, 2),
                n_bands=8,
                references=None,
                pseudopotentials=folder,
                pw=pw,
                timeout_s=120.0,
                scratch=scratch,
            )
        except (OSError, ValueError) as error:
            return Finding("silicon", False, str(error))
        (found,) = oracle.evaluate([silicon])
    if found.status is not Status.OK or found.total_energy_ry is None or found.band_gap_ev is None:
        return Finding("silicon", False, f"{found.status}: {found.provenance}")
    well = (
        abs(found.total_energy_ry - _SI_ENERGY_RY) < _TOLERANCES[0]
        and abs(found.band_gap_ev - _SI_GAP_EV) < _TOLERANCES[1]
    )
    return Finding(
        "silicon",
        well,
        f"energy {found.total_energy_ry:.4f} Ry (expected {_SI_ENERGY_RY}), gap "
        f"{found.band_gap_ev:.3f} eV (expected {_SI_GAP_EV}), {found.wall_s:.1f} s",
    )
