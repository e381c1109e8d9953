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

_ENERGY = re.compile(r"^!\s+total energy\s+=\s*(\S+?)\s*Ry", re.MULTILINE)
_PAIR = re.compile(r"highest occupied, lowest unoccupied level \(ev\):(.*)")
_HOMO = re.compile(r"highest occupied level \(ev\):(.*)")
# pw.x prints levels as F10.4: two may touch, and one that does not fit becomes ten stars.
_LEVEL = re.compile(r"-?\d+\.\d{4}(?!\d)|\*{10}|[^\s*]+")
_CONVERGED = re.compile(r"convergence has been achieved in\s+(\d+)\s+iterations")
_ERROR = re.compile(r"Error in routine\s+([^\n]+)\n\s*([^\n]+)")
_VERSION = re.compile(r"Program PWSCF v\.\s*(\S+)")
_ELECTRONS = re.compile(r"number of electrons\s+=\s+([\d.]+)")
_BANDS = re.compile(r"number of Kohn-Sham states=\s*(\d+)")
_MAGNETIZATION = re.compile(r"total magnetization\s+=\s+(\S+)\s+Bohr")

# What pw.x or the libraries below it say anywhere in the output of a calculation that failed, and
# what that means; the first that is found counts.
_MESSAGES: tuple[tuple[str, Status], ...] = (
    ("charge is wrong", Status.ODD_ELECTRONS),
    ("Maximum CPU time exceeded", Status.TIMEOUT),
    ("convergence NOT achieved", Status.NOT_CONVERGED),
    ("too few bands", Status.BANDS),
    ("more bands than PWs", Status.BANDS),
    ("too many bands", Status.BANDS),
    ("overlap!", Status.GEOMETRY),
    ("error in DGETRF", Status.GEOMETRY),
    ("wrong number of atoms", Status.GEOMETRY),
    ("Cannot allocate memory", Status.MEMORY_OR_SIGNAL),
    ("Allocation would exceed memory limit", Status.MEMORY_OR_SIGNAL),
    ("Out of memory", Status.MEMORY_OR_SIGNAL),
    ("failed to map segment", Status.MEMORY_OR_SIGNAL),
    ("cannot be created or accessed", Status.IO_OR_TRUNCATED),
    ("No space left on device", Status.IO_OR_TRUNCATED),
    ("error opening", Status.IO_OR_TRUNCATED),
    ("End of file", Status.IO_OR_TRUNCATED),
    ("error while loading shared libraries", Status.CONFIGURATION),
    ("not enough slots", Status.CONFIGURATION),
)
# Routines that give up on the numbers of a crystal: as unconverged as a cycle that never ends.
_NUMERICAL = ("cdiaghg", "rdiaghg", "cegterg", "regterg", "c_bands", "electrons", "cholesky")
_LARGEST_SIGNAL = 64
_FERMI = "the Fermi energy is"


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

    Returns:
        Energies in Ry and eV, and the status that the output means.
    """
    status, reason = _judge(text, returncode, timed_out)
    energy, homo, lumo = _numbers(text) if status in _WITH_NUMBERS else (None, None, None)
    return PwOutput(
        status=status,
        reason=reason,
        total_energy_ry=energy,
        homo_ev=homo,
        lumo_ev=lumo,
        n_electrons=_finite(_last(_ELECTRONS, text)),
        n_bands=_whole(_last(_BANDS, text)),
        n_iterations=_whole(_last(_CONVERGED, text)),
        magnetization=_finite(_last(_MAGNETIZATION, text)),
        version=read_version(text),
    )


_WITH_NUMBERS = (Status.OK, Status.NO_GAP_INFORMATION)


def read_version(text: str) -> str | None:
    """Return the version in pw.x's banner, such as ``6.7MaX``, None where there is no banner."""
    return _last(_VERSION, text)


