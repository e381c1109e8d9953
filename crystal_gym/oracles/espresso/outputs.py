"""What a pw.x output says: the numbers, or why there are none.

"JOB DONE" proves nothing: pw.x prints it after an unconverged calculation too. A calculation has
succeeded if it says that convergence has been achieved, names one final energy below zero and a
pair of highest occupied and lowest unoccupied levels, and its program ended with status 0.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from crystal_gym.oracles.base import Status

__all__ = ["PwOutput", "read_output", "read_version"]

_ENERGY = re.compile(r"^!\s+total energy\s+=\s+(\S+)\s*Ry", re.MULTILINE)
_PAIR = re.compile(
    r"highest occupied, lowest unoccupied level \(ev\):\s*(\S+?)\s*(-?[\d.]+)\s*$", re.M
)
_HOMO = re.compile(r"highest occupied level \(ev\):\s*(\S+)")
_CONVERGED = re.compile(r"convergence has been achieved in\s+(\d+)\s+iterations")
_ERROR = re.compile(r"Error in routine\s+([^\n]+)\n\s*([^\n]+)")
_VERSION = re.compile(r"Program PWSCF v\.\s*(\S+)")
_ELECTRONS = re.compile(r"number of electrons\s+=\s+([\d.]+)")
_BANDS = re.compile(r"number of Kohn-Sham states=\s*(\d+)")
_MAGNETIZATION = re.compile(r"total magnetization\s+=\s+(\S+)\s+Bohr")

# What pw.x (or the libraries below it) says, what that means, and whether it is our reading of an
# "Error in routine" block or may stand anywhere in the output.
_MESSAGES: tuple[tuple[str, Status], ...] = (
    ("charge is wrong", Status.ODD_ELECTRONS),
    ("Maximum CPU time exceeded", Status.TIMEOUT),
    ("convergence NOT achieved", Status.NOT_CONVERGED),
    ("too few bands", Status.BANDS),
    ("more bands than PWs", Status.BANDS),
    ("overlap!", Status.GEOMETRY),
    ("error in DGETRF", Status.GEOMETRY),
    ("wrong number of atoms", Status.GEOMETRY),
    ("Cannot allocate memory", Status.MEMORY_OR_SIGNAL),
    ("Allocation would exceed memory limit", Status.MEMORY_OR_SIGNAL),
    ("Out of memory", Status.MEMORY_OR_SIGNAL),
    ("cannot be created or accessed", Status.IO_OR_TRUNCATED),
    ("No space left on device", Status.IO_OR_TRUNCATED),
    ("error opening", Status.IO_OR_TRUNCATED),
    ("End of file", Status.IO_OR_TRUNCATED),
    ("need tot_magnetization", Status.CONFIGURATION),
    ("not found", Status.CONFIGURATION),
)
# Routines that give up on the numbers of a crystal: as unconverged as a cycle that never ends.
_NUMERICAL = ("cdiaghg", "rdiaghg", "cegterg", "regterg", "c_bands", "electrons", "cholesky")


@dataclass(frozen=True)
class PwOutput:
    """One calculation as its output tells it.

    Attributes:
        status: How it ended.
        reason: One sentence on that, empty where it is ok.
        total_energy_ry: Ry per cell, where it converged.
        homo_ev: Highest occupied level over both spin channels, eV.
        lumo_ev: Lowest unoccupied level, eV.
        n_electrons: Valence electrons per cell.
        n_bands: Bands per spin.
        n_iterations: Of the self-consistency cycle.
        magnetization: Bohr magnetons per cell, None without spin.
        version: Of pw.x.
    """

    status: Status
    reason: str
    total_energy_ry: float | None = None
    homo_ev: float | None = None
    lumo_ev: float | None = None
    n_electrons: float | None = None
    n_bands: int | None = None
    n_iterations: int | None = None
    magnetization: float | None = None
    version: str | None = None

    @property
    def band_gap_ev(self) -> float | None:
        """LUMO - HOMO, not below 0, in eV; None where the output does not name both."""
        if self.homo_ev is None or self.lumo_ev is None:
            return None
        # Both are printed with four decimals: rounding takes binary noise away, nothing else.
        return max(0.0, round(self.lumo_ev - self.homo_ev, 4))


def read_output(text: str, returncode: int | None = None, *, timed_out: bool = False) -> PwOutput:
    """Read the output of a self-consistent calculation.

    Args:
        text: Standard output and error of pw.x.
        returncode: Exit status of the program; None for an output found on disk, of which it is
            not known.
        timed_out: Whether it was ended because its time was up.
    """
    status, reason = _judge(text, returncode, timed_out)
    energy, homo, lumo = _numbers(text) if status in _WITH_NUMBERS else (None, None, None)
    return PwOutput(
        status=status,
        reason=reason,
        total_energy_ry=energy,
        homo_ev=homo,
        lumo_ev=lumo,
        n_electrons=_last(_ELECTRONS, text, float),
        n_bands=_last(_BANDS, text, int),
        n_iterations=_last(_CONVERGED, text, int),
        magnetization=_last(_MAGNETIZATION, text, float),
        version=read_version(text),
    )


_WITH_NUMBERS = (Status.OK, Status.NO_GAP_INFORMATION)


def read_version(text: str) -> str | None:
    """Return the version in pw.x's banner, such as ``6.7MaX``, None where there is no banner."""
    return _last(_VERSION, text, str)


