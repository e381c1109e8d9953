"""Files and folders: where they are, reading strangers' with limits, writing whole or not at all.

Whatever a user was given passes through :func:`open_file`, :func:`read_json` or :func:`open_npz`:
each says how much it may hold, expanded, so that neither a pipe nor a few compressed kilobytes can
hang a program or fill its memory.
"""

from __future__ import annotations

import contextlib
import glob
import gzip
import hashlib
import io
import json
import os
import pickle  # its error alone: nothing here loads one
import re
import stat
import struct
import tempfile
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray
from platformdirs import user_cache_path

try:
    import fcntl
except ImportError:  # Windows: what a killed process leaves stays
    fcntl = None  # type: ignore[assignment]

__all__ = [
    "DAMAGED_GZIP",
    "DAMAGED_NPZ",
    "DAMAGED_TENSORS",
    "Bounded",
    "Pieces",
    "atomic_path",
    "cache_dir",
    "first_line",
    "open_file",
    "open_npz",
    "raw_data_dir",
    "read_json",
    "read_text",
    "require_plain_zip",
    "require_writable",
    "room_for",
    "safe_name",
    "save_npz",
    "sha256_of",
]


DAMAGED_GZIP = (EOFError, gzip.BadGzipFile, zlib.error)
"""What reading a truncated or altered ``.gz`` file raises."""

DAMAGED_NPZ = (
    EOFError,
    LookupError,
    NotImplementedError,  # a compression that zipfile does not know
    OSError,
    RuntimeError,  # a password
    SyntaxError,  # numpy reads an array's type as Python literals
    TypeError,  # an array where one number should be
    ValueError,
    tokenize.TokenError,
    zipfile.BadZipFile,
    zlib.error,
)
"""What reading a truncated or altered ``.npz`` file raises."""

DAMAGED_TENSORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,  # a length that is none
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    pickle.UnpicklingError,
    struct.error,
)
"""What ``torch.load(weights_only=True)`` raises on a truncated or altered file: it checks what may
be called, and trusts that the rest is in order."""

_MOST_MEMBERS = 10_000
_MOST_ARRAY_BYTES = 2_000_000_000
"""Of all arrays of an ``.npz`` file; those of MP-20 take 0.1 GB."""

_MOST_JSON = 50_000_000
_LONGEST_NAME = 100
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)


def cache_dir() -> Path:
    """Return the folder for downloads and graphs: ``$CRYSTAL_GYM_CACHE`` or the user's cache."""
    chosen = os.environ.get("CRYSTAL_GYM_CACHE")
    return Path(chosen) if chosen else user_cache_path("crystal_gym")


def raw_data_dir() -> Path:
    """Return the folder of the source files (``mp20/``, ``qe/``).

    ``$CRYSTAL_GYM_DATA`` where it is set, else where ``crystal-gym data fetch`` puts them.
    """
    chosen = os.environ.get("CRYSTAL_GYM_DATA")
    return Path(chosen) if chosen else cache_dir() / "raw"


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


