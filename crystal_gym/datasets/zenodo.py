"""Reading the trajectory files that the paper's authors published (Zenodo record 10626005).

Each is one ``torch.save`` of ``{"observations": [...], "actions": [...], "next_observations":
[...], "rewards": [...], "bandgaps": [...], "terminals": [...]}``, where an observation is a
dictionary of one step: ``atomic_number`` (n_sites, 90: one-hot over 88 elements in the authors'
order, a flag for "empty", a flag for "focus"), ``laf`` (lengths Å, angles degrees, space group),
``ind`` (row of the CSV) and more. ``rewards`` hold the formation energy (eV/atom) of the finished
crystal at terminal steps, ``bandgaps`` one gap (eV) for every episode.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crystal_gym.elements import symbol_to_token
from crystal_gym.extras import require_extra
from crystal_gym.files import DAMAGED_TENSORS, open_file

__all__ = ["RELEASE_ELEMENTS", "ReleasedEpisode", "read_released_trajectories"]

RELEASE_ELEMENTS: tuple[str, ...] = tuple(
    "Cs Er Xe Tc Eu Gd Li Hf Dy F Te Ti Hg Bi Pr Ne Sm Be Au Pb C Zr Ir Pd Sc Yb Os Nb Ac Rb Al P "
    "Ga Na Cr Ta Br Pu Ge Tb La Se V Pa Ni In Cu Fe Co Pm N K Ca Rh B Tm I Ho Sb As Tl Ru U Np Cl "
    "Re Ag Ba H O Mg W Sn Mo Pt Zn Sr S Kr Cd Si Y Lu Th Nd Mn He Ce".split()
)
"""The 88 elements in the order in which the released files number them."""

_LARGEST = 20_000_000_000

_TOKEN = np.array([symbol_to_token(s) for s in RELEASE_ELEMENTS], dtype=np.int16)
_KEYS = ("observations", "actions", "rewards", "bandgaps", "terminals")


@dataclass(frozen=True, eq=False)
class ReleasedEpisode:
    """One episode of a released file, in our numbering of the elements.

    Attributes:
        row: Row of the CSV that the crystal is from, from 0.
        traversal: Sites (source order) in the order of filling, int16 ``(n_sites,)``.
        actions: Elements (0 to 87, by atomic number), int16 ``(n_sites,)``.
        lattice_parameters: a, b, c (Å), alpha, beta, gamma (degrees), ``(6,)``.
        space_group_number: Of the true crystal.
        formation_energy_ev_per_atom: Of the finished crystal.
        band_gap_ev: Of the finished crystal.
    """

    row: int
    traversal: NDArray[np.int16]
    actions: NDArray[np.int16]
    lattice_parameters: NDArray[np.float64]
    space_group_number: int
    formation_energy_ev_per_atom: float
    band_gap_ev: float


def read_released_trajectories(path: Path | str) -> list[ReleasedEpisode]:
    """Read a released trajectory file; it is loaded with ``weights_only``, so no code can run.

    Args:
        path: The ``.pt`` file.

    Returns:
        In the order of the file.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged, asks to run code, or does not have the released layout.
    """
    require_extra("agents", "reading released trajectories")
    import torch

    try:
        with open_file(path, _LARGEST):  # a file, not a pipe that may never end
            pass
        data = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise
    except DAMAGED_TENSORS as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ValueError(
            f"{path} is refused ({reason}): expected a torch file of plain "
            "containers and tensors as in Zenodo record 10626005; fetch it again"
        ) from error
    if not isinstance(data, dict) or any(key not in data for key in _KEYS):
        found = ", ".join(map(str, data)) if isinstance(data, dict) else type(data).__name__
        raise ValueError(
            f"{path} has another layout (found: {found}): expected a dictionary with "
            f"{', '.join(_KEYS)}"
        )
    ends = np.flatnonzero(np.array([bool(t) for t in data["terminals"]]))
    if not len(ends) or ends[-1] != len(data["actions"]) - 1:
        raise ValueError(f"{path} breaks off inside an episode: expected a terminal last step")
    first = np.concatenate([[0], ends[:-1] + 1])
    try:
        return [
            _episode(data, slice(int(a), int(b) + 1), number)
            for number, (a, b) in enumerate(zip(first, ends, strict=True))
        ]
    except (LookupError, TypeError, ValueError) as error:
        raise ValueError(
            f"the parts of {path} do not fit together ({error!r}): expected the layout of Zenodo "
            "record 10626005; fetch it again"
        ) from error


def _episode(data: dict[str, Any], steps: slice, number: int) -> ReleasedEpisode:
    observations = data["observations"][steps]
    focus = [int(np.asarray(o["atomic_number"])[:, -1].argmax()) for o in observations]
    actions = [_class_number(a) for a in data["actions"][steps]]
    laf = np.asarray(observations[0]["laf"], dtype=np.float64).ravel()
    return ReleasedEpisode(
        row=int(observations[0]["ind"]),
        traversal=np.array(focus, dtype=np.int16),
        actions=_TOKEN[actions] - 1,
        lattice_parameters=laf[:6],
        space_group_number=int(laf[6]),
        formation_energy_ev_per_atom=float(data["rewards"][steps][-1]),
        band_gap_ev=float(data["bandgaps"][number]),
    )


def _class_number(action: Any) -> int:
    """Return the element number of an action, stored as a number or as a one-hot vector."""
    array = np.asarray(action).ravel()
    return int(array[0]) if array.size == 1 else int(array.argmax())
