"""CDVAE's CSV files (Xie et al. 2022): one crystal a row, as CIF text.

Only the column ``cif`` is needed. Rows are known by their position in the file, from 0, because
that is how the published labels name them; the file's first, unnamed column holds other numbers.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from crystal_gym.files import DAMAGED_GZIP, first_line, open_file

__all__ = ["CrystalRow", "in_brief", "read_cdvae_csv"]


_LONGEST_CIF = 100_000_000
"""Characters a cell may have; a CIF that is too large is refused later, as one row."""

_LARGEST_FILE = 1_000_000_000  # bytes; MP-20's largest has 0.05 billion
_MOST_ROWS = 1_000_000
_MOST_PROBLEMS = 100_000
"""Rows without a CIF, in a file that has fewer with one: it is something else."""


@dataclass(frozen=True)
class CrystalRow:
    """One row: its position, its id (``material_id`` where the file has it) and its CIF text."""

    position: int
    name: str
    cif: str


def read_cdvae_csv(path: Path | str) -> tuple[list[CrystalRow], dict[int, str]]:
    """Read a CSV file, plain or gzipped.

    Args:
        path: The file, with a column ``cif`` and, if rows have ids, ``material_id``.

    Returns:
        The rows, and for every row without a usable CIF its position with the reason. Whether the
        CIF itself is sound shows when it is parsed.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is damaged or has no ``cif`` column.
    """
    path = Path(path)
    stem = path.name.split(".")[0]
    rows: list[CrystalRow] = []
    problems: dict[int, str] = {}
    limit = csv.field_size_limit(_LONGEST_CIF)
    try:
        with (
            open_file(path, _LARGEST_FILE) as raw,
            io.TextIOWrapper(raw, encoding="utf-8-sig", newline="") as file,
        ):
            # Wrong quoting refuses the file: rows are known by position, which it would shift.
            reader = csv.DictReader(file, strict=True)
            columns = reader.fieldnames or []
            if "cif" not in columns:
                raise ValueError(
                    f"{path} has no column called cif (found: {in_brief(columns) or 'none'}): "
                    "expected a CSV in CDVAE's format"
                )
            for position, record in enumerate(reader):
                text = record.get("cif") or ""
                if "_atom_site_fract_x" not in text:
                    problems[position] = "its cif column holds no atom sites"
                    if len(problems) > max(_MOST_PROBLEMS, len(rows)):
                        raise ValueError(
                            f"{path} has {len(problems):,} rows without a CIF: expected a CSV in "
                            "CDVAE's format"
                        )
                    continue
                if position >= _MOST_ROWS:
                    raise ValueError(f"{path} has more than {_MOST_ROWS:,} rows: split it")
                name = record.get("material_id") or f"{stem}-{position}"
                rows.append(CrystalRow(position, name, text))
    except (*DAMAGED_GZIP, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(
            f"{path} is damaged ({first_line(error)}): expected a complete CSV file; fetch it again"
        ) from error
    finally:
        csv.field_size_limit(limit)
    return rows, problems


def in_brief(names: Sequence[str]) -> str:
    """Return names of columns as one line of an error message, cut where it gets long."""
    return " ".join(", ".join(names).split())[:200]
