"""What is installed, whether it works, and how to install what is missing."""

from __future__ import annotations

import platform
import shutil
import tempfile
from collections.abc import Iterator
from enum import Enum
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

from crystal_gym.extras import EXTRAS, missing_modules
from crystal_gym.files import cache_dir
from crystal_gym.oracles.base import Status
from crystal_gym.oracles.espresso import EspressoOracle, Pseudopotentials
from crystal_gym.oracles.espresso.oracle import find_pw, pw_version

__all__ = ["Finding", "Health", "examine"]

# Silicon at low cutoffs, with the pseudopotential of the manifest (pw.x 6.7, Debian).
_SI_ENERGY_RY, _SI_GAP_EV = -22.6449, 0.637
_TOLERANCES = 1e-3, 5e-3


class Health(Enum):
    """How something is: well, not there and not needed by everybody, or in the way."""

    WELL = "well"
    ABSENT = "absent"
    ILL = "ill"


class Finding(NamedTuple):
    """One line of the doctor's: what was looked at, how it is, and a sentence."""

    subject: str
    health: Health
    text: str


def examine(pseudopotentials: Path | str | None = None, pw: str = "pw.x") -> Iterator[Finding]:
    """Yield findings, the quick ones first; a run of pw.x then takes about a second.

    Args:
        pseudopotentials: Folder of UPF files; defaults to the usual one.
        pw: The executable.

    Yields:
        Findings on packages, pw.x, mpirun where it is missing, pseudopotentials, a calculation of
        silicon where pw.x and its files are there, and the cache.
    """
    yield from _packages()
    pw_finding = _pw(pw)
    yield pw_finding
    if shutil.which("mpirun") is None:
        yield Finding("mpirun", Health.ABSENT, "for --ranks above 1")
    upf_finding = _pseudopotentials(pseudopotentials)
    yield upf_finding
    if pw_finding.health is upf_finding.health is Health.WELL:
        yield _silicon(pseudopotentials, pw)
    yield Finding("cache", Health.WELL, str(cache_dir()))


_PURPOSES = {
    "agents": "training, policies, the surrogate",
    "report": "report pages and pictures",
    "render": "pictures and films of episodes",
    "relax": "design --relax",
    "cluster": "--executor dask://...",
    "postgresql": "results in PostgreSQL",
    "hub": "data publish",
}


def _packages() -> Iterator[Finding]:
    yield Finding(
        "crystal-gym", Health.WELL, f"{version('crystal-gym')}, Python {platform.python_version()}"
    )
    for extra, purpose in _PURPOSES.items():
        missing = missing_modules(extra)
        if missing:
            text = f"for {purpose}: pip install 'crystal-gym[{extra}]'"
            if len(missing) < len(EXTRAS[extra]):
                text += f" (of it {', '.join(missing)} is missing)"
            yield Finding(extra, Health.ABSENT, text)
        else:
            yield Finding(extra, Health.WELL, ", ".join(map(_versioned, EXTRAS[extra])))


def _versioned(module: str) -> str:
    try:
        return f"{module} {version(module)}"
    except PackageNotFoundError:  # installed under another name, such as psycopg2-binary
        return module


def _pw(pw: str) -> Finding:
    try:
        path = find_pw(pw)
        return Finding("pw.x", Health.WELL, f"{pw_version(path)} in {path}")
    except (FileNotFoundError, ValueError) as error:
        return Finding("pw.x", Health.ILL, str(error))


def _pseudopotentials(folder: Path | str | None) -> Finding:
    try:
        found = Pseudopotentials(folder)
        differing, missing = found.differing(), found.missing()
    except (OSError, ValueError) as error:
        return Finding("pseudopotentials", Health.ILL, str(error))
    text = f"{len(found)} elements in {found.folder}"
    if missing:
        text += f"; missing: {', '.join(missing)}"
    if differing:
        text += "; not those of the manifest, so other energies: " + "; ".join(differing)
    return Finding("pseudopotentials", Health.WELL, text)


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
            return Finding("silicon", Health.ILL, str(error))
        (found,) = oracle.evaluate([silicon])
    if found.status is not Status.OK or found.total_energy_ry is None or found.band_gap_ev is None:
        return Finding("silicon", Health.ILL, f"{found.status}: {found.provenance}")
    well = (
        abs(found.total_energy_ry - _SI_ENERGY_RY) < _TOLERANCES[0]
        and abs(found.band_gap_ev - _SI_GAP_EV) < _TOLERANCES[1]
    )
    return Finding(
        "silicon",
        Health.WELL if well else Health.ILL,
        f"energy {found.total_energy_ry:.4f} Ry (expected {_SI_ENERGY_RY}), gap "
        f"{found.band_gap_ev:.3f} eV (expected {_SI_GAP_EV}), {found.wall_s:.1f} s",
    )
