"""Fetching the source files: from their public addresses, or from a folder that has them."""

from __future__ import annotations

import errno
import http.client
import shutil
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from crystal_gym.cdvae import read_cdvae_csv
from crystal_gym.datasets.labels import load_plain_pickle, read_label_table
from crystal_gym.files import atomic_path, cache_dir, sha256_of
from crystal_gym.oracles.espresso.pseudopotentials import install

__all__ = ["MP20_FILES", "SSSP_URL", "SourceFile", "fetch", "fetch_pseudopotentials"]

_CDVAE = "https://raw.githubusercontent.com/txie-93/cdvae/main/data/mp_20"
_DESIGN = "https://raw.githubusercontent.com/chandar-lab/crystal-design"

_MAX_BYTES = 500_000_000
_CHUNK = 1 << 20
_SCHEMES = ("https",)
_PAUSES_S = (1.0, 4.0)
"""Before each new attempt at a download that broke off."""


@dataclass(frozen=True)
class SourceFile:
    """One file that a dataset is made of.

    Attributes:
        path: Where it goes below the data folder.
        url: Public address, None where it is only taken from a folder.
        sha256: Of its content, None where it is not known in advance; such a file is at least
            parsed before it is accepted.
    """

    path: str
    url: str | None
    sha256: str | None = None


MP20_FILES: tuple[SourceFile, ...] = (
    SourceFile("mp20/train.csv", f"{_CDVAE}/train.csv"),
    SourceFile("mp20/val.csv", f"{_CDVAE}/val.csv"),
    SourceFile(
        "qe/release/TE_bg_dict_nm.pkl",
        f"{_DESIGN}/b53b4f294442ca0eb5d56981f36bc63c1105c2ce/crystal_design/files/TE_bg_dict_nm.pkl",
        "cea7753f705a4c3b78dc3a017e8b7a639ab6feb17081f527b2d1cd9816f096a8",
    ),
    SourceFile(
        "qe/release/FE_dict_nm.pkl",
        f"{_DESIGN}/c75e7ea4df37a272036c5e0e084609702789c460/crystal_design/files/FE_dict_nm.pkl",
        "84da7b23a9af22256cc002b19f0063a1277c56123b021e71ee84495439776f32",
    ),
    # Which rows are metals; no public address is known.
    SourceFile(
        "qe/release/TE_bg_dict_m.pkl",
        None,
        "2ee463765a498e2a7308530eb1576e0c7546e18e3c19bf8d420cd6209487e248",
    ),
    # Both splits in one table; the published record holds the validation labels only inside
    # calculation outputs, so there is no address to take it from.
    SourceFile("qe/labels.csv.gz", None),
)
"""What ``crystal-gym data build mp20`` reads."""


def fetch(
    files: Sequence[SourceFile] = MP20_FILES,
    *,
    source: Path | str | None = None,
    target: Path | str | None = None,
    progress: bool = False,
) -> Iterator[str]:
    """Bring files into the data folder, yielding one line about each.

    A file that is there already and sound is left alone. A download that broke off goes on where
    it stopped. A file is put in its place only after it was checked.

    Args:
        files: What to fetch.
        source: Take the files from this folder (laid out alike; CSV files may be gzipped) instead.
        target: The data folder; defaults to ``raw`` in the user's cache.
        progress: Show a progress bar on standard error.

    Yields:
        One sentence for each file.

    Raises:
        FileNotFoundError: If the source folder lacks a file that cannot be done without.
        ValueError: If a file is truncated or was tampered with.
        ConnectionError: If an address does not answer.
    """
    folder = Path(target) if target is not None else cache_dir() / "raw"
    if source is not None and not Path(source).is_dir():
        raise FileNotFoundError(
            f"--from {source}: there is no such folder; expected one that holds mp20/ and qe/"
        )
    for file in files:
        if source is not None:
            yield _copy(file, Path(source), folder)
        else:
            yield _download(file, folder, progress)


SSSP_URL = (
    "https://archive.materialscloud.org/record/file?record_id=1732"
    "&filename=SSSP_1.3.0_PBE_efficiency.tar.gz"
)
"""SSSP 1.3.0, PBE, efficiency (doi 10.24435/materialscloud:f3-ym)."""


def fetch_pseudopotentials(
    *,
    source: Path | str | None = None,
    target: Path | str | None = None,
    progress: bool = False,
) -> Iterator[str]:
    """Bring pseudopotentials into their folder, yielding one line about each thing to know.

    Args:
        source: A folder of UPF files or a tar archive; None downloads SSSP efficiency.
        target: Their folder; defaults to the one that calculations look in.
        progress: Show a progress bar on standard error.

    Yields:
        One sentence for each thing to know.

    Raises:
        FileNotFoundError: If there is no such source, or no UPF file in it.
        ValueError: If the archive is damaged.
        ConnectionError: If the address does not answer.
    """
    if source is None:
        archive = cache_dir() / "raw" / "sssp_efficiency.tar.gz"
        archive.parent.mkdir(parents=True, exist_ok=True)
        partial = archive.with_name(f".{archive.name}.download")
        _stream(SSSP_URL, partial, progress)
        partial.replace(archive)
        source = archive
    found = install(source, target)
    yield f"{len(found)} elements in {found.folder}"
    for sentence in found.differing():
        yield f"{sentence}: energies differ from the bundled ones, references do not apply"
    if found.missing():
        yield f"no file for {', '.join(found.missing())}"


