"""Results that are never calculated twice: an ASE database behind any oracle.

The database is SQLite (a file ending in ``.db``) or PostgreSQL (``postgresql://...``), and ASE's
own tools read it: ``ase db results.db``. Rows are only ever added. The ``unique_id`` of a row is a
hash of the crystal (in whatever cell it is written), of what the result depends on besides (the
oracle's fingerprint), and of the number of the attempt, so a database refuses a second row for the
same attempt even where two processes finish at once.
"""

from __future__ import annotations

import hashlib
import sqlite3
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
from filelock import FileLock

from crystal_gym.crystal_key import cell_key, structure_key
from crystal_gym.elements import tokens_to_symbols
from crystal_gym.files import cache_dir
from crystal_gym.oracles.base import Filling, Properties, Status
from crystal_gym.oracles.references import RY_TO_EV

if TYPE_CHECKING:
    from pymatgen.core import Structure

    from crystal_gym.skeletons import Skeleton

__all__ = ["Cacheable", "CachedOracle", "ResultStore", "StoredResult", "default_database"]

_LOCK_KEY = 5_427_016  # of the advisory lock that PostgreSQL's writers take turns with


@runtime_checkable
class Cacheable(Protocol):
    """An oracle whose answers can be remembered: it says what they depend on."""

    def evaluate(self, structures: Sequence[Structure]) -> list[Properties]:
        """Return the properties of each structure, in order."""

    def fingerprint(self, elements: Iterable[str]) -> str:
        """Return what a result for a crystal of these elements depends on besides the crystal."""

    def derive(self, properties: Properties, species: Sequence[str]) -> Properties:
        """Return a stored result with what follows from it without a calculation."""


@dataclass(frozen=True)
class StoredResult:
    """One row of a database.

    Attributes:
        crystal: :func:`crystal_gym.crystal_key.structure_key`.
        fingerprint: Of the oracle.
        attempt: 0, or more where earlier attempts ended in a failure that may pass.
        properties: The result.
        row_id: Number of the row.
    """

    crystal: str
    fingerprint: str
    attempt: int
    properties: Properties
    row_id: int


def default_database() -> Path:
    """Return the database that ``gym.make(oracle="espresso")`` uses."""
    return cache_dir() / "calculations.db"


class ResultStore:
    """Results in an ASE database, for several processes at once.

    Args:
        database: A path ending in ``.db``, or a ``postgresql://`` address.

    Raises:
        ValueError: If the file is no ASE database or has another ending.
        ConnectionError: If the address does not answer.
        ImportError: If PostgreSQL is asked for and its packages are missing.
        OSError: If the file's folder cannot be made or written.
    """

    def __init__(self, database: Path | str) -> None:
        self.address = str(database)
        self.is_file = not self.address.startswith(("postgresql://", "postgres://"))
        if self.is_file:
            path = Path(self.address).absolute()
            if path.suffix != ".db":
                raise ValueError(
                    f"database {self.address!r} is not understood: expected a file ending in .db, "
                    "or postgresql://user:password@host:port/name"
                )
            self.address = str(path)
        self._open()

    def _open(self) -> None:
        self._seen = 0
        self._latest: dict[tuple[str, str], StoredResult] = {}
        if self.is_file:
            Path(self.address).parent.mkdir(parents=True, exist_ok=True)
        self._database = self._guarded(self._connect)
        self.refresh()

    def _connect(self) -> Any:
        from ase.db import connect

        try:
            # ASE's own lock file outlives a killed process; ours does not.
            return connect(self.address, use_lock_file=False)
        except ImportError as error:
            raise ImportError(
                f"PostgreSQL needs {error.name}, which is not installed: run `pip install "
                "crystal-gym[postgresql]`"
            ) from error

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        """Only the address travels to another process, which opens it once."""
        return _opened_once, (self.address,)

    def __repr__(self) -> str:
        return f"ResultStore({len(self._latest)} results in {_without_password(self.address)})"

    def __len__(self) -> int:
        return len(self._latest)

    def get(self, crystal: str, fingerprint: str) -> StoredResult | None:
        """Return the latest result as far as this process has seen; see :meth:`refresh`."""
        return self._latest.get((crystal, fingerprint))

    def refresh(self) -> None:
        """Read what other processes have added."""
        if self.is_file and not Path(self.address).exists():
            return
        for row in self._guarded(lambda: list(self._database.select(f"id>{self._seen}"))):
            self._seen = max(self._seen, row.id)
            found = _read_row(row)
            if found is not None:
                self._remember(found)

    def _remember(self, found: StoredResult) -> None:
        key = found.crystal, found.fingerprint
        known = self._latest.get(key)
        if known is None or known.attempt < found.attempt:
            self._latest[key] = found

    def put(
        self, structure: Structure, crystal: str, fingerprint: str, properties: Properties
    ) -> Properties:
        """Add a result, and return the one that holds.

        That is the given one, unless another process was faster with a final result.
        """
        with self._lock():
            self.refresh()
            known = self.get(crystal, fingerprint)
            if known is not None and known.properties.status.is_final:
                return known.properties
            attempt = 0 if known is None else known.attempt + 1
            row = _write_row(structure, crystal, fingerprint, attempt, properties)
            self._guarded(lambda: self._insert(*row))
            self.refresh()
        return properties

    def _insert(self, atoms_row: Any, values: dict[str, Any], data: dict[str, Any]) -> None:
        with self._database:
            if not self.is_file:
                # ase-db-backends asks the sequence for the number of the row it has just added,
                # which is another's where two add at once.
                cursor = self._database.connection.cursor()
                cursor.execute("SELECT pg_advisory_xact_lock(?)", (_LOCK_KEY,))
            self._database.write(atoms_row, data=data, **values)

    def _lock(self) -> AbstractContextManager[Any]:
        if not self.is_file:
            return nullcontext()
        path = Path(self.address)
        return FileLock(path.with_name(f".{path.name}.lock"))

    def rows(self) -> Iterator[tuple[StoredResult, Any]]:
        """Yield the latest result of every crystal with its ASE Atoms, in the order of storing."""
        self.refresh()
        latest = {result.row_id for result in self._latest.values()}
        for row in self._guarded(lambda: list(self._database.select(sort="id"))):
            if row.id in latest:
                found = _read_row(row)
                if found is not None:
                    yield found, row.toatoms()

    def _guarded(self, call: Callable[[], Any]) -> Any:
        """Run a call to the database, with errors that say what to do."""
        where = _without_password(self.address)
        try:
            return call()
        except sqlite3.DatabaseError as error:
            text = str(error)
            if "not a database" in text or "malformed" in text:
                raise ValueError(
                    f"{where} is no ASE database ({text}): expected one, or a new name; a damaged "
                    "one can often be read with sqlite3's .recover"
                ) from error
            raise OSError(
                f"{where} cannot be read or written ({text}): make room or check its permissions; "
                "what it holds is unchanged"
            ) from error
        except OSError:
            raise
        except Exception as error:
            if type(error).__module__.split(".")[0] != "psycopg2":
                raise
            raise ConnectionError(
                f"{where} does not answer ({str(error).strip().splitlines()[0]}): check the "
                "address and that the server runs; nothing is lost"
            ) from error


