"""Pseudopotential files: which element each is for, and whether it is the one that is meant."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import json
import lzma
import os
import re
import shutil
import tarfile
import tempfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib import resources
from pathlib import Path
from typing import IO, cast

from crystal_gym.elements import ELEMENTS
from crystal_gym.files import Bounded, atomic_path, cache_dir, first_line, open_file

__all__ = [
    "Pseudopotential",
    "Pseudopotentials",
    "default_folder",
    "install",
    "manifest",
]

_MAX_FILE_BYTES = 50_000_000
_MAX_FILES = 500
_MAX_BYTES = 1_000_000_000
"""Of all files, expanded; those of SSSP efficiency have a fifth of that."""


@dataclass(frozen=True)
class Pseudopotential:
    """One UPF file.

    Attributes:
        element: Symbol.
        file: Its name.
        md5: Of its content, as pw.x prints it.
        valence: Electrons per atom.
        ecutwfc_ry: Wave function cutoff that the file suggests, None where it does not.
        ecutrho_ry: Density cutoff that the file suggests, None where it does not.
    """

    element: str
    file: str
    md5: str
    valence: float
    ecutwfc_ry: float | None = None
    ecutrho_ry: float | None = None


@cache
def manifest() -> Mapping[str, Pseudopotential]:
    """Return the files that ``crystal-gym data fetch sssp`` expects, by element.

    SSSP efficiency (Prandini et al., npj Comput. Mater. 2018, 4, 72, doi
    10.1038/s41524-018-0127-2) with some older members, as used for the bundled calculations.
    """
    text = resources.files("crystal_gym.data").joinpath("pseudopotentials.json").read_text()
    return {entry["element"]: Pseudopotential(**entry) for entry in json.loads(text)["files"]}


def default_folder() -> Path:
    """Return where pseudopotentials are: ``$CRYSTAL_GYM_PSEUDO``, or where fetch puts them."""
    chosen = os.environ.get("CRYSTAL_GYM_PSEUDO")
    return Path(chosen) if chosen else cache_dir() / "pseudopotentials"


class Pseudopotentials(Mapping[str, Pseudopotential]):
    """The UPF files of a folder, by element.

    Args:
        folder: Defaults to :func:`default_folder`.

    Raises:
        FileNotFoundError: If the folder is missing or holds no UPF file.
        ValueError: If it holds two files for one element.
    """

    def __init__(self, folder: Path | str | None = None) -> None:
        self.folder = Path(folder) if folder is not None else default_folder()
        self._files = _by_element(self.folder)

    def __getitem__(self, element: str) -> Pseudopotential:
        """Return an element's file, read and hashed.

        Args:
            element: Symbol.

        Returns:
            With its MD5 and valence electrons.

        Raises:
            KeyError: If there is none.
            ValueError: If the file is unreadable or for another element.
        """
        path = self._files[element]
        try:
            stat = path.stat()
            return _read(path, element, stat.st_mtime_ns, stat.st_size)
        except OSError as error:
            raise ValueError(
                f"pseudopotential {path} cannot be read ({error.strerror}): fetch it again with "
                "`crystal-gym data fetch sssp`"
            ) from error

    def __contains__(self, element: object) -> bool:
        return element in self._files

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)

    def __repr__(self) -> str:
        return f"Pseudopotentials({len(self)} elements in {self.folder})"

    def differing(self) -> list[str]:
        """Return one sentence for every file that is not the manifest's."""
        found = []
        for element, expected in manifest().items():
            if element in self and self[element].md5 != expected.md5:
                ours = self[element]
                found.append(
                    f"{element}: {ours.file} (MD5 {ours.md5[:8]}...) is not {expected.file} "
                    f"(MD5 {expected.md5[:8]}...)"
                )
        return found

    def missing(self) -> list[str]:
        """Return the elements of the manifest without a file here."""
        return [element for element in manifest() if element not in self]


def _by_element(folder: Path) -> dict[str, Path]:
    paths = sorted(p for p in folder.iterdir() if _is_upf(p.name)) if folder.is_dir() else []
    if not paths:
        raise FileNotFoundError(
            f"there are no pseudopotentials in {folder}: expected UPF files such as those of SSSP "
            "efficiency; run `crystal-gym data fetch sssp` (--from ARCHIVE where you have one), or "
            "name their folder with CRYSTAL_GYM_PSEUDO"
        )
    files: dict[str, Path] = {}
    for path in paths:
        element = _element_of(path.name)
        if element not in ELEMENTS:
            continue
        if element in files:
            raise ValueError(
                f"{folder} holds two pseudopotentials for {element}, {files[element].name} and "
                f"{path.name}: expected one; remove the other"
            )
        files[element] = path
    return files


def _is_upf(name: str) -> bool:
    return name.lower().endswith(".upf") and not name.startswith(".")


def _element_of(name: str) -> str:
    """Return the symbol a UPF file's name begins with, as in ``b_pbe_v1.4.uspp.F.UPF``."""
    return re.split(r"[._-]", name, maxsplit=1)[0].capitalize()


_ELEMENT = re.compile(r'\belement="\s*(\w+)\s*"|^\s*(\w+)\s+Element\s*$', re.MULTILINE)
_VALENCE = re.compile(r'\bz_valence="\s*([^"\s]+)\s*"|^\s*(\S+)\s+Z valence', re.MULTILINE)
_WFC = re.compile(r'\bwfc_cutoff="\s*([^"\s]+)\s*"|^\s*(\S+)\s+\S+\s+Suggested cutoff', re.M)
_RHO = re.compile(r'\brho_cutoff="\s*([^"\s]+)\s*"|^\s*\S+\s+(\S+)\s+Suggested cutoff', re.M)