class Bounded(io.RawIOBase):
    """A stream of bytes that ends in an error once it has given too many.

    Args:
        stream: What to read from; it is closed with this one.
        name: What to call it in the error.
        at_most: Bytes.
    """

    def __init__(self, stream: IO[bytes], name: Path | str, at_most: int) -> None:
        self._stream, self._name, self._at_most = stream, name, at_most
        self._given = 0

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read the next bytes.

        Args:
            buffer: Written over from its start; its length is the most that is read at once.

        Returns:
            How many bytes were read; 0 at the end of the stream.

        Raises:
            ValueError: If they are more than were allowed.
        """
        data = self._stream.read(len(buffer))
        buffer[: len(data)] = data
        self._given += len(data)
        if self._given > self._at_most:
            raise ValueError(
                f"{self._name} holds more than {self._at_most:,} bytes: expected at most that many"
            )
        return len(data)

    def close(self) -> None:
        """Close both streams."""
        self._stream.close()
        super().close()


@contextmanager
def open_file(path: Path | str, at_most: int) -> Iterator[io.BufferedReader[Any]]:
    """Open a regular file for reading; one that is gzipped, or ends in ``.gz``, is expanded.

    Args:
        path: The file.
        at_most: Bytes it may hold, expanded.

    Yields:
        A buffered stream of its bytes, expanded, which the end of the block closes.

    Raises:
        FileNotFoundError: If it is not there.
        ValueError: If it is a folder, a pipe or a device, which may never end; while reading, if
            it holds more.
    """
    if not stat.S_ISREG(os.stat(path).st_mode):
        kind = "a folder" if Path(path).is_dir() else "no regular file"
        raise ValueError(f"{path} is {kind}: expected a file; name one")
    with open(path, "rb") as file:
        zipped = file.read(2) == b"\x1f\x8b" or str(path).lower().endswith(".gz")
    stream = cast("IO[bytes]", gzip.open(path, "rb") if zipped else open(path, "rb"))
    with io.BufferedReader(Bounded(stream, path, at_most)) as bounded:
        yield bounded


def read_text(path: Path | str, at_most: int, errors: str = "strict") -> str:
    """Return the text of a file in UTF-8, expanded if it is gzipped.

    Args:
        path: The file.
        at_most: Bytes it may hold, expanded.
        errors: What to do about bytes that are no UTF-8, as for :meth:`bytes.decode`.

    Returns:
        All of it, line ends as they are.

    Raises:
        FileNotFoundError: If it is not there.
        ValueError: If it is no regular file, holds more than ``at_most`` bytes, is a damaged
            ``.gz``, or no UTF-8 and ``errors`` is ``"strict"``.
    """
    try:
        with open_file(path, at_most) as file:
            return file.read().decode("utf-8", errors)
    except DAMAGED_GZIP as error:
        raise ValueError(
            f"{path} is damaged ({first_line(error)}): expected a complete .gz file"
        ) from error


def first_line(error: BaseException) -> str:
    """Return what a parser says, cut to where it begins to quote the file that it failed on."""
    text = str(error).strip().splitlines()
    return (text[0] if text else type(error).__name__)[:300]


def read_json(path: Path | str, at_most: int = _MOST_JSON) -> Any:
    """Return what a JSON file holds.

    Args:
        path: The file, plain or gzipped.
        at_most: Bytes it may hold, expanded.

    Returns:
        Dicts, lists, strings, numbers, booleans and None.

    Raises:
        FileNotFoundError: If it is not there.
        ValueError: If it is no JSON, nested too deeply or too large.
    """
    try:
        return json.loads(read_text(path, at_most))
    except RecursionError as error:
        raise ValueError(f"{path} is nested too deeply: expected plain JSON") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{path} is damaged or no JSON ({error}): expected the file as it was written; copy or "
            "make it again"
        ) from error


def require_plain_zip(path: Path | str, at_most: int = _MOST_ARRAY_BYTES) -> None:
    """Refuse what is no zip archive, or one that expands to too much.

    Args:
        path: The file.
        at_most: Bytes that all its members together may take, expanded.

    Raises:
        FileNotFoundError: If it is not there.
        ValueError: If it is no zip archive, has too many members, or they hold too much.
    """
    with open_file(path, at_most) as file:
        if file.read(2) != b"PK":
            raise ValueError(
                f"{path} is no zip archive but perhaps a pickle, which could run code, and was not "
                "read"
            )
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, OSError) as error:
        raise ValueError(f"{path} is a damaged zip archive ({first_line(error)})") from error
    total = sum(member.file_size for member in members)  # zipfile reads no more than announced
    if len(members) > _MOST_MEMBERS or total > at_most:
        raise ValueError(
            f"{path} holds {len(members):,} arrays of {total:,} bytes in all: expected at most "
            f"{_MOST_MEMBERS:,} of {at_most:,} bytes"
        )


_MAPPED_FROM = 32_000_000
"""Bytes. Smaller files are compressed and read into memory; of larger ones only what is used is."""

_ALIGNMENT = 64  # of arrays in a file, as NumPy's own .npy files have it
_LOCAL_HEADER = struct.Struct("<26xHH")  # of a zip member: lengths of its name and extra field
_ZIP64_EXTRA = 20
_PADDING = 0xC9A1  # kind of an extra field that no program knows, so that all skip it


@dataclass(frozen=True)
class Pieces:
    """An array in pieces that lie end to end, so that it need not be in memory at once.

    Attributes:
        shape: Of the whole.
        dtype: Of the whole.
        parts: Gives the pieces, in the order of the array's memory (C).
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    parts: Callable[[], Iterable[NDArray[Any]]]

    @classmethod
    def of(cls, array: ArrayLike) -> Pieces:
        """Return an array as its only piece."""
        whole = np.asarray(array, order="C")
        return cls(whole.shape, whole.dtype, lambda: [whole])

    @property
    def nbytes(self) -> int:
        """Bytes of the whole."""
        return int(np.prod(self.shape)) * self.dtype.itemsize

    def whole(self) -> NDArray[Any]:
        """Return the array."""
        flat = [np.asarray(p, self.dtype).reshape(-1) for p in self.parts()]
        return np.concatenate([np.empty(0, self.dtype), *flat]).reshape(self.shape)


