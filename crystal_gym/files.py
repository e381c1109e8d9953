"""Files and folders: where things are kept, and writes that happen whole or not at all."""

from __future__ import annotations

import contextlib
import glob
import hashlib
import os
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from platformdirs import user_cache_path

try:
    import fcntl
except ImportError:  # Windows: what a killed process leaves stays
    fcntl = None  # type: ignore[assignment]

__all__ = [
    "DAMAGED_NPZ",
    "atomic_path",
    "cache_dir",
    "open_npz",
    "raw_data_dir",
    "save_npz",
    "sha256_of",
]


DAMAGED_NPZ = (KeyError, EOFError, OSError, ValueError, zipfile.BadZipFile, zlib.error)
"""What reading a truncated or altered ``.npz`` file raises."""


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


@contextmanager
def open_npz(path: Path | str) -> Iterator[Mapping[str, NDArray[Any]]]:
    """Give the arrays of an ``.npz`` file; pickled ones are refused.

    NumPy leaves the file open when the archive turns out to be damaged, so it is opened here.
    """
    with open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
        yield arrays


def save_npz(path: Path | str, **arrays: ArrayLike) -> None:
    """Write arrays to a compressed ``.npz`` file, whole or not at all."""
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]


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


def sha256_of(path: Path | str) -> str:
    """Return the SHA-256 of a file as hex digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
