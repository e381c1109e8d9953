"""An oracle that predicts: the surrogate of the DFT table, never DFT."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from crystal_gym.elements import ELEMENTS, EMPTY, tokens_to_symbols
from crystal_gym.extras import require_extra
from crystal_gym.oracles.base import Filling, Properties, Status
from crystal_gym.oracles.references import formation_energy, total_energy
from crystal_gym.skeletons import build_skeletons
from crystal_gym.structures import EMPTY_SYMBOLS, cell_from_structure, site_symbols, to_structure

if TYPE_CHECKING:
    from pymatgen.core import Structure

__all__ = ["SurrogateOracle", "holds_surrogate"]

_CHUNK = 1024
"""Crystals whose graphs are in memory at once."""


def holds_surrogate(path: Path | str) -> bool:
    """Return whether a folder is a saved surrogate, or a run of ``crystal-gym train surrogate``."""
    folder = Path(path)
    return any(
        (f / "config.json").is_file()
        and '"crystal_surrogate"' in (f / "config.json").read_text("utf-8", errors="replace")
        for f in (folder, folder / "surrogate")
    )


class SurrogateOracle:
    """Predicts gap and formation energy with standard deviations; nothing of it is DFT.

    ``details`` of its answers hold ``band_gap_std_ev``, ``formation_energy_std_ev_per_atom``,
    ``metal_probability`` (of a DFT gap of 0), ``training_distance`` and ``unlike_training``
    (:class:`crystal_gym.agents.surrogate.SurrogatePrediction`). The total energy follows from the
    formation energy by eqn (15).

    Args:
        path: Folder of a run of ``crystal-gym train surrogate``; the bundled one by default.
        device: ``"cpu"`` or ``"cuda:0"``.

    Raises:
        ImportError: If the extra ``agents`` is not installed.
        FileNotFoundError: If there is no such folder.
        ValueError: If it is damaged or of another version.
    """

    def __init__(self, path: Path | str | None = None, device: str = "cpu") -> None:
        require_extra("agents", "the surrogate")
        from crystal_gym.agents.surrogate import load_surrogate

        self._surrogate, self.metadata = load_surrogate(path, device)
        self.name = "bundled" if path is None else Path(path).name

    def __repr__(self) -> str:
        members = len(self._surrogate.members)
        return f"SurrogateOracle({self.name}, {members} networks, not DFT)"

    def fingerprint(self, elements: Iterable[str]) -> str:
        """Return what its answers depend on, for a cache: the weights."""
        return f"surrogate {self.metadata['weights_sha256']}"

    def derive(self, properties: Properties, species: Sequence[str]) -> Properties:
        """Return a stored answer with the formation energy that follows from its total energy.

        Args:
            properties: Of the same :meth:`fingerprint`.
            species: Element of every site.

        Returns:
            A copy with both energies; the same where there is no total energy.
        """
        energy = properties.total_energy_ry
        if energy is None:
            return properties
        return replace(properties, formation_energy_ev_per_atom=formation_energy(energy, species))

    def evaluate(self, structures: Sequence[Structure]) -> list[Properties]:
        """Return predictions for structures, in order; what is no crystal has a status."""
        answers: list[Properties | None] = [None] * len(structures)
        cells, place = [], []
        for number, structure in enumerate(structures):
            try:
                cell = cell_from_structure(structure)
            except ValueError as error:
                answers[number] = Properties(status=_status_of(structure), provenance=str(error))
                continue
            cells.append(cell)
            place.append(number)
        if cells:
            try:
                skeletons, problems = build_skeletons(cells, workers=1)
            except ValueError as error:  # none of them has a graph
                problems = dict.fromkeys(range(len(cells)), str(error))
            good = [i for i in range(len(cells)) if i not in problems]
            for i, reason in problems.items():
                answers[place[i]] = Properties(status=Status.GEOMETRY, provenance=reason)
            fillings = [Filling(skeletons[n], cells[i].reference) for n, i in enumerate(good)]
            for i, answer in zip(good, self.evaluate_fillings(fillings), strict=True):
                answers[place[i]] = answer
        return [a for a in answers if a is not None]

    def evaluate_fillings(self, fillings: Sequence[Filling]) -> list[Properties]:
        """Return predictions for filled skeletons, in order; an empty site makes them unknown."""
        answers = [Properties(status=Status.UNKNOWN, provenance="a site is empty")] * len(fillings)
        whole = [i for i, f in enumerate(fillings) if (np.asarray(f.tokens) != EMPTY).all()]
        # By size, so that no row of a chunk is much wider than it has to be.
        whole.sort(key=lambda i: fillings[i].skeleton.n_edges)
        for first in range(0, len(whole), _CHUNK):
            part = whole[first : first + _CHUNK]
            for i, answer in zip(part, self._predicted([fillings[i] for i in part]), strict=True):
                answers[i] = answer
        return answers

    def _predicted(self, fillings: Sequence[Filling]) -> list[Properties]:
        found = self._surrogate.predict_fillings(
            [f.skeleton for f in fillings], [f.tokens for f in fillings]
        )
        answers = []
        for i, filling in enumerate(fillings):
            energy = float(found.formation_energy_ev_per_atom[i])
            species = [str(s) for s in tokens_to_symbols(filling.tokens)]
            details = {
                "band_gap_std_ev": float(found.band_gap_std_ev[i]),
                "formation_energy_std_ev_per_atom": float(
                    found.formation_energy_std_ev_per_atom[i]
                ),
                "metal_probability": float(found.metal_probability[i]),
                "training_distance": float(found.training_distance[i]),
                "unlike_training": bool(found.unlike_training[i]),
            }
            answers.append(
                Properties(
                    total_energy_ry=total_energy(energy, species),
                    formation_energy_ev_per_atom=energy,
                    band_gap_ev=float(found.band_gap_ev[i]),
                    provenance=f"surrogate ({self.name}), not DFT",
                    details=details,
                )
            )
        return answers


def _status_of(structure: Any) -> Status:
    """Return why a structure is no cell: an element that is not known, else its geometry."""
    try:
        crystal = to_structure(structure)
    except ValueError:
        return Status.GEOMETRY
    strange = crystal.is_ordered and set(site_symbols(crystal)) - {*ELEMENTS, *EMPTY_SYMBOLS}
    return Status.UNSUPPORTED_ELEMENT if strange else Status.GEOMETRY
