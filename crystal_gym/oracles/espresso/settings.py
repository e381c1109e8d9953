"""What a calculation computes: one frozen record, and the presets by name."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from typing import Any

from crystal_gym.suggestions import did_you_mean

__all__ = ["PRESETS", "PwSettings", "make_settings"]


@dataclass(frozen=True)
class PwSettings:
    """Settings of a self-consistent pw.x calculation (PBE, fixed occupations).

    Cells with an odd number of electrons are calculated with two spin channels (LSDA) and a fixed
    total magnetization, the others without spin.

    Attributes:
        ecutwfc_ry: Cutoff of the wave functions, Ry.
        ecutrho_ry: Cutoff of the charge density, Ry.
        conv_thr_ry: Convergence threshold of the self-consistency cycle, Ry.
        mixing_beta: Mixing factor, 0 to 1.
        electron_maxstep: Most iterations of the cycle.
        k_mesh: Monkhorst-Pack mesh.
        k_offset: 0 or 1 (half a step) for each direction.
        n_bands: Bands per spin; None for the occupied ones and a fifth more, at least four more.
            At least that many are taken whatever the number says, so that there is an empty band,
            and never more than 45% of the plane waves, with which pw.x would fail.
        magnetizations: Total magnetizations (Bohr magnetons per cell, odd) tried in turn for odd
            numbers of electrons; the lowest energy wins.
        smearing_ry: Width of cold smearing, for metals such as the elements behind reference
            energies: then there is no gap, and two spin channels find their own magnetization.
            None (default): fixed occupations.
    """

    ecutwfc_ry: float = 30.0
    ecutrho_ry: float = 240.0
    conv_thr_ry: float = 1e-6
    mixing_beta: float = 0.7
    electron_maxstep: int = 100
    k_mesh: tuple[int, int, int] = (3, 3, 3)
    k_offset: tuple[int, int, int] = (0, 0, 0)
    n_bands: int | None = 64
    magnetizations: tuple[int, ...] = (1,)
    smearing_ry: float | None = None

    def __post_init__(self) -> None:
        """Check every value."""
        for name in ("k_mesh", "k_offset", "magnetizations"):
            value = getattr(self, name)
            if not isinstance(value, (tuple, list)) or not all(_is_whole(n) for n in value):
                raise _bad(name, value, "whole numbers in a tuple")
            object.__setattr__(self, name, tuple(int(n) for n in value))
        for name in ("ecutwfc_ry", "ecutrho_ry", "conv_thr_ry", "mixing_beta"):
            value = getattr(self, name)
            if not (_is_number(value) and math.isfinite(value) and value > 0):
                raise _bad(name, value, "a number above 0")
            object.__setattr__(self, name, float(value))  # 30 and 30.0 have one key
        width = self.smearing_ry
        if width is not None and not (_is_number(width) and 0 < width < 1):
            raise _bad("smearing_ry", width, "None, or a width such as 0.02")
        if self.mixing_beta > 1:
            raise _bad("mixing_beta", self.mixing_beta, "0 to 1")
        if self.ecutrho_ry < 4 * self.ecutwfc_ry:
            raise _bad("ecutrho_ry", self.ecutrho_ry, f"at least 4 * {self.ecutwfc_ry:g}")
        if not _is_whole(self.electron_maxstep) or self.electron_maxstep < 1:
            raise _bad("electron_maxstep", self.electron_maxstep, "a whole number above 0")
        if len(self.k_mesh) != 3 or min(self.k_mesh) < 1:
            raise _bad("k_mesh", self.k_mesh, "three whole numbers above 0")
        if len(self.k_offset) != 3 or not set(self.k_offset) <= {0, 1}:
            raise _bad("k_offset", self.k_offset, "three of 0 and 1")
        if self.n_bands is not None and (not _is_whole(self.n_bands) or self.n_bands < 1):
            raise _bad("n_bands", self.n_bands, "a whole number above 0, or None")
        if not self.magnetizations or any(m < 1 or m % 2 == 0 for m in self.magnetizations):
            raise _bad("magnetizations", self.magnetizations, "odd numbers above 0 such as (1, 3)")

    @cached_property
    def key(self) -> str:
        """Content hash (16 hex digits) of everything."""
        return _digest(self._values())

    @cached_property
    def energy_key(self) -> str:
        """Content hash of what total energies depend on: not the number of bands.

        Nor the magnetizations, which select among states of the same Hamiltonian.
        """
        values = self._values()
        del values["n_bands"], values["magnetizations"]
        return _digest(values)

    def _values(self) -> dict[str, Any]:
        values = asdict(self)
        if self.smearing_ry is None:  # what is not used names nothing: old keys stay as they are
            del values["smearing_ry"]
        return values

    def __str__(self) -> str:
        mesh = "x".join(map(str, self.k_mesh))
        bands = "occupied + 20% bands" if self.n_bands is None else f"{self.n_bands} bands"
        return f"{self.ecutwfc_ry:g}/{self.ecutrho_ry:g} Ry, {mesh}, {bands}"


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _bad(name: str, value: Any, expected: str) -> ValueError:
    return ValueError(f"pw.x setting {name}={value!r} is not usable: expected {expected}")


def _digest(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


PRESETS: Mapping[str, PwSettings] = {
    "labels": PwSettings(),
    "fast": PwSettings(n_bands=None),
    "paper": PwSettings(ecutrho_ry=245.0, n_bands=256),
}
"""Settings by name.

``labels``
    Those behind the published labels, as their outputs show them.
``fast``
    The same with few empty bands: energies within 0.013 mRy and gaps within 3.1 meV of them.
``paper``
    The values in the text of the paper (a density cutoff of 245 Ry and 256 bands).
"""


def make_settings(settings: str | PwSettings, **changes: Any) -> PwSettings:
    """Return a preset or the settings given, with some values changed.

    Args:
        settings: Name of a preset, or settings.
        changes: New values by name.

    Returns:
        The settings, checked.

    Raises:
        ValueError: If the preset or a name is unknown (with the closest known one), or a value is
            not usable.
        TypeError: If ``settings`` is neither.
    """
    if isinstance(settings, str):
        if settings not in PRESETS:
            raise ValueError(
                f"preset {settings!r} is unknown{did_you_mean(settings, PRESETS)}: expected one "
                f"of {', '.join(PRESETS)}, or a PwSettings"
            )
        settings = PRESETS[settings]
    if not isinstance(settings, PwSettings):
        raise TypeError(f"settings={settings!r} is no PwSettings and no preset's name")
    known = [f.name for f in fields(PwSettings)]
    for name in changes:
        if name not in known:
            raise ValueError(
                f"there is no pw.x setting called {name!r}{did_you_mean(name, known)}: expected "
                f"one of {', '.join(known)}"
            )
    return replace(settings, **changes)
