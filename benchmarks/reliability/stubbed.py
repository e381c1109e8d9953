"""What the checks of labelling share: made crystals, and the tests' stand-in for pw.x."""

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ase.db import connect
from ase.db.core import T2000, YEAR
from pymatgen.core import Lattice, Structure

from crystal_gym.oracles import CachedOracle, EspressoOracle, Status

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))
from stub_pw import Stub


@dataclass(frozen=True)
class Row:
    """One attempt in a database: which crystal, how it ended, its energy, and when (s)."""

    crystal: str
    status: Status
    energy: str
    stored_at: float


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


def stored_rows(folder: Path) -> list[Row]:
    """Return all attempts in the database, read with ASE alone."""
    path = folder / "results.db"
    found = []
    for row in connect(path, use_lock_file=False).select() if path.exists() else ():
        properties = row.data["properties"]
        energy = properties["total_energy_ry"]
        found.append(
            Row(
                row.data["crystal"],
                Status(properties["status"]),
                "" if energy is None else f"{energy:.8f}",
                T2000 + YEAR * row.ctime,
            )
        )
    return found