def _copy(file: SourceFile, source: Path, folder: Path) -> str:
    found = next((p for p in _variants(source / file.path) if p.exists()), None)
    if found is None:
        if file.url is None or file.path.startswith("qe/release"):
            return f"{file.path}: not in {source}, left out"
        raise FileNotFoundError(f"{source / file.path} does not exist (nor .gz): expected it there")
    goal = folder / found.relative_to(source)
    if goal.exists() and sha256_of(goal) == sha256_of(found):
        return f"{file.path}: already there"
    with atomic_path(goal) as temporary:
        shutil.copyfile(found, temporary)
        _check(file, temporary, found)
    return f"{file.path}: copied from {found}"


def _variants(path: Path) -> tuple[Path, Path]:
    return path, path.with_name(path.name + ".gz")


def _download(file: SourceFile, folder: Path, progress: bool) -> str:
    goal = folder / file.path
    there = next((p for p in _variants(goal) if p.exists()), None)
    if there is not None and _is_sound(file, there):
        return f"{file.path}: already there"
    if file.url is None:
        return f"{file.path}: has no public address, left out (take it from a folder with --from)"
    goal.parent.mkdir(parents=True, exist_ok=True)
    partial = goal.with_name(f".{goal.name}.download")
    _stream(file.url, partial, progress)
    try:
        _check(file, partial, file.url)
    except ValueError:
        partial.unlink()  # it would only be continued from a wrong beginning
        raise
    partial.replace(goal)
    return f"{file.path}: downloaded from {file.url}"


def _is_sound(file: SourceFile, path: Path) -> bool:
    try:
        _check(file, path, path)
    except ValueError:
        return False
    return True


class _SecureRedirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects to HTTPS only: elsewhere anyone on the way could answer."""

    def redirect_request(self, *arguments: Any) -> urllib.request.Request | None:
        """Return the request for the new address.

        Args:
            arguments: As of the method that is replaced.

        Returns:
            What the method that is replaced returns.

        Raises:
            ValueError: If it is not HTTPS.
        """
        _require_https(arguments[-1])
        return super().redirect_request(*arguments)


def _require_https(url: str) -> None:
    if urllib.parse.urlsplit(url).scheme not in _SCHEMES:
        raise ValueError(f"{url} is not fetched: expected an address that begins with https://")


def _stream(url: str, partial: Path, progress: bool) -> None:
    """Append what is missing of ``url`` to ``partial``, trying again where a connection fails."""
    _require_https(url)
    for pause in _PAUSES_S:
        try:
            return _attempt(url, partial, progress)
        except ConnectionError as error:
            if isinstance(error.__cause__, urllib.error.HTTPError):
                raise  # the server has answered, and will answer the same again
            time.sleep(pause)
    _attempt(url, partial, progress)


def _attempt(url: str, partial: Path, progress: bool) -> None:
    start = partial.stat().st_size if partial.exists() else 0
    headers = {"User-Agent": "crystal-gym", **({"Range": f"bytes={start}-"} if start else {})}
    request = urllib.request.Request(url, headers=headers)
    opener = urllib.request.build_opener(_SecureRedirects)
    try:
        with opener.open(request, timeout=60) as response:
            resumed = response.status == 206
            length = response.headers.get("Content-Length", "")
            total = (int(length) if length.isdecimal() else 0) + (start if resumed else 0)
            _require_small(url, total)
            with (
                open(partial, "ab" if resumed else "wb") as out,
                tqdm(
                    total=total or None,
                    initial=start if resumed else 0,
                    unit="B",
                    unit_scale=True,
                    desc=url.rsplit("/", 1)[-1],
                    disable=not progress,
                ) as bar,
            ):
                while chunk := response.read(_CHUNK):
                    _require_small(url, out.tell() + len(chunk))  # whatever the header said
                    out.write(chunk)
                    bar.update(len(chunk))
                received = out.tell()
    except urllib.error.HTTPError as error:
        if error.code == 416:  # nothing is missing: the last attempt broke off after the last byte
            return
        raise ConnectionError(_unreachable(url, error)) from error
    except http.client.HTTPException as error:
        raise ConnectionError(_unreachable(url, error)) from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EROFS):
            raise OSError(
                error.errno, f"{partial} cannot be written ({error}): make room and try again"
            ) from error
        raise ConnectionError(_unreachable(url, error)) from error
    except ValueError:
        partial.unlink(missing_ok=True)  # too large: nothing to go on from
        raise
    if total and received < total:
        raise ConnectionError(
            f"{url} broke off after {received:,} of {total:,} bytes: run the same command again, "
            "it goes on from there"
        )


def _require_small(url: str, size: int) -> None:
    if size > _MAX_BYTES:
        raise ValueError(f"{url} has {size:,} bytes or more: expected at most {_MAX_BYTES:,}")


def _unreachable(url: str, error: Exception) -> str:
    return (
        f"{url} cannot be fetched ({error}): check the connection and run the same command again, "
        "or take the files from a folder with --from DIR"
    )


def _check(file: SourceFile, path: Path, origin: Path | str) -> None:
    digest = sha256_of(path)
    if file.sha256 is not None and digest != file.sha256:
        raise ValueError(
            f"{origin} is truncated or was changed: its SHA-256 is {digest[:16]}..., expected "
            f"{file.sha256[:16]}...; nothing was replaced, fetch it again"
        )
    if file.sha256 is None and file.path.startswith("mp20/"):
        _check_csv(path, str(origin))
    if file.path.endswith(".pkl"):
        load_plain_pickle(path)
    if file.path == "qe/labels.csv.gz":
        read_label_table(path, origin)


def _check_csv(path: Path, origin: str) -> None:
    try:
        read_cdvae_csv(path)
    except ValueError as error:
        raise ValueError(str(error).replace(str(path), origin)) from error