def _judge(text: str, returncode: int | None, timed_out: bool) -> tuple[Status, str]:
    if timed_out:
        return Status.TIMEOUT, "pw.x was ended at its wall time limit"
    if returncode is None and _is_complete(text):
        # Found on disk: a message after the results (such as a density that could not be saved)
        # takes nothing from them.
        return _judge_numbers(text)
    for message, status in _MESSAGES:
        if message in text:
            return status, _sentence(text, message)
    if returncode is not None and (returncode < 0 or returncode > 128):
        number = -returncode if returncode < 0 else returncode - 128
        return Status.MEMORY_OR_SIGNAL, f"pw.x was ended by signal {number}"
    error = _ERROR.search(text)
    if error is not None:
        numerical = any(name in error.group(0) for name in _NUMERICAL)
        status = Status.NOT_CONVERGED if numerical else Status.CONFIGURATION
        return status, _sentence(text, error.group(2).strip())
    if returncode:
        return Status.IO_OR_TRUNCATED, f"pw.x ended with status {returncode} and no message"
    if not _is_complete(text) or (returncode == 0 and "JOB DONE" not in text):
        return Status.IO_OR_TRUNCATED, "the output of pw.x breaks off before its results"
    return _judge_numbers(text)


def _is_complete(text: str) -> bool:
    levels = _PAIR.search(text) or _HOMO.search(text) or "the Fermi energy is" in text
    return bool(_CONVERGED.search(text) and len(_ENERGY.findall(text)) == 1 and levels)


def _judge_numbers(text: str) -> tuple[Status, str]:
    energy, _, lumo = _numbers(text)
    if energy is None or not energy < 0:
        return Status.UNPHYSICAL_ENERGY, (
            f"the total energy is {_ENERGY.findall(text)[0]} Ry: expected a negative number"
        )
    if lumo is None:
        return Status.NO_GAP_INFORMATION, (
            "pw.x names no lowest unoccupied level: its bands were exactly the occupied ones"
        )
    return Status.OK, ""


def _numbers(text: str) -> tuple[float | None, float | None, float | None]:
    energy, pair = _last(_ENERGY, text, float), _PAIR.findall(text)
    if pair:
        return energy, _finite(pair[-1][0]), _finite(pair[-1][1])
    return energy, _last(_HOMO, text, float), None


def _sentence(text: str, message: str) -> str:
    """Return the line that a message stands in, with the routine where pw.x names it."""
    line = next(line.strip(" !.%*") for line in text.splitlines() if message in line)
    error = _ERROR.search(text)
    where = f" in routine {error.group(1).strip(' :!.')}" if error is not None else ""
    return f"pw.x stopped{where}: {' '.join(line.split())[:200]}"


def _last(pattern: re.Pattern[str], text: str, kind: type) -> object:  # type: ignore[type-arg]
    found = pattern.findall(text)
    if not found:
        return None
    try:
        value = kind(found[-1])
    except ValueError:  # Fortran prints stars where a number does not fit
        return None
    return None if kind is float and not math.isfinite(value) else value


def _finite(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
