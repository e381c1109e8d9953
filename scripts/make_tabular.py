#!/usr/bin/env python3
"""Calculate the bundled set ``tabular``: every valid filling of a few small skeletons.

The result, ``crystal_gym/data/tabular``, is a benchmark with a known optimum: within a skeleton's
palette every filling that passes SMACT's test (smact14 oxidation states), unique up to the
symmetry of the skeleton, is calculated with pw.x at the preset ``fast``. Failed calculations are in
the table with their status.

The palettes are of 40 elements in all, but not the same for every skeleton: over 40 elements a
single fluorite skeleton has 23,840 valid fillings. Each skeleton gets elements of a size that suits
its volume.

Every result is stored as soon as it is there; a second run goes on where the first one stopped.

Examples::

    python scripts/make_tabular.py --cache results.db --output crystal_gym/data/tabular
    python scripts/make_tabular.py --list
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from pymatgen.core import DummySpecies, Lattice, Structure

from crystal_gym.elements import formula_counts, symbol_to_token
from crystal_gym.labelling import label
from crystal_gym.oracles import CachedOracle, EspressoOracle
from crystal_gym.oracles.table import table_of_fillings
from crystal_gym.skeletons import Skeleton, SkeletonSet, build_skeletons
from crystal_gym.structures import cell_from_structure
from crystal_gym.validity import smact_valid

SMALL = "H Li Be B C N O F Na Mg Al Si P S Ca Sc Ti Zn Ga Ge As".split()
MEDIUM = "Li N O F Na Mg Al P S Cl K Ca Zn Se Br Y Zr Ag Cd Sn".split()
LARGE = "F Na S Cl K Se Br Rb Sr Ag Cd In Sn Sb Te I Cs Ba Tl Pb".split()
# Sites beyond two multiply the fillings: few elements, of different charges.
FEW_SMALL = "Li Be C N O F Mg".split()
FEW_LARGE = "Na Mg Zn S Cl Se Te".split()
FOUR = "Be Al N O".split()


class TabularSkeleton(NamedTuple):
    """A skeleton and the elements that fill it."""

    kind: str
    a: float
    palette: list[str]

    @property
    def name(self) -> str:
        """Such as ``rocksalt-4.2``."""
        return f"{self.kind}-{self.a:g}"

    def structure(self) -> Structure:
        """Return the bare sites, a in Å."""
        make_lattice, sites = KINDS[self.kind]
        return Structure(make_lattice(self.a), [DummySpecies("X")] * len(sites), sites)


def _fcc(a: float) -> Lattice:
    return Lattice([[0, a / 2, a / 2], [a / 2, 0, a / 2], [a / 2, a / 2, 0]])


def _wurtzite(a: float) -> Lattice:
    return Lattice.hexagonal(a, a * (8 / 3) ** 0.5)


_U = 3 / 8
KINDS = {
    "rocksalt": (_fcc, [[0.0] * 3, [0.5] * 3]),
    "zincblende": (_fcc, [[0.0] * 3, [0.25] * 3]),
    "caesium-chloride": (Lattice.cubic, [[0.0] * 3, [0.5] * 3]),
    # Of three sites on the diagonal the middle one is special: fluorite, antifluorite and
    # half-Heusler compounds are fillings of one skeleton.
    "fluorite": (_fcc, [[0.25] * 3, [0.0] * 3, [0.5] * 3]),
    "wurtzite": (
        _wurtzite,
        [[1 / 3, 2 / 3, 0], [2 / 3, 1 / 3, 0.5], [1 / 3, 2 / 3, _U], [2 / 3, 1 / 3, 0.5 + _U]],
    ),
}

SKELETONS = [
    TabularSkeleton("rocksalt", 4.2, SMALL),
    TabularSkeleton("rocksalt", 5.0, MEDIUM),
    TabularSkeleton("rocksalt", 6.0, LARGE),
    TabularSkeleton("zincblende", 4.4, SMALL),
    TabularSkeleton("zincblende", 5.5, MEDIUM),
    TabularSkeleton("zincblende", 6.3, LARGE),
    TabularSkeleton("caesium-chloride", 2.7, SMALL),
    TabularSkeleton("caesium-chloride", 3.3, MEDIUM),
    TabularSkeleton("caesium-chloride", 4.0, LARGE),
    TabularSkeleton("fluorite", 4.9, FEW_SMALL),
    TabularSkeleton("fluorite", 6.2, FEW_LARGE),
    TabularSkeleton("wurtzite", 2.9, FOUR),
]


def skeleton_set() -> SkeletonSet:
    """Return the skeletons in the order of :data:`SKELETONS`."""
    cells = [cell_from_structure(s.structure(), s.name) for s in SKELETONS]
    skeletons, problems = build_skeletons(cells, workers=1)
    if problems:
        raise SystemExit(f"error: no graph for {problems}")
    return skeletons


def valid_fillings(skeleton: Skeleton, palette: list[str]) -> Iterator[NDArray[np.int16]]:
    """Yield every filling that passes SMACT's test, one for each crystal."""
    tokens = sorted(symbol_to_token(symbol) for symbol in palette)
    for filling in itertools.product(tokens, repeat=skeleton.n_sites):
        array = np.array(filling, dtype=np.int16)
        if skeleton.canonical_tokens(array) != array.astype(np.uint8).tobytes():
            continue  # another labelling of a crystal that comes up, or came up, itself
        if smact_valid(formula_counts(array)):
            yield array


def main(argv: list[str] | None = None) -> int:
    """Calculate what is missing and write the set."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pseudo", type=Path, help="folder of pseudopotentials")
    parser.add_argument("--cache", default="tabular.db", help="database of results (%(default)s)")
    parser.add_argument("--workers", type=int, default=2, help="processes (%(default)s)")
    parser.add_argument("--output", type=Path, help="folder for skeletons.npz and table.npz")
    parser.add_argument("--sample", type=int, help="only this many fillings, drawn with seed 0")
    parser.add_argument("--list", action="store_true", help="print the skeletons and stop")
    options = parser.parse_args(argv)
    skeletons = skeleton_set()
    pairs = [
        (number, tokens)
        for number, (skeleton, kind) in enumerate(zip(skeletons, SKELETONS, strict=True))
        for tokens in valid_fillings(skeleton, kind.palette)
    ]
    if options.list:
        for number, kind in enumerate(SKELETONS):
            count = sum(n == number for n, _ in pairs)
            print(f"{kind.name:<22} {skeletons[number]!r}  {count:4} fillings")
        print(len(pairs), "fillings,", len({e for s in SKELETONS for e in s.palette}), "elements")
        return 0
    # Mixed, so that the time left which the progress bar shows means something.
    order = np.random.default_rng(0).permutation(len(pairs))[: options.sample]
    oracle = CachedOracle(EspressoOracle("fast", pseudopotentials=options.pseudo), options.cache)
    structures = [skeletons[pairs[i][0]].structure(pairs[i][1]) for i in order]
    results = label(structures, oracle, workers=options.workers, progress=True)
    if options.output:
        # Whether an answer was looked up or calculated just now depends on the run alone.
        found = {
            int(i): replace(result, provenance=result.provenance.removesuffix(" (stored)"))
            for i, result in zip(order, results, strict=True)
        }
        entries = [(*pairs[i], found[i]) for i in sorted(found)]
        table = table_of_fillings(skeletons, entries)
        table.save_with_skeletons(options.output)
        print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
