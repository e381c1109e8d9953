"""Results that are never calculated twice: an ASE database behind any oracle.

The database is SQLite (a file ending in ``.db``) or PostgreSQL (``postgresql://...``), and ASE's
own tools read it: ``ase db results.db``. Rows are only ever added. The ``unique_id`` of a row is a
hash of the crystal (in whatever cell it is written), of what the result depends on besides (the
oracle's fingerprint), and of the number of the attempt. Whoever adds a row looks first, in the same
transaction and with every other writer locked out, so there is one row for one attempt even where
two processes finish at once.
"""

from __future__ import annotations

import atexit
import hashlib
import re
import sqlite3
import tempfile
import threading
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.db import connect
from ase.db.core import now
from ase.db.row import AtomsRow

from crystal_gym.crystal_key import cell_key, structure_key
from crystal_gym.elements import tokens_to_symbols
from crystal_gym.extras import require_extra
from crystal_gym.files import cache_dir
from crystal_gym.oracles.base import Filling, Properties, Status
from crystal_gym.oracles.references import RY_TO_EV
from crystal_gym.structures import site_symbols, to_structure

if TYPE_CHECKING:
    from pymatgen.core import Structure

    from crystal_gym.skeletons import Skeleton

__all__ = ["Cacheable", "CachedOracle", "ResultStore", "StoredResult", "default_database"]