def _judge(text: str, returncode: int | None, timed_out: bool) -> tuple[Status, str]:
    if timed_out:
        return Status.TIMEOUT, "pw.x was ended at its wall time limit"
    if _is_complete(text) and (returncode is None or (returncode == 0 and "JOB DONE" in text)):
        # Whatever else is said, such as by MPI about its parts, takes nothing from the results.
        return _judge_numbers(text)
    for message, status in _MESSAGES:
        if message in text:
            return status, _sentence(text, message)
    error = _ERROR.search(text)
    if error is not None:
        numerical = any(name in error.group(1) for name in _NUMERICAL)
        status = Status.NOT_CONVERGED if numerical else Status.CONFIGURATION
        return status, _sentence(text, error.group(2).strip())
    if "MPI_ABORT was invoked" in text:  # whose status may look like a signal's
        return Status.NOT_CONVERGED, "pw.x gave up without a word: its diagonalization broke down"
    signal = _signal(returncode)
    if signal is not None:
        return Status.MEMORY_OR_SIGNAL, f"pw.x was ended by signal {signal}"
    if returncode:
        return Status.IO_OR_TRUNCATED, f"pw.x ended with status {returncode} and no message"
    energies = len(_ENERGY.findall(text))
    if energies > 1:
        return Status.IO_OR_TRUNCATED, (
            f"the output of pw.x names {energies} final energies: expected one calculation"
        )
    return Status.IO_OR_TRUNCATED, "the output of pw.x breaks off before its end"


def _signal(returncode: int | None) -> int | None:
    """Return the signal that ended a program, as Python or as a shell (and mpirun) tells it."""
    if returncode is not None and returncode < 0:
        return -returncode
    if returncode is not None and 128 < returncode <= 128 + _LARGEST_SIGNAL:
        return returncode - 128
    return None


def _is_complete(text: str) -> bool:
    levels = _PAIR.search(text) or _HOMO.search(text) or _FERMI in text
    return bool(_CONVERGED.search(text) and len(_ENERGY.findall(text)) == 1 and levels)


def _judge_numbers(text: str) -> tuple[Status, str]:
    energy, homo, lumo = _numbers(text)
    if energy is None or not energy < 0:
        return Status.UNPHYSICAL_ENERGY, (
            f"the total energy is {_ENERGY.findall(text)[0]} Ry: expected a negative number"
        )
    if homo is not None and lumo is not None:
        return Status.OK, ""
    pairs = _PAIR.findall(text)
    if pairs:
        why = f"pw.x names levels of {pairs[-1].strip()} eV: expected two numbers"
    elif _HOMO.search(text):
        why = "pw.x names no lowest unoccupied level: its bands were exactly the occupied ones"
    else:
        why = "pw.x names a Fermi energy: there is no gap with smearing"
    return Status.NO_GAP_INFORMATION, why


def _numbers(text: str) -> tuple[float | None, float | None, float | None]:
    """Return total energy, highest occupied and lowest unoccupied level."""
    levels = _last(_PAIR, text) or _last(_HOMO, text) or ""
    homo, lumo = (*map(_finite, _LEVEL.findall(levels)), None, None)[:2]
    return _finite(_last(_ENERGY, text)), homo, lumo


def _sentence(text: str, message: str) -> str:
    """Return the line that a message stands in, with the routine where pw.x names it."""
    line = next(line.strip(" !.%*") for line in text.splitlines() if message in line)
    error = _ERROR.search(text)
    where = f" in routine {error.group(1).strip(' :!.')}" if error is not None else ""
    return f"pw.x stopped{where}: {' '.join(line.split())[:200]}"


def _last(pattern: re.Pattern[str], text: str) -> str | None:
    found: list[str] = pattern.findall(text)
    return found[-1] if found else None


def _finite(text: str | None) -> float | None:
    """Return a number; None for nothing, and for the stars or NaN that Fortran may print."""
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _whole(text: str | None) -> int | None:
    return None if text is None else int(text)
