"""What is in a database of results, read with sqlite3 and ASE alone, also while others write."""

import contextlib
import sqlite3
from dataclasses import dataclass
from pathlib import Path

from ase.db import connect
from ase.db.core import T2000, YEAR

from crystal_gym.oracles import Status


@dataclass(frozen=True)
class Attempt:
    """One row: which crystal, how it ended, its energy as the stub logs it, and when (s)."""

    crystal: str
    status: Status
    energy: str
    stored_at: float


def stored_attempts(path: Path) -> list[Attempt]:
    """Return all rows in the order in which they were stored."""
    if not _has_tables(path):  # ASE would make them, beside a writer that is just doing so
        return []
    found = []
    for row in connect(path, use_lock_file=False).select(sort="id"):
        properties = row.data["properties"]
        energy = properties["total_energy_ry"]
        found.append(
            Attempt(
                row.data["crystal"],
                Status(properties["status"]),
                "" if energy is None else f"{energy:.8f}",
                T2000 + YEAR * row.ctime,
            )
        )
    return found


def _has_tables(path: Path) -> bool:
    if not path.exists():
        return False
    with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
        tables = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
        return ("systems",) in tables.fetchall()
