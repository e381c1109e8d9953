r"""Formation energies, eqn (15) of Govindarajan et al. 2024 (doi 10.1039/d4dd00024b).

A reference energy is the total energy per atom that the equation subtracts for an element. It
belongs to the settings and to the pseudopotential it was calculated with: subtracted from another
calculation it gives a number without meaning. :class:`ReferenceEnergies` says what it belongs to.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from crystal_gym.elements import ELEMENTS
from crystal_gym.files import atomic_path, cache_dir, first_line, read_json

__all__ = [
    "RY_TO_EV",
    "ReferenceEnergies",
    "find_references",
    "formation_energy",
    "published_references",
    "reference_energies",
    "total_energy",
]

RY_TO_EV = 13.6057039763
"""eV per Ry, the value behind the published labels (CODATA 2006)."""


@dataclass(frozen=True)
class ReferenceEnergies:
    """Reference energies and what they belong to.

    Attributes:
        settings: :attr:`PwSettings.energy_key` of the calculations.
        energies_ry: Ry per atom by element.
        pseudopotentials: MD5 of the pseudopotential file by element; an element that is missing
            here has a reference that cannot be tied to a file, and none is given for it.
        source: Where they are from, one sentence.
    """

    settings: str
    energies_ry: Mapping[str, float]
    pseudopotentials: Mapping[str, str]
    source: str = ""

    def missing(self, pseudopotentials: Mapping[str, str]) -> list[str]:
        """Return the elements without a reference for the pseudopotential in use.

        Args:
            pseudopotentials: MD5 of the file in use by element.

        Returns:
            Symbols, sorted.
        """
        return sorted(
            element
            for element, md5 in pseudopotentials.items()
            if element not in self.energies_ry or self.pseudopotentials.get(element) != md5
        )

    def save(self, path: Path | str) -> None:
        """Write them as JSON, whole or not at all."""
        with atomic_path(path) as temporary:
            temporary.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path | str) -> ReferenceEnergies:
        """Read them.

        Args:
            path: Of a file of :meth:`save`.

        Returns:
            The references, Ry per atom.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If it is no file of :meth:`save`.
        """
        try:
            return cls(**_checked(read_json(path)))
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            raise ValueError(
                f"{path} holds no reference energies ({first_line(error)}): "
                "expected a file written by "
                "`crystal-gym label references`; run it again"
            ) from error


def _checked(content: dict[str, Any]) -> dict[str, Any]:
    """Return what a file holds if energies are numbers and the rest is text.

    Raises:
        AttributeError, LookupError, TypeError, ValueError: If they are not.
    """
    energies = {str(e): float(value) for e, value in content["energies_ry"].items()}
    if not all(map(math.isfinite, energies.values())):
        raise ValueError("an energy is not finite")
    files = {str(e): str(md5) for e, md5 in content["pseudopotentials"].items()}
    return {**content, "energies_ry": energies, "pseudopotentials": files}


def _published() -> dict[str, Any]:
    text = resources.files("crystal_gym.data").joinpath("reference_energies.json").read_text()
    content: dict[str, Any] = json.loads(text)
    return content


@cache
def reference_energies() -> Mapping[str, float]:
    """Return the total energy per atom (Ry) of the 88 elements behind the published labels.

    Solved from the labels (``scripts/solve_reference_energies.py``). For formation energies of new
    calculations see :func:`find_references`, which checks that they belong together.
    """
    energies: dict[str, float] = _published()["energies"]
    return {symbol: energies[symbol] for symbol in ELEMENTS}


@cache
def published_references() -> ReferenceEnergies:
    """Return the published references with the settings and files they were found to belong to."""
    content = _published()
    return ReferenceEnergies(
        settings=content["settings"],
        energies_ry=reference_energies(),
        pseudopotentials=content["pseudopotentials"],
        source=content["source"],
    )


def references_path(settings: str) -> Path:
    """Return where calculated references of some settings are kept."""
    return cache_dir() / "references" / f"{settings}.json"


def find_references(settings: str) -> ReferenceEnergies | None:
    """Return the references for an energy key: calculated on this machine, else published.

    Args:
        settings: Energy key, :attr:`PwSettings.energy_key`.

    Returns:
        None if none are known.

    Raises:
        ValueError: If the file on this machine is damaged.
    """
    path = references_path(settings)
    if path.exists():
        return ReferenceEnergies.load(path)
    published = published_references()
    return published if published.settings == settings else None


def formation_energy(
    total_energy_ry: float,
    species: Sequence[str],
    references: Mapping[str, float] | None = None,
) -> float:
    r"""Return the formation energy per atom, eqn (15).

    .. math:: E_\mathrm{form} = \frac{1}{N}\Bigl(E_\mathrm{tot} - \sum_i n_i e_i\Bigr)

    Args:
        total_energy_ry: Of the cell, Ry.
        species: Element symbol of every site.
        references: Ry per atom by element; defaults to :func:`reference_energies`.

    Returns:
        eV/atom.

    Raises:
        ValueError: If there are no sites, or an element has no reference energy.
    """
    references = reference_energies() if references is None else references
    missing = sorted(set(species) - set(references))
    if missing or not species:
        raise ValueError(
            f"no reference energy for {', '.join(missing) or 'a cell without sites'}: expected "
            "elements with a calculated reference"
        )
    atoms = sum(references[s] for s in species)
    return (total_energy_ry - atoms) / len(species) * RY_TO_EV


def total_energy(formation_energy_ev_per_atom: float, species: Sequence[str]) -> float:
    """Return the total energy (Ry per cell) that has a formation energy: eqn (15) turned round.

    Args:
        formation_energy_ev_per_atom: By the published references.
        species: Element symbol of every site.

    Returns:
        Ry per cell.
    """
    references = reference_energies()
    atoms = sum(references[s] for s in species)
    return atoms + len(species) * formation_energy_ev_per_atom / RY_TO_EV
