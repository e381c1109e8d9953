"""From a structure to a pw.x input: what can be known before anything is launched."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from crystal_gym.oracles.base import Status
from crystal_gym.oracles.espresso.pseudopotentials import Pseudopotential
from crystal_gym.oracles.espresso.settings import PwSettings
from crystal_gym.structures import MIN_DISTANCE, site_symbols

if TYPE_CHECKING:
    from pymatgen.core import Structure

__all__ = ["MAX_SITES", "check_structure", "count_bands", "count_electrons", "pw_input"]

MAX_SITES = 200
"""Larger cells take days at these settings."""

# Volumes per atom (Å^3) outside of which a cell is a mistake: diamond has 5.7, solid caesium 116.
_VOLUMES = (2.0, 500.0)

_BOHR = 0.529177210903  # Å


def check_structure(
    structure: Structure, pseudopotentials: Mapping[str, Pseudopotential]
) -> tuple[Status, str] | None:
    """Return why a structure cannot be calculated, None if nothing speaks against it."""
    n_sites = len(structure)
    if not 1 <= n_sites <= MAX_SITES:
        return Status.GEOMETRY, f"the cell has {n_sites} sites: expected 1 to {MAX_SITES}"
    if not structure.is_ordered:
        return Status.GEOMETRY, "a site is partially occupied: expected one element per site"
    elements = site_symbols(structure)
    missing = sorted({s for s in elements if s not in pseudopotentials})
    if missing:
        return Status.UNSUPPORTED_ELEMENT, f"there is no pseudopotential for {', '.join(missing)}"
    lattice = structure.lattice.matrix
    if not (np.isfinite(lattice).all() and np.isfinite(structure.frac_coords).all()):
        return Status.GEOMETRY, "a coordinate is not a finite number"
    volume = abs(float(np.linalg.det(lattice))) / n_sites
    if not _VOLUMES[0] <= volume <= _VOLUMES[1]:
        return Status.GEOMETRY, (
            f"the cell has {volume:.3g} Å^3 per atom: expected {_VOLUMES[0]:g} to {_VOLUMES[1]:g}"
        )
    distances = structure.get_neighbor_list(MIN_DISTANCE)[3]  # images included
    if len(distances):
        return Status.GEOMETRY, (
            f"two atoms are {distances.min():.2f} Å apart: expected at least {MIN_DISTANCE} Å"
        )
    return None


def count_electrons(structure: Structure, pseudopotentials: Mapping[str, Pseudopotential]) -> int:
    """Return the valence electrons per cell."""
    return round(sum(pseudopotentials[s].valence for s in site_symbols(structure)))


def count_bands(
    settings: PwSettings, n_electrons: int, magnetization: int | None, lattice: NDArray[np.float64]
) -> int:
    """Return the bands per spin to calculate.

    Args:
        settings: With the number asked for.
        n_electrons: Valence electrons per cell.
        magnetization: Bohr magnetons per cell, None without spin.
        lattice: Row vectors, Å, ``(3, 3)``.

    Returns:
        Occupied and some empty ones, more if asked for, as far as there are plane waves.

    Raises:
        ValueError: If the cell has too few plane waves for an empty band.
    """
    occupied = (n_electrons + (magnetization or 0) + 1) // 2
    spare = max(4, -(-occupied // 5))
    if settings.smearing_ry is not None:
        spare *= 2  # one spin channel may hold several electrons more than the other
    wanted = max(settings.n_bands or 0, occupied + spare)
    most = _most_bands(settings, lattice)
    if most <= occupied:
        raise ValueError(
            f"the cell has plane waves for {most} bands at {settings.ecutwfc_ry:g} Ry, and "
            f"{occupied} are occupied: expected an empty one; raise ecutwfc_ry"
        )
    return min(wanted, most)


def _most_bands(settings: PwSettings, lattice: NDArray[np.float64]) -> int:
    """Return how many bands pw.x manages in a cell.

    Its diagonalization works with two vectors for every band. It refuses more of them than the
    plane waves that it estimates from the volume ("more bands than PWs!"), and breaks down without
    a word where they are nearly all that there are at a k-point (from 93% on in trials).
    """
    volume = abs(float(np.linalg.det(lattice))) / _BOHR**3
    estimate = round(volume * settings.ecutwfc_ry**1.5 / (6 * np.pi**2))
    return min(estimate // 2, int(0.45 * count_plane_waves(settings, lattice)))


def count_plane_waves(settings: PwSettings, lattice: NDArray[np.float64]) -> int:
    """Return the fewest plane waves below the cutoff at any point of the k-mesh."""
    from pymatgen.core import Lattice

    # Long and skewed vectors would take a huge box of indices: count with short ones. The mesh
    # belongs to the vectors as they are given.
    reduced = Lattice(lattice).get_lll_reduced_lattice().matrix
    change = np.rint(reduced @ np.linalg.inv(lattice))
    mesh = zip(settings.k_mesh, settings.k_offset, strict=True)
    axes = [(np.arange(n) + offset / 2) / n for n, offset in mesh]
    points = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3) @ change.T
    points -= np.round(points)
    lattice = reduced
    reciprocal = 2 * np.pi * np.linalg.inv(lattice / _BOHR).T
    radius = np.sqrt(settings.ecutwfc_ry)
    # |G_i| <= radius * |a_i| / 2 pi bounds the indices; one more for the k-point.
    reach = np.ceil(radius * np.linalg.norm(lattice / _BOHR, axis=1) / (2 * np.pi)).astype(int) + 1
    indices = np.stack(
        np.meshgrid(*[np.arange(-r, r + 1) for r in reach], indexing="ij"), axis=-1
    ).reshape(-1, 3)
    counts = [
        int(np.count_nonzero(np.sum(((indices + k) @ reciprocal) ** 2, axis=1) <= radius**2))
        for k in points
    ]
    return min(counts)


def pw_input(
    structure: Structure,
    settings: PwSettings,
    files: Mapping[str, str],
    *,
    pseudo_dir: str,
    n_bands: int,
    magnetization: int | None,
    max_seconds: float,
) -> str:
    """Return the input of one calculation, as ASE writes it.

    Args:
        structure: Any cell; the k-mesh is the same set of points for every choice of its vectors.
        settings: What to compute.
        files: Pseudopotential file by element.
        pseudo_dir: Their folder.
        n_bands: Bands per spin.
        magnetization: Bohr magnetons per cell; None for a calculation without spin.
        max_seconds: After which pw.x ends itself.

    Returns:
        Text of ``pw.in``.
    """
    from ase import Atoms
    from ase.io.espresso import write_espresso_in

    atoms = Atoms(
        site_symbols(structure),
        scaled_positions=structure.frac_coords,
        cell=structure.lattice.matrix,
        pbc=True,
    )
    system: dict[str, Any] = {
        "ecutwfc": settings.ecutwfc_ry,
        "ecutrho": settings.ecutrho_ry,
        "occupations": "fixed",
        "nspin": 1,
        "nbnd": n_bands,
    }
    if magnetization is not None:
        system |= {"nspin": 2, "tot_magnetization": magnetization}
    if settings.smearing_ry is not None:
        system |= {"occupations": "smearing", "smearing": "cold", "degauss": settings.smearing_ry}
        system["nspin"] = 2
        atoms.set_initial_magnetic_moments([0.5] * len(atoms))
    text = io.StringIO()
    write_espresso_in(
        text,
        atoms,
        input_data={
            "control": {
                "calculation": "scf",
                "prefix": "pw",
                "outdir": ".",
                "pseudo_dir": pseudo_dir,
                "disk_io": "none",  # energies and levels stand in the output
                "max_seconds": max_seconds,
            },
            "system": system,
            "electrons": {
                "conv_thr": settings.conv_thr_ry,
                "mixing_beta": settings.mixing_beta,
                "electron_maxstep": settings.electron_maxstep,
            },
        },
        pseudopotentials=dict(files),
        kpts=settings.k_mesh,
        koffset=settings.k_offset,
        crystal_coordinates=True,
    )
    return text.getvalue()