@lru_cache(maxsize=512)
def _read(path: Path, element: str, modified_ns: int, size: int) -> Pseudopotential:
    with open_file(path, _MAX_FILE_BYTES) as file:
        content = file.read()
    text = content.decode("utf-8", errors="replace")
    header = text.partition("<PP_MESH")[0]  # megabytes of numbers follow
    found, valence = _first(_ELEMENT, header), _number(_first(_VALENCE, header))
    end = "</UPF>" if "<UPF" in text else "</PP_RHOATOM>"  # version 1 has no element around it
    if found is None or valence is None or end not in text:
        raise ValueError(
            f"{path} is no complete pseudopotential: expected a UPF file with element, valence and "
            "an end; fetch it again with `crystal-gym data fetch sssp`"
        )
    if found.capitalize() != element:
        raise ValueError(
            f"{path} is a pseudopotential for {found}, not for {element} as its name says: remove "
            "or rename it"
        )
    wave = _number(_first(_WFC, header)) or None  # some files say 0
    return Pseudopotential(
        element=element,
        file=path.name,
        md5=hashlib.md5(content, usedforsecurity=False).hexdigest(),
        valence=valence,
        ecutwfc_ry=wave,
        ecutrho_ry=_number(_first(_RHO, header)) if wave else None,
    )


def _first(pattern: re.Pattern[str], text: str) -> str | None:
    match = pattern.search(text)
    return None if match is None else next((g for g in match.groups() if g is not None), None)


def _number(text: str | None) -> float | None:
    try:
        return None if text is None else round(float(text.replace("d", "e").replace("D", "e")), 2)
    except ValueError:
        return None


def install(source: Path | str, folder: Path | str | None = None) -> Pseudopotentials:
    """Bring the UPF files of a folder or a tar archive into the pseudopotential folder.

    Only regular files whose names are an element's UPF are taken, by name alone, whatever path an
    archive gives them. A file is put in place whole, and replaces what was there for its element.

    Args:
        source: A folder, or an archive such as ``SSSP_1.3.0_PBE_efficiency.tar.gz``.
        folder: Where they go; defaults to :func:`default_folder`.

    Returns:
        All that the folder holds now.

    Raises:
        FileNotFoundError: If there is no source, or no UPF file in it.
        ValueError: If the archive is damaged or too large to be one of pseudopotentials, a file in
            it is incomplete or for another element than its name says, or two are for one element.
    """
    source = Path(source)
    target = Path(folder) if folder is not None else default_folder()
    # Read whole and tested before the first file changes: an error leaves everything as it was.
    with tempfile.TemporaryDirectory(prefix="crystal-gym-upf-") as unpacked:
        for name, content in _upf_files(source):
            path = Path(unpacked, name)
            if path.exists():
                raise ValueError(f"{source} holds two files called {name}: expected one")
            path.write_bytes(content)
        if not any(Path(unpacked).iterdir()):
            raise FileNotFoundError(f"{source} holds no UPF file of an element: expected some")
        try:
            found = list(Pseudopotentials(unpacked).values())
        except ValueError as error:
            raise ValueError(str(error).replace(unpacked, str(source))) from error
        for new in found:
            old = [p for p in _same_element(target, new.file) if p.name != new.file]
            with atomic_path(target / new.file) as temporary:
                shutil.copyfile(Path(unpacked, new.file), temporary)
            for path in old:
                path.unlink()  # else the element would have two
    return Pseudopotentials(target)


def _same_element(folder: Path, name: str) -> Iterable[Path]:
    if not folder.is_dir():
        return []
    element = _element_of(name)
    return [p for p in folder.iterdir() if _is_upf(p.name) and _element_of(p.name) == element]


def _upf_files(source: Path) -> Iterator[tuple[str, bytes]]:
    if source.is_dir():
        for path in sorted(source.iterdir()):
            if path.is_file() and _is_upf(path.name) and _element_of(path.name) in ELEMENTS:
                with open_file(path, _MAX_FILE_BYTES) as file:
                    yield path.name, file.read()
        return
    if not source.is_file():
        raise FileNotFoundError(f"{source} does not exist: expected a folder or a tar archive")
    try:
        with (
            io.BufferedReader(Bounded(_expanded(source), source, _MAX_BYTES)) as stream,
            tarfile.open(fileobj=stream, mode="r|") as archive,
        ):
            yield from _members(archive, source)
            while stream.read(1 << 20):
                pass  # compressed files have their checksum behind the last member
    except (tarfile.TarError, EOFError, OSError, lzma.LZMAError, zlib.error) as error:
        raise ValueError(f"{source} is not a readable tar archive ({first_line(error)})") from error


def _expanded(source: Path) -> IO[bytes]:
    """Open an archive's bytes, whichever way they are compressed."""
    with open(source, "rb") as file:
        start = file.read(6)
    for magic, opened in ((b"\x1f\x8b", gzip.open), (b"BZh", bz2.open), (b"\xfd7zXZ\0", lzma.open)):
        if start.startswith(magic):
            return cast("IO[bytes]", opened(source, "rb"))
    return open(source, "rb")


def _members(archive: tarfile.TarFile, source: Path) -> Iterator[tuple[str, bytes]]:
    for count, member in enumerate(archive, start=1):
        name = Path(member.name).name
        if member.size > _MAX_FILE_BYTES or count > _MAX_FILES:
            raise ValueError(
                f"{source} holds {name[:100]} of {member.size:,} bytes as file {count}: expected "
                f"at most {_MAX_FILES} files of {_MAX_FILE_BYTES:,} bytes"
            )
        if not (member.isreg() and _is_upf(name) and _element_of(name) in ELEMENTS):
            continue
        stream = archive.extractfile(member)
        if stream is not None:
            yield name, stream.read()