_LOCK_KEY = 5_427_016  # of the advisory lock under which PostgreSQL's tables are made
_SAID_OF_A_SERVER = ("connection ", "could not connect", "server closed", "terminating")
_MAX_KEYS = 200_000  # names of crystals kept in memory, 0.2 kB each


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
        row_id: Number of the row, 0 while it could not be written yet.
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
    """Results in an ASE database, for several processes and threads at once.

    Args:
        database: A path ending in ``.db``, or a ``postgresql://`` address.

    Raises:
        ValueError: If the file is no ASE database or has another ending.
        ConnectionError: If the address does not answer, or refuses.
        ImportError: If PostgreSQL is asked for and its packages are missing.
        OSError: If the file cannot be read, or there is none and its folder cannot be written.
    """

    def __init__(self, database: Path | str) -> None:
        self.address = str(database)
        self.is_file = not self.address.startswith(("postgresql://", "postgres://"))
        if self.is_file:
            path = Path(self.address).expanduser().absolute()
            if path.suffix != ".db":
                raise ValueError(
                    f"database {self.name!r} is not understood: expected a file ending in .db, or "
                    "postgresql://user:password@host:port/name"
                )
            self.address = str(path)
        self._seen = 0  # number of the last row that was read
        self._latest: dict[tuple[str, str], StoredResult] = {}
        self._waiting: list[tuple[Structure, str, str, Properties]] = []
        self._unwritten: dict[tuple[str, str], StoredResult] = {}
        self._mutex = threading.RLock()
        if self.is_file and not Path(self.address).exists():
            self._try_folder()
        self.refresh()

    @classmethod
    def existing(cls, database: Path | str) -> ResultStore:
        """Open a database that is there already.

        Args:
            database: A file, or an address of PostgreSQL.

        Returns:
            The store, opened.

        Raises:
            FileNotFoundError: If it is a file and is not there; nothing is made.
        """
        if "://" not in str(database) and not Path(database).expanduser().exists():
            raise FileNotFoundError(
                f"{database} does not exist: expected a database of results, such as the --cache "
                "of `crystal-gym label`"
            )
        return cls(database)

    @property
    def name(self) -> str:
        """The address as it may be shown, without a password."""
        return _without_password(self.address)

    def _try_folder(self) -> None:
        """Find out before the first calculation that its result could not be written."""
        folder = Path(self.address).parent
        with self._clear_errors():
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        """Only the address travels to another process, which opens it once."""
        return _opened_once, (self.address,)

    def __repr__(self) -> str:
        return f"ResultStore({len(self._latest)} results in {self.name})"

    def __len__(self) -> int:
        return len(self._latest)

    def get(self, crystal: str, fingerprint: str) -> StoredResult | None:
        """Return the latest result as far as this process has seen; see :meth:`refresh`."""
        key = crystal, fingerprint
        return self._unwritten.get(key) or self._latest.get(key)

    def refresh(self) -> None:
        """Read what other processes have added.

        Raises:
            OSError: If it cannot be read now.
            ValueError: If it is no ASE database (any more).
        """
        if self.is_file and not Path(self.address).exists():
            return
        with self._mutex, self._transaction() as database:
            self._read_new(database)

    def put(
        self, structure: Structure, crystal: str, fingerprint: str, properties: Properties
    ) -> Properties:
        """Add a result, and return the one that holds.

        That is the given one, unless another process was faster with a final result. A result that
        cannot be written now is kept in memory, with a warning that says why, and tried again with
        the next one and when the program ends.
        """
        key = crystal, fingerprint
        with self._mutex:
            self._waiting.append((structure, crystal, fingerprint, properties))
            if not self.flush():
                attempt = _next_attempt(self.get(*key))
                self._unwritten[key] = StoredResult(crystal, fingerprint, attempt, properties, 0)
                atexit.unregister(self.flush)
                atexit.register(self.flush)
            held = self.get(*key)
        return properties if held is None else held.properties

    def flush(self) -> bool:
        """Write the results that could not be written before, and return whether none is left."""
        with self._mutex:
            try:
                while self._waiting:
                    self._add(*self._waiting[0])
                    _, crystal, fingerprint, _ = self._waiting.pop(0)
                    self._unwritten.pop((crystal, fingerprint), None)
            except (OSError, ValueError) as error:
                count = len(self._waiting)
                warnings.warn(
                    f"{error} ({count} {'result is' if count == 1 else 'results are'} kept in "
                    "memory and written as soon as that is possible)",
                    stacklevel=2,
                )
        return not self._waiting

    def rows(self) -> Iterator[tuple[StoredResult, Any]]:
        """Yield the latest result of every crystal with its ASE Atoms, in the order of storing."""
        self.refresh()
        latest = {result.row_id for result in self._latest.values()}
        if not latest:
            return
        with self._transaction() as database:
            rows = list(database.select(sort="id"))
        for row in rows:
            if row.id in latest:
                found = _read_row(row)
                if found is not None:
                    yield found, row.toatoms()

    # -- the database ----------------------------------------------------------------------------

    def _read_new(self, database: Any) -> None:
        if not self._has_tables(database):
            return
        for row in database.select(f"id>{self._seen}"):
            self._seen = max(self._seen, row.id)
            found = _read_row(row)
            if found is not None:
                self._remember(found)

    def _remember(self, found: StoredResult) -> None:
        key = found.crystal, found.fingerprint
        known = self._latest.get(key)
        if known is None or known.attempt < found.attempt:
            self._latest[key] = found

    def _add(
        self, structure: Structure, crystal: str, fingerprint: str, properties: Properties
    ) -> None:
        with self._transaction() as database:
            self._lock_writers(database)
            self._read_new(database)
            known = self._latest.get((crystal, fingerprint))
            if known is not None and known.properties.status.is_final:
                return
            attempt = _next_attempt(known)
            # A row that could not be read (damaged, or of a later version) has its number, too.
            while any(database.select(unique_id=_unique_id(crystal, fingerprint, attempt))):
                attempt += 1
            row, values, data = _write_row(structure, crystal, fingerprint, attempt, properties)
            number = database.write(row, data=data, **values)
        self._remember(StoredResult(crystal, fingerprint, attempt, properties, number))

    @contextmanager
    def _transaction(self) -> Iterator[Any]:
        """Give the ASE database with a connection of its own; all that is written, or nothing."""
        with self._clear_errors():
            database = self._connect()
            try:
                with database:
                    if not self.is_file:  # what ase-db-backends' wrapper of it lacks
                        database.connection.rollback = database.connection.con.rollback
                    yield database
            finally:
                if database.connection is not None:  # the transaction could not even be ended
                    database.connection.close()

    def _connect(self) -> Any:
        if not self.is_file:
            require_extra("postgresql", "a database on a PostgreSQL server")
        # ASE's own lock file outlives a killed process; the database's locks do not.
        return connect(self.address, use_lock_file=False)

    def _has_tables(self, database: Any) -> bool:
        """Return whether a database is ASE's; False for an empty one, which may become one.

        ASE would make its tables in whatever it opens, for a reader as well, and without a lock.
        """
        cursor = database.connection.cursor()
        if not self.is_file:
            cursor.execute("SELECT to_regclass('systems') IS NOT NULL")
            return bool(cursor.fetchone()[0])
        cursor.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
        names = sorted(name for (name,) in cursor.fetchall())
        if names and "systems" not in names:
            raise ValueError(
                f"{self.address} is no ASE database but holds other tables "
                f"({', '.join(names[:3])}): expected results, or a new name"
            )
        return bool(names)

    def _lock_writers(self, database: Any) -> None:
        """Let no one else write until the transaction ends, and make a new database's tables."""
        connection = database.connection
        if self.is_file:
            connection.execute("BEGIN IMMEDIATE")
            self._has_tables(database)
            with database.managed_connection():  # makes the tables, and then commits
                pass
            if not connection.in_transaction:
                connection.execute("BEGIN IMMEDIATE")
            return
        cursor = connection.cursor()
        cursor.execute("SELECT pg_advisory_xact_lock(?)", (_LOCK_KEY,))
        with database.managed_connection():
            pass
        # ASE asks the sequence for the number of the row it has just added, which is another's
        # where two add at once. This keeps out those who write with ASE's own tools as well.
        cursor.execute("LOCK TABLE systems IN SHARE ROW EXCLUSIVE MODE")

    @contextmanager
    def _clear_errors(self) -> Iterator[None]:
        """Turn what the database says into errors that say what to do."""
        where = self.name
        try:
            yield
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
        except ConnectionError:
            raise
        except OSError as error:
            raise OSError(
                f"{where} cannot be read or written ({error.strerror or error}): make room or "
                "check its permissions; what it holds is unchanged"
            ) from error
        except Exception as error:
            if type(error).__module__.split(".")[0] != "psycopg2":
                raise
            said = str(error).strip().splitlines() or [type(error).__name__]
            # Where no server was reached, libpq may quote a password that it took for a host.
            reached = getattr(error, "pgcode", None) or said[0].startswith(_SAID_OF_A_SERVER)
            reason = said[0] if reached else "it is not understood, or its host is not known"
            raise ConnectionError(
                f"{where} cannot be used ({reason}): check address, user and password and that the "
                "server runs; nothing is lost"
            ) from error