class _Arrays(Mapping[str, NDArray[Any]]):
    """Arrays of an ``.npz`` file: read when asked for, or mapped where they lie as in memory."""

    def __init__(self, path: Path | str, file: IO[bytes], npz: Any) -> None:
        self._path, self._file, self._npz = path, file, npz

    def __iter__(self) -> Iterator[str]:
        return iter(self._npz.files)

    def __len__(self) -> int:
        return len(self._npz.files)

    def __getitem__(self, name: str) -> NDArray[Any]:
        if name not in self._npz.files:
            raise KeyError(f"it holds no array {name!r}")
        place = self._place(name)
        if place is None:
            array: NDArray[Any] = self._npz[name]
            return array
        offset, shape, dtype = place
        with self._npz.zip.open(f"{name}.npy") as member:
            while member.read(1 << 20):  # the last read finds out whether a byte has changed
                pass
        # Pages that are not written to stay the file's: the kernel drops them as it needs to.
        mapped = np.memmap(self._path, dtype, "c", offset, shape)
        return mapped.view(np.ndarray)

    def _place(self, name: str) -> tuple[int, tuple[int, ...], np.dtype[Any]] | None:
        """Return where an array lies in the file; None if it cannot be mapped from there."""
        info = self._npz.zip.getinfo(f"{name}.npy")
        if info.compress_type != zipfile.ZIP_STORED:
            return None
        with self._npz.zip.open(info) as member:
            version = np.lib.format.read_magic(member)
            if version != (1, 0):
                return None
            shape, fortran, dtype = np.lib.format.read_array_header_1_0(member)
            header = member.tell()
        self._file.seek(info.header_offset)
        lengths = _LOCAL_HEADER.unpack(self._file.read(_LOCAL_HEADER.size))
        offset = info.header_offset + _LOCAL_HEADER.size + sum(lengths) + header
        usable = offset % _ALIGNMENT == 0 and not fortran and not dtype.hasobject
        return (offset, shape, dtype) if usable and np.prod(shape) > 0 else None


@contextmanager
def open_npz(path: Path | str) -> Iterator[Mapping[str, NDArray[Any]]]:
    """Give the arrays of an ``.npz`` file; pickled ones are refused.

    Arrays of a large file are mapped: they take memory only where they are read, which the kernel
    takes back as it needs to, and processes share it. They stay usable after the block, and after
    the file has been replaced.

    Args:
        path: The file.

    Yields:
        Arrays by name, each read or mapped when it is asked for.

    Raises:
        FileNotFoundError: If it is not there.
        ValueError: If it is no ``.npz`` file, or its arrays take too much memory; while reading,
            also what :data:`DAMAGED_NPZ` lists.
    """
    # What expands to no more than the file itself is no bomb, however large.
    require_plain_zip(path, max(_MOST_ARRAY_BYTES, os.path.getsize(path)))
    # NumPy leaves the file open when the archive turns out to be damaged, so it is opened here.
    with open(path, "rb") as file, np.load(file, allow_pickle=False) as npz:
        for member in npz.zip.infolist():
            with npz.zip.open(member) as stream:
                _require_whole_array(cast("IO[bytes]", stream), member)
        yield _Arrays(path, file, npz)


def _require_whole_array(stream: IO[bytes], member: zipfile.ZipInfo) -> None:
    """Refuse an array that is not as large as it says: NumPy would make room for it first."""
    version = np.lib.format.read_magic(stream)
    if version == (1, 0):
        shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
    else:
        shape, _, dtype = np.lib.format.read_array_header_2_0(stream)
    if dtype.hasobject:
        raise ValueError(f"{member.filename} holds Python objects, which could run code")
    count = 1
    for length in shape:
        if length < 0:
            raise ValueError(f"{member.filename} has a negative length in its shape {shape}")
        count *= int(length)  # of Python's size: NumPy's product would run over
    if count * dtype.itemsize != member.file_size - stream.tell():
        raise ValueError(
            f"{member.filename} says that its shape is {shape}, but has {member.file_size:,} bytes"
        )


