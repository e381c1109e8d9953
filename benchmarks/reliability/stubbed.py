"""What the checks of labelling share: made crystals, and the tests' stand-in for pw.x."""

import sys
from collections.abc import Iterable
from pathlib import Path

from pymatgen.core import Lattice, Structure

from crystal_gym.oracles import CachedOracle, EspressoOracle

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))
from stored_attempts import stored_attempts
from stub_pw import Stub

__all__ = ["Stub", "cached_oracle", "make_crystals", "make_stub", "stored_attempts"]


def make_crystals(numbers: Iterable[int]) -> list[Structure]:
    """Return crystals that are all different."""
    sites = [[0, 0, 0], [0.5, 0.5, 0.5]]
    return [
        Structure(
            Lattice.tetragonal(3.4 + 0.001 * (n % 4000), 3.4 + 0.001 * (n // 4000)),
            ["Na", "Cl"],
            sites,
        )
        for n in numbers
    ]


def make_stub(folder: Path, seconds: float) -> Stub:
    """Install the stand-in, which takes so long for a calculation."""
    return Stub(folder / "stub", ["Na", "Cl"], seconds=seconds)


def cached_oracle(folder: Path, database: str = "results.db") -> CachedOracle:
    """Return what calculates with the folder's stub and stores in a database there."""
    espresso = EspressoOracle(
        "fast",
        pw=str(folder / "stub" / "pw.x"),
        pseudopotentials=folder / "stub" / "pseudo",
        references=None,
        scratch=folder / "scratch",
    )
    return CachedOracle(espresso, folder / database)