@lru_cache(maxsize=8)
def _opened_once(address: str) -> ResultStore:
    return ResultStore(address)


def _without_password(address: str) -> str:
    if "://" not in address or "@" not in address:
        return address
    scheme, rest = address.split("://", 1)
    user, host = rest.rsplit("@", 1)
    return f"{scheme}://{user.split(':')[0]}@{host}"


def _write_row(
    structure: Structure, crystal: str, fingerprint: str, attempt: int, properties: Properties
) -> tuple[Any, dict[str, Any], dict[str, Any]]:
    from ase.calculators.singlepoint import SinglePointCalculator
    from ase.db.row import AtomsRow
    from pymatgen.io.ase import AseAtomsAdaptor

    atoms = AseAtomsAdaptor.get_atoms(structure, msonable=False)
    atoms.info = {}
    if properties.total_energy_ry is not None:  # so that ASE's own tools show an energy
        energy = properties.total_energy_ry * RY_TO_EV
        atoms.calc = SinglePointCalculator(atoms, energy=energy)
    row = AtomsRow(atoms)
    digest = hashlib.sha256(f"{crystal}\n{fingerprint}\n{attempt}".encode())
    row.unique_id = digest.hexdigest()[:32]
    row.ctime = _now()
    row.user = ""
    shown = {
        "status": str(properties.status),
        "total_energy_ry": properties.total_energy_ry,
        "band_gap_ev": properties.band_gap_ev,
        "formation_energy_ev_per_atom": properties.formation_energy_ev_per_atom,
        "wall_s": properties.wall_s,
    }
    data = {
        "crystal": crystal,
        "fingerprint": fingerprint,
        "attempt": attempt,
        "properties": {
            **shown,
            "provenance": properties.provenance,
            "details": dict(properties.details),
        },
    }
    return row, {name: value for name, value in shown.items() if value is not None}, data


def _now() -> float:
    from ase.db.core import now

    return float(now())


def _read_row(row: Any) -> StoredResult | None:
    """Return the result in a row, None for a row that is not ours."""
    data = row.data
    if not isinstance(data, dict) or "fingerprint" not in data or "crystal" not in data:
        return None
    values = dict(data["properties"])
    values["status"] = Status(values["status"])
    return StoredResult(
        crystal=data["crystal"],
        fingerprint=data["fingerprint"],
        attempt=int(data["attempt"]),
        properties=Properties(**values),
        row_id=row.id,
    )