def save_npz(path: Path | str, **arrays: ArrayLike | Pieces) -> None:
    """Write arrays to an ``.npz`` file, whole or not at all.

    Together below 32 MB they are compressed; above, they lie in it as in memory, to be mapped.
    """
    columns = {n: a if isinstance(a, Pieces) else Pieces.of(a) for n, a in arrays.items()}
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        if sum(column.nbytes for column in columns.values()) < _MAPPED_FROM:
            whole = {n: column.whole() for n, column in columns.items()}
            np.savez_compressed(file, **whole)  # type: ignore[arg-type]
            return
        with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
            for name, column in columns.items():
                _store(archive, file, f"{name}.npy", column)


def room_for(shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
    """Return an array to be filled; a large one lies in a temporary file that goes with it.

    Args:
        shape: Of the array.
        dtype: Of its entries.

    Returns:
        An array with undefined values, in a file from 32 MB on.

    Raises:
        OSError: If there is no room for the file.
    """
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    if size < _MAPPED_FROM:
        return np.empty(shape, dtype)
    with tempfile.TemporaryFile(prefix="crystal-gym-") as file:
        if hasattr(os, "posix_fallocate"):  # else a full disk kills whoever writes to the array
            os.posix_fallocate(file.fileno(), 0, size)
        return np.memmap(file, dtype, "r+", 0, shape).view(np.ndarray)


def _store(archive: zipfile.ZipFile, file: IO[bytes], name: str, column: Pieces) -> None:
    """Append an array to an archive, aligned as in memory."""
    info = zipfile.ZipInfo(name)  # dated 1980: the same data give the same bytes
    before = file.tell() + _LOCAL_HEADER.size + len(name) + 4 + _ZIP64_EXTRA
    padding = -before % _ALIGNMENT
    info.extra = struct.pack("<HH", _PADDING, padding) + bytes(padding)
    with archive.open(info, "w", force_zip64=True) as member:
        header = {
            "descr": np.lib.format.dtype_to_descr(column.dtype),
            "fortran_order": False,
            "shape": column.shape,
        }
        np.lib.format.write_array_header_1_0(member, header)
        for piece in column.parts():
            flat = np.ascontiguousarray(piece, column.dtype).reshape(-1).view(np.uint8)
            for first in range(0, len(flat), 1 << 24):
                member.write(flat[first : first + (1 << 24)].data)


@contextmanager
def atomic_path(path: Path | str) -> Iterator[Path]:
    """Give a temporary path beside ``path`` that replaces it once the block has succeeded.

    The data are flushed to disk before the rename; after an error or a kill ``path`` is as it was,
    and what a killed process left beside it is removed by the next one that writes there.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(target)
    handle, temporary = _locked_temporary(target)
    try:
        os.chmod(temporary, 0o666 & ~_umask())  # it was made such that only its owner may read
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, target)
    finally:
        os.close(handle)
        temporary.unlink(missing_ok=True)


def require_writable(path: Path | str) -> None:
    """Fail now where :func:`atomic_path` would fail after hours of work.

    Args:
        path: Of a file to be written later; one that is there stays as it is.

    Raises:
        OSError: If no file can be written there.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.is_dir():
        raise IsADirectoryError(f"{path} is a folder: expected the name of a file")
    handle, temporary = _locked_temporary(target)
    os.close(handle)
    temporary.unlink()


def _locked_temporary(target: Path) -> tuple[int, Path]:
    """Make a file beside ``target`` whose lock shows, until its process ends, that it is in use."""
    while True:
        handle, name = tempfile.mkstemp(".part", f".{target.name}.", target.parent)
        if fcntl is None:
            return handle, Path(name)
        fcntl.flock(handle, fcntl.LOCK_EX)
        if os.path.exists(name):
            return handle, Path(name)
        os.close(handle)  # another process took it for abandoned before it was locked


def _remove_abandoned(target: Path) -> None:
    if fcntl is None:
        return
    for path in target.parent.glob(f".{glob.escape(target.name)}.*.part"):
        # Whoever writes there has the lock; a file that is gone or another's is not ours to remove.
        with contextlib.suppress(OSError), open(path, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()


def safe_name(text: str, otherwise: str = "unnamed") -> str:
    """Return a file name that resembles a text: an id may hold anything, a name may not.

    Letters of ASCII, digits and ``._-`` stay; at most 100 characters; never a dot or a dash first,
    and none of the names that Windows keeps for devices.
    """
    name = re.sub(r"[^A-Za-z0-9._-]+", "_", text)[:_LONGEST_NAME].strip("._-") or otherwise
    return f"{name}_" if _RESERVED.fullmatch(name) else name


def sha256_of(path: Path | str) -> str:
    """Return the SHA-256 of a file as hex digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