@lru_cache(maxsize=8)
def _opened_once(address: str) -> ResultStore:
    return ResultStore(address)


def _without_password(address: str) -> str:
    scheme, separator, rest = address.partition("://")
    if not separator:
        return address
    user, at, host = re.sub(r"password=[^&]*", "password=***", rest).rpartition("@")
    return f"{scheme}://{user.split(':')[0]}{at}{host}"


def _next_attempt(known: StoredResult | None) -> int:
    return 0 if known is None else known.attempt + 1


def _unique_id(crystal: str, fingerprint: str, attempt: int) -> str:
    digest = hashlib.sha256(f"{crystal}\n{fingerprint}\n{attempt}".encode())
    return digest.hexdigest()[:32]


def _write_row(
    structure: Structure, crystal: str, fingerprint: str, attempt: int, properties: Properties
) -> tuple[Any, dict[str, Any], dict[str, Any]]:
    # Elements and places alone: charges and moments that a structure carries were not calculated.
    atoms = Atoms(
        site_symbols(structure),
        positions=structure.cart_coords,
        cell=structure.lattice.matrix,
        pbc=True,
    )
    if properties.total_energy_ry is not None:  # so that ASE's own tools show an energy
        energy = properties.total_energy_ry * RY_TO_EV
        atoms.calc = SinglePointCalculator(atoms, energy=energy)
    row: Any = AtomsRow(atoms)
    row.unique_id = _unique_id(crystal, fingerprint, attempt)
    row.ctime = float(now())
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