class CachedOracle:
    """An oracle that remembers: what is in the database is answered from there.

    A failure that would happen again is remembered like a result; one that may pass (a time
    limit, a signal, a full disk) is tried again, up to ``max_attempts`` times in all.

    Args:
        oracle: What calculates: :class:`EspressoOracle`, or any :class:`Cacheable` oracle.
        database: A file ending in ``.db`` or a ``postgresql://`` address; defaults to
            ``calculations.db`` in the user's cache.
        max_attempts: Attempts in all at a calculation that fails in a passing way.

    Raises:
        TypeError: If the oracle does not say what its answers depend on.
    """

    def __init__(
        self,
        oracle: Cacheable,
        database: Path | str | ResultStore | None = None,
        *,
        max_attempts: int = 3,
    ) -> None:
        if not isinstance(oracle, Cacheable):
            raise TypeError(
                f"{type(oracle).__name__} cannot be cached: expected an oracle with fingerprint() "
                "and derive() beside evaluate(), so that answers of different settings are kept "
                "apart"
            )
        if max_attempts < 1:
            raise ValueError(f"max_attempts={max_attempts}: expected at least 1")
        self.oracle = oracle
        self.max_attempts = max_attempts
        if not isinstance(database, ResultStore):
            database = ResultStore(default_database() if database is None else database)
        self.store = database
        self._start()

    def _start(self) -> None:
        self._fingerprints: dict[frozenset[str], str] = {}
        self._keys: dict[tuple[str, bytes], str] = {}
        self._answers: dict[tuple[str, bytes], Properties] = {}
        self._unsaved: list[tuple[Structure, str, str, Properties]] = []

    def __getstate__(self) -> dict[str, Any]:
        """What it has looked up stays with the process that did."""
        names = "oracle", "max_attempts", "store"
        return {name: getattr(self, name) for name in names}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Start with nothing looked up."""
        self.__dict__.update(state)
        self._start()

    def __repr__(self) -> str:
        return f"CachedOracle({self.oracle!r}, {self.store!r})"

    def evaluate(self, structures: Sequence[Structure]) -> list[Properties]:
        """Return the properties of each structure, calculating what is not known."""
        return [self._evaluate(structure, self._key(structure)) for structure in structures]

    def evaluate_fillings(self, fillings: Sequence[Filling]) -> list[Properties]:
        """Return the properties of each filling; known ones without making a Structure."""
        results = []
        for skeleton, tokens in fillings:
            name = skeleton.key, skeleton.canonical_tokens(tokens)
            answer = self._answers.get(name)
            if answer is None:
                answer = self._evaluate_filling(skeleton, tokens, name)
            results.append(answer)
        return results

    def known(self, structure: Structure) -> Properties | None:
        """Return the stored answer that holds for a structure, None if it is to be calculated."""
        crystal = self._key(structure)
        if crystal is None:
            return None
        return self._look_up(crystal, _species(structure))

    def _evaluate_filling(
        self, skeleton: Skeleton, tokens: Any, name: tuple[str, bytes]
    ) -> Properties:
        crystal = self._keys.get(name)
        if crystal is None:
            crystal = cell_key(skeleton.lattice, skeleton.frac_coords, np.asarray(tokens))
            self._keys[name] = crystal
        species = [str(s) for s in tokens_to_symbols(tokens)]
        answer = self._look_up(crystal, species)
        if answer is None:
            answer = self._evaluate(skeleton.structure(tokens), crystal)
        if answer.status.is_final:
            self._answers[name] = answer
        return answer

    def _evaluate(self, structure: Structure, crystal: str | None) -> Properties:
        if crystal is None:  # no usable crystal: the oracle says why, and there is nothing to keep
            return self.oracle.evaluate([structure])[0]
        species = _species(structure)
        answer = self._look_up(crystal, species)
        if answer is not None:
            return answer
        self.store.refresh()  # another process may have calculated it meanwhile
        answer = self._look_up(crystal, species)
        if answer is not None:
            return answer
        (properties,) = self.oracle.evaluate([structure])
        if properties.status in (Status.CONFIGURATION, Status.UNKNOWN):
            return properties  # says nothing about the crystal
        return self._keep(structure, crystal, self._fingerprint(species), properties)

    def _keep(
        self, structure: Structure, crystal: str, fingerprint: str, properties: Properties
    ) -> Properties:
        self._unsaved.append((structure, crystal, fingerprint, properties))
        kept = properties
        try:
            while self._unsaved:
                kept = self.store.put(*self._unsaved[0])
                self._unsaved.pop(0)
        except OSError as error:
            warnings.warn(
                f"{error} ({len(self._unsaved)} results are kept in memory until it can be "
                "written)",
                stacklevel=2,
            )
            return properties
        return kept

    def _look_up(self, crystal: str, species: Sequence[str]) -> Properties | None:
        found = self.store.get(crystal, self._fingerprint(species))
        if found is None:
            return None
        final = found.properties.status.is_final or found.attempt + 1 >= self.max_attempts
        if not final:
            return None
        answer = self.oracle.derive(found.properties, species)
        return replace(answer, provenance=f"{answer.provenance} (stored)")

    def _fingerprint(self, species: Sequence[str]) -> str:
        elements = frozenset(species)
        found = self._fingerprints.get(elements)
        if found is None:
            found = self._fingerprints[elements] = self.oracle.fingerprint(elements)
        return found

    def _key(self, structure: Structure) -> str | None:
        try:
            return structure_key(structure)
        except ValueError:
            return None


def _species(structure: Structure) -> list[str]:
    return [getattr(site.specie, "symbol", str(site.specie)) for site in structure]
