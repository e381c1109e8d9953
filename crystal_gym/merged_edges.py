"""Bonds as a graph network reads them: equal ones once, with how many they stand for.

Bonds of one skeleton that join the same two sites over the same distance have the same features in
every layer. They are worked out once for a set and kept with it, because they take sorting: a batch
then is a few look-ups.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from crystal_gym.columns import (
    require_columns,
    require_range,
    require_range_of_runs,
    require_starts,
)
from crystal_gym.ragged import run_starts

__all__ = ["MergedEdges"]


@dataclass(frozen=True, eq=False)
class MergedEdges:
    """Distinct bonds of ``S`` skeletons, ``N`` sites; ``E`` bonds and ``L`` lengths in all.

    All numbers are local to their skeleton; its bonds are sorted by source, target and length.

    Attributes:
        edge_ptr: First bond of every skeleton, int64 ``(S + 1,)``.
        length_ptr: First length of every skeleton, int64 ``(S + 1,)``.
        source: Site, int16 ``(E,)``.
        target: Site, int16 ``(E,)``.
        by_target: Bonds of the skeleton sorted by target, int32 ``(E,)``.
        weight: How many directed edges a bond stands for, int16 ``(E,)``.
        length_number: Which length is the bond's, int32 ``(E,)``.
        length: Å, ascending within a skeleton, float32 ``(L,)``.
        n_leaving: Bonds that leave each site, int16 ``(N,)``.
        n_entering: Bonds that enter each site, int16 ``(N,)``.
    """

    edge_ptr: NDArray[np.int64]
    length_ptr: NDArray[np.int64]
    source: NDArray[np.int16]
    target: NDArray[np.int16]
    by_target: NDArray[np.int32]
    weight: NDArray[np.int16]
    length_number: NDArray[np.int32]
    length: NDArray[np.float32]
    n_leaving: NDArray[np.int16]
    n_entering: NDArray[np.int16]

    @classmethod
    def of(
        cls,
        site_ptr: NDArray[np.int64],
        edge_ptr: NDArray[np.int64],
        edge_index: NDArray[np.int16],
        edge_length: NDArray[np.float32],
    ) -> MergedEdges:
        """Merge the edges of a set.

        Args:
            site_ptr: First site of every skeleton, ``(S + 1,)``.
            edge_ptr: First directed edge, ``(S + 1,)``.
            edge_index: Site numbers within the skeleton, ``(2, all edges)``.
            edge_length: Å, ``(all edges,)``.

        Returns:
            Edges of the same ends and length as one bond, with their number as its weight.
        """
        count = len(edge_ptr) - 1
        owner = np.repeat(np.arange(count), np.diff(edge_ptr))
        source, target = edge_index.astype(np.int64)
        order, starts = _first_of_groups(owner, source, target, edge_length)
        weight = np.diff(np.append(starts, len(order)))
        kept = order[starts]
        owner, source, target = owner[kept], source[kept], target[kept]
        length = edge_length[kept]
        merged_ptr = run_starts(np.bincount(owner, minlength=count))

        by_length, length_starts = _first_of_groups(owner, length)
        distinct = by_length[length_starts]
        length_ptr = run_starts(np.bincount(owner[distinct], minlength=count))
        number = np.empty(len(kept), dtype=np.int64)
        number[by_length] = np.cumsum(np.bincount(length_starts, minlength=len(kept))) - 1

        site, n_sites = site_ptr[owner], int(site_ptr[-1])
        by_target = np.argsort(site + target, kind="stable") - merged_ptr[owner]
        return cls(
            edge_ptr=merged_ptr,
            length_ptr=length_ptr,
            source=source.astype(np.int16),
            target=target.astype(np.int16),
            by_target=by_target.astype(np.int32),
            weight=weight.astype(np.int16),
            length_number=(number - length_ptr[owner]).astype(np.int32),
            length=length[distinct],
            n_leaving=np.bincount(site + source, minlength=n_sites).astype(np.int16),
            n_entering=np.bincount(site + target, minlength=n_sites).astype(np.int16),
        )

    def require_sound(self, site_ptr: NDArray[np.int64]) -> None:
        """Refuse bonds that do not fit together or to the sites of their skeletons.

        Args:
            site_ptr: First site of every skeleton, ``(S + 1,)``.

        Raises:
            ValueError: If they do not: a network would read beyond its arrays.
        """
        sets, sites = len(site_ptr) - 1, int(site_ptr[-1])
        bonds, lengths = self.source.size, self.length.size
        columns = vars(self)
        shapes: dict[str, tuple[str, tuple[int | None, ...]]] = {
            "edge_ptr": ("i", (sets + 1,)),
            "length_ptr": ("i", (sets + 1,)),
            "length": ("f", (lengths,)),
            "n_leaving": ("i", (sites,)),
            "n_entering": ("i", (sites,)),
        }
        of_bonds = ("source", "target", "by_target", "weight", "length_number")
        require_columns(columns, shapes | {name: ("i", (bonds,)) for name in of_bonds})
        require_starts("edge_ptr", self.edge_ptr, bonds)
        require_starts("length_ptr", self.length_ptr, lengths)
        n_sites, n_bonds = np.diff(site_ptr), np.diff(self.edge_ptr)
        for name, high in (
            ("source", n_sites),
            ("target", n_sites),
            ("by_target", n_bonds),
            ("length_number", np.diff(self.length_ptr)),
        ):
            require_range_of_runs(name, columns[name], self.edge_ptr, high)
        require_range("weight", self.weight, 1, np.inf)
        require_range("length", self.length, 0, 1e6)
        for name in ("n_leaving", "n_entering"):
            require_range(name, columns[name], 0, np.inf)
            total = np.add.reduceat(columns[name], site_ptr[:-1], dtype=np.int64)
            if not np.array_equal(total, n_bonds):
                raise ValueError(f"{name} does not count the bonds of every skeleton")


def _first_of_groups(*keys: NDArray) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Sort by ``keys`` (the first counts most); return the order and where each group starts."""
    order = np.lexsort(keys[::-1])
    new = np.zeros(len(order), dtype=bool)
    new[:1] = True
    for key in keys:
        new[1:] |= np.diff(key[order]) != 0
    return order, np.flatnonzero(new)