def _read_row(row: Any) -> StoredResult | None:
    """Return the result in a row, None for a row that is not ours or not readable."""
    try:
        data = row.data
        values = dict(data["properties"])
        values["status"] = Status(values["status"])
        return StoredResult(
            crystal=str(data["crystal"]),
            fingerprint=str(data["fingerprint"]),
            attempt=int(data["attempt"]),
            properties=Properties(**values),
            row_id=row.id,
        )
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
        return None  # others may have put there whatever ASE can encode


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
        if not isinstance(oracle, Cacheable) or isinstance(oracle, type):
            name = oracle.__name__ if isinstance(oracle, type) else type(oracle).__name__
            raise TypeError(
                f"{name} cannot be cached: expected an oracle with fingerprint() and derive() "
                "beside evaluate(), so that answers of different settings are kept apart"
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
        self._keys: dict[tuple[Any, ...], str] = {}

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
        return [self._evaluate(structure) for structure in structures]

    def evaluate_fillings(self, fillings: Sequence[Filling]) -> list[Properties]:
        """Return the properties of each filling; known ones without making a Structure."""
        return [self._evaluate_filling(skeleton, tokens) for skeleton, tokens in fillings]

    def known(self, structure: Structure) -> Properties | None:
        """Return the stored answer that holds for a structure, None if it is to be calculated."""
        structure = to_structure(structure)
        crystal = self.crystal(structure)
        return None if crystal is None else self._look_up(crystal, site_symbols(structure))

    def crystal(self, structure: Structure) -> str | None:
        """Return the name under which a structure is stored, None if it is no usable crystal."""
        # Niggli reduction takes milliseconds, and environments and sweeps ask the same again.
        name = (
            structure.lattice.matrix.tobytes(),
            structure.frac_coords.tobytes(),
            *(site.species_string for site in structure),
        )
        try:
            return self._keys.get(name) or self._named(name, structure_key(structure))
        except ValueError:
            return None

    def remember(self, structure: Structure, properties: Properties) -> None:
        """Store a result that another process calculated, where that process could not."""
        structure = to_structure(structure)
        species = site_symbols(structure)
        crystal, fingerprint = self.crystal(structure), self._fingerprint(species)
        if crystal is None or fingerprint is None or not _is_of_the_crystal(properties):
            return
        self._refresh()
        held = self.store.get(crystal, fingerprint)
        # An attempt that failed in a passing way may be the one before, or this one, stored there.
        if self._look_up(crystal, species) is None and (
            held is None or held.properties != properties
        ):
            self.store.put(structure, crystal, fingerprint, properties)

    def _evaluate_filling(self, skeleton: Skeleton, tokens: Any) -> Properties:
        name = skeleton.key, skeleton.canonical_tokens(tokens)
        crystal = self._keys.get(name)
        if crystal is None:
            tokens = np.asarray(tokens)
            crystal = cell_key(skeleton.lattice, skeleton.frac_coords, tokens)
            self._named(name, crystal)
        answer = self._look_up(crystal, [str(symbol) for symbol in tokens_to_symbols(tokens)])
        return answer or self._calculate(skeleton.structure(tokens), crystal)

    def _evaluate(self, structure: Structure) -> Properties:
        structure = to_structure(structure)
        crystal = self.crystal(structure)
        if crystal is None:  # the oracle says why, and there is nothing to keep
            return self.oracle.evaluate([structure])[0]
        answer = self._look_up(crystal, site_symbols(structure))
        return answer or self._calculate(structure, crystal)

    def _calculate(self, structure: Structure, crystal: str) -> Properties:
        species = site_symbols(structure)
        self._fingerprints.pop(frozenset(species), None)  # a file may have changed meanwhile
        fingerprint = self._fingerprint(species)
        if fingerprint is None:
            return self.oracle.evaluate([structure])[0]
        self._refresh()
        answer = self._look_up(crystal, species)
        if answer is not None:  # another process has calculated it
            return answer
        (properties,) = self.oracle.evaluate([structure])
        if not _is_of_the_crystal(properties):
            return properties
        held = self.store.put(structure, crystal, fingerprint, properties)
        return properties if held is properties else self._derived(held, species)

    def _look_up(self, crystal: str, species: Sequence[str]) -> Properties | None:
        fingerprint = self._fingerprint(species)
        found = None if fingerprint is None else self.store.get(crystal, fingerprint)
        if found is None:
            return None
        if not found.properties.status.is_final and found.attempt + 1 < self.max_attempts:
            return None
        return self._derived(found.properties, species)

    def _derived(self, properties: Properties, species: Sequence[str]) -> Properties:
        answer = self.oracle.derive(properties, species)
        return replace(answer, provenance=f"{answer.provenance} (stored)")

    def _fingerprint(self, species: Sequence[str]) -> str | None:
        """Return the oracle's fingerprint, None where it has none (a file that is damaged)."""
        elements = frozenset(species)
        found = self._fingerprints.get(elements)
        if found is None:
            try:
                found = self._fingerprints[elements] = self.oracle.fingerprint(elements)
            except ValueError:
                return None
        return found

    def _refresh(self) -> None:
        try:
            self.store.refresh()
        except (OSError, ValueError) as error:
            warnings.warn(f"{error} (what it holds is not known here)", stacklevel=2)

    def _named(self, name: tuple[Any, ...], crystal: str) -> str:
        if len(self._keys) >= _MAX_KEYS:
            self._keys.clear()
        self._keys[name] = crystal
        return crystal


def _is_of_the_crystal(properties: Properties) -> bool:
    """Return whether a result says something of the crystal, not of the program or the table."""
    return properties.status not in (Status.CONFIGURATION, Status.UNKNOWN)
