"""Published Quantum ESPRESSO labels of MP-20 (Govindarajan et al. 2024)."""

from __future__ import annotations

import csv
import io
import math
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crystal_gym.files import DAMAGED_GZIP, first_line, open_file

__all__ = ["Label", "has_label_table", "load_plain_pickle", "read_label_table", "read_labels"]


@dataclass(frozen=True)
class Label:
    """DFT properties of one row of an MP-20 file; energies are NaN where they are not known."""

    position: int
    band_gap_ev: float
    total_energy_ry: float
    formation_energy_ev_per_atom: float


_LARGEST = 500_000_000
"""Bytes of a file of labels, expanded; those of MP-20 have a million."""

# What the C unpickler raises on bytes that no pickler wrote.
_DAMAGED = (
    pickle.UnpicklingError,
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    TypeError,
    ValueError,
)


class _NoClasses(pickle.Unpickler):
    """Admits dictionaries, lists, numbers and text; a pickle that names a class is refused."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(
            f"it asks for {module}.{name}: expected only dictionaries, lists, numbers and text"
        )


def load_plain_pickle(path: Path | str) -> Any:
    """Read a pickle of built-in containers and numbers, running no code.

    Args:
        path: The file.

    Returns:
        What it holds.

    Raises:
        ValueError: If it holds anything else or is damaged.
    """
    try:
        with open_file(path, _LARGEST) as file:
            return _NoClasses(file).load()
    except _DAMAGED as error:
        raise ValueError(
            f"{path} is refused ({first_line(error)}): "
            "expected a pickle of plain dictionaries of numbers; "
            "fetch the published file again"
        ) from error


def has_label_table(folder: Path | str) -> bool:
    """Return whether ``qe/labels.csv.gz``, the only file with validation labels, is there."""
    return _label_table(folder).exists()


def _label_table(folder: Path | str) -> Path:
    return Path(folder) / "qe" / "labels.csv.gz"


def read_labels(folder: Path | str, split: str) -> list[Label]:
    """Return the labels of ``"train"``, ``"val"`` or ``"metals"``, by row position.

    Reads ``qe/labels.csv.gz``, or for the training split the pickles as the authors published
    them (``qe/release/TE_bg_dict_nm.pkl`` and ``FE_dict_nm.pkl``). Metals are rows of the training
    split too (``qe/release/TE_bg_dict_m.pkl``). They have a gap of 0 and no energies: the published
    ones are far from converged (docs/decisions.md).

    Args:
        folder: With ``qe/``.
        split: ``"train"``, ``"val"`` or ``"metals"``.

    Returns:
        In the order of their rows.

    Raises:
        FileNotFoundError: If neither is there.
        ValueError: If a file is damaged.
    """
    folder = Path(folder)
    if split == "metals":
        labels = _read_metals(folder)
    elif has_label_table(folder):
        labels = _read_csv(_label_table(folder), split)
    elif split == "train" and (folder / "qe" / "release" / "TE_bg_dict_nm.pkl").exists():
        labels = _read_release(folder / "qe" / "release")
    else:
        raise FileNotFoundError(
            f"there are no DFT labels for the {split} split in {folder / 'qe'}: expected "
            "labels.csv.gz or release/TE_bg_dict_nm.pkl and FE_dict_nm.pkl; run "
            "`crystal-gym data fetch mp20`, or name a folder with --from"
        )
    return sorted(labels, key=lambda label: label.position)


def _read_csv(path: Path, split: str) -> list[Label]:
    try:
        with (
            open_file(path, _LARGEST) as raw,
            io.TextIOWrapper(raw, encoding="utf-8", newline="") as file,
        ):
            return [
                Label(
                    int(row["index"]),
                    _finite(row["band_gap_ev"]),
                    _finite(row["total_energy_ry"]),
                    _finite(row["formation_energy_ev_per_atom"]),
                )
                for row in csv.DictReader(file)
                if row["split"] == split
            ]
    except (*DAMAGED_GZIP, csv.Error, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} is damaged ({first_line(error)}): expected columns split, index, band_gap_ev, "
            "total_energy_ry, formation_energy_ev_per_atom; fetch it again"
        ) from error


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is not a finite number")
    return value


def read_label_table(path: Path | str, origin: Path | str) -> None:
    """Read a whole label table to see that it is sound.

    Args:
        path: The file to read.
        origin: Where it came from, for the message.

    Raises:
        ValueError: If it is damaged, naming ``origin``.
    """
    try:
        for split in ("train", "val"):
            _read_csv(Path(path), split)
    except ValueError as error:
        raise ValueError(str(error).replace(str(path), str(origin))) from error


def _read_metals(folder: Path) -> list[Label]:
    path = folder / "qe" / "release" / "TE_bg_dict_m.pkl"
    if not path.exists():
        raise FileNotFoundError(
            f"{path} does not exist: expected the metals of the published labels, which have no "
            "public address; name a folder that holds them with --from"
        )
    nonmetals = {label.position for label in read_labels(folder, "train")}
    table = load_plain_pickle(path)
    try:
        gaps = {int(row): float(gap) for row, (gap, *_) in table.items()}
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} is damaged ({error!r}): expected row -> (gap in eV, total energy in Ry); "
            "take it from its source again"
        ) from error
    unknown = math.nan
    return [Label(row, gap, unknown, unknown) for row, gap in gaps.items() if row not in nonmetals]


def _read_release(folder: Path) -> list[Label]:
    electronic = load_plain_pickle(folder / "TE_bg_dict_nm.pkl")
    formation = load_plain_pickle(folder / "FE_dict_nm.pkl")
    try:
        return [
            Label(int(row), float(gap), float(total), float(formation[row]))
            for row, (gap, total, *_) in electronic.items()
        ]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"the label files in {folder} do not fit together ({error!r}): expected row -> (gap "
            "in eV, total energy in Ry) and row -> eV/atom for the same rows; fetch both again"
        ) from error
