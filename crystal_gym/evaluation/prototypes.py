"""Labelled crystals of a structure type: what has been put into a skeleton like this one before.

Nothing here looks at the elements of the skeleton that is asked about, nor at its name.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from crystal_gym.datasets.trajectories import Trajectories
from crystal_gym.elements import N_ELEMENTS
from crystal_gym.skeletons import Skeleton, SkeletonSet

if TYPE_CHECKING:
    from pymatgen.analysis.structure_matcher import StructureMatcher

__all__ = ["Prototype", "PrototypeLibrary"]

_TRIES = 10
"""Crystals that are compared atom by atom, the most alike first."""


class Prototype(NamedTuple):
    """A labelled crystal, its elements carried over to another skeleton.

    Attributes:
        tokens: Elements site by site of the skeleton asked about, int16 ``(n_sites,)``.
        band_gap_ev: Of the labelled crystal.
        same_type: Whether its structure type is the same: all atoms taken alike, pymatgen's
            StructureMatcher lays one on the other.
    """

    tokens: NDArray[np.int16]
    band_gap_ev: float
    same_type: bool


class PrototypeLibrary:
    """Labelled crystals to be found by their structure.

    Compared are crystals with as many sites. Those with the same space group of the bare skeleton
    come first, by the distance of cell shape, coordination numbers, bond lengths (all in units of
    the cube root of the volume per site) and of the logarithm of that volume, which tells large
    ions from small ones. Of the first ten those that StructureMatcher lays on the skeleton, all
    atoms alike, are its prototypes. Where there is none, the nearest of all is taken, and its sites
    are assigned by coordination number and bond lengths.

    Args:
        trajectories: Labelled crystals.
    """

    def __init__(self, trajectories: Trajectories) -> None:
        first = trajectories.crystals
        self._skeletons = trajectories.skeletons
        self._skeleton = trajectories.skeleton[first]
        self._tokens = trajectories.finished[first]
        self._gap = trajectories.band_gap_ev[first]
        self._n_sites = self._skeletons.n_sites[self._skeleton]
        self._space_group = self._skeletons.space_group_number[self._skeleton]
        self._descriptors: dict[int, NDArray[np.float64]] = {}
        self._found: dict[str, list[Prototype]] = {}
        counts = np.bincount(trajectories.actions, minlength=N_ELEMENTS)
        self._majority = np.int16(counts.argmax() + 1)

    def __len__(self) -> int:
        return len(self._skeleton)

    def prototypes(self, skeleton: Skeleton) -> list[Prototype]:
        """Return labelled crystals like a skeleton, the most alike first, at least one.

        Where no labelled crystal has as many sites, the only one is the most frequent element on
        all sites, with an unknown gap (NaN).
        """
        if skeleton.key not in self._found:
            self._found[skeleton.key] = self._look_up(skeleton)
        return self._found[skeleton.key]

    def _look_up(self, skeleton: Skeleton) -> list[Prototype]:
        near = self._nearest(skeleton)
        if not len(near):
            filled = np.full(skeleton.n_sites, self._majority, dtype=np.int16)
            return [Prototype(filled, np.nan, False)]
        found = []
        for entry in near[:_TRIES].tolist():
            mapping = self._overlay(skeleton, entry)
            if mapping is not None:
                found.append(Prototype(self._elements(entry)[mapping], self._gap[entry], True))
        if found:
            return found
        entry = int(near[0])
        other = self._skeletons[int(self._skeleton[entry])]
        mapping = _alike_sites(skeleton, other)
        return [Prototype(self._elements(entry)[mapping], self._gap[entry], False)]

    def _elements(self, entry: int) -> NDArray[np.int16]:
        return self._tokens[entry, : self._n_sites[entry]].astype(np.int16)

    def _nearest(self, skeleton: Skeleton) -> NDArray[np.int64]:
        """Return the entries with as many sites, those of the same space group first."""
        entries = np.flatnonzero(self._n_sites == skeleton.n_sites)
        if not len(entries):
            return entries
        mine = _descriptor(skeleton)
        distance = np.abs(self._descriptors_of(skeleton.n_sites, entries) - mine).sum(axis=1)
        other_group = self._space_group[entries] != skeleton.space_group_number
        return entries[np.lexsort((entries, distance, other_group))]

    def _descriptors_of(self, n_sites: int, entries: NDArray[np.int64]) -> NDArray[np.float64]:
        if n_sites not in self._descriptors:
            skeletons: SkeletonSet = self._skeletons
            self._descriptors[n_sites] = np.stack(
                [_descriptor(skeletons[i]) for i in self._skeleton[entries].tolist()]
            )
        return self._descriptors[n_sites]

    @cached_property
    def _matcher(self) -> StructureMatcher:
        from pymatgen.analysis.structure_matcher import FrameworkComparator, StructureMatcher

        return StructureMatcher(
            primitive_cell=False, attempt_supercell=False, comparator=FrameworkComparator()
        )

    def _overlay(self, skeleton: Skeleton, entry: int) -> NDArray[np.int64] | None:
        """Return which site of a labelled crystal lies on each site, None if they do not match."""
        other = self._skeletons[int(self._skeleton[entry])]
        found = self._matcher.get_transformation(_bare(skeleton), _bare(other))
        return None if found is None else np.asarray(found[2], dtype=np.int64)


def _bare(skeleton: Skeleton):  # type: ignore[no-untyped-def]
    from pymatgen.core import Structure

    return Structure(skeleton.lattice, ["H"] * skeleton.n_sites, skeleton.frac_coords)


def _site_features(skeleton: Skeleton) -> NDArray[np.float64]:
    """Return coordination number (in twelves) and mean bond length of each site, ``(n, 2)``."""
    source = skeleton.edge_index[0]
    coordination = np.bincount(source, minlength=skeleton.n_sites)
    total = np.bincount(source, skeleton.edge_length, minlength=skeleton.n_sites)
    mean = total / np.maximum(coordination, 1) / _site_size(skeleton)
    return np.column_stack([coordination / 12.0, mean])


def _site_size(skeleton: Skeleton) -> float:
    """Return the cube root of the volume per site, Å."""
    volume = abs(float(np.linalg.det(skeleton.lattice)))
    return float((volume / skeleton.n_sites) ** (1 / 3))


def _descriptor(skeleton: Skeleton) -> NDArray[np.float64]:
    """Return what two skeletons with as many sites are compared by, ``(7 + 2 n_sites,)``.

    A difference counts by the mean over the three lengths, three angles or all sites.
    """
    features = _site_features(skeleton)
    size = _site_size(skeleton)
    lengths = np.sort(skeleton.lattice_parameters[:3]) / size / skeleton.n_sites ** (1 / 3)
    angles = np.cos(np.radians(np.sort(skeleton.lattice_parameters[3:])))
    sites = np.sort(features, axis=0).T.ravel() / skeleton.n_sites
    return np.concatenate([lengths / 3, angles / 3, sites, [3 * np.log(size)]])


def _alike_sites(skeleton: Skeleton, other: Skeleton) -> NDArray[np.int64]:
    """Return the site of another skeleton for each site, by the least difference in all."""
    mine, theirs = _site_features(skeleton), _site_features(other)
    cost = np.abs(mine[:, None] - theirs[None]).sum(axis=2)
    return np.asarray(linear_sum_assignment(cost)[1], dtype=np.int64)
