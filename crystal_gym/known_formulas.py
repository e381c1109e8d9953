"""Which formulas the bundled policy has learned from, without the formulas themselves."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from crystal_gym.files import atomic_path

__all__ = ["KnownFormulas"]

_BUNDLED = Path(__file__).parent / "data" / "training_formulas.npy"


class KnownFormulas:
    """A set of reduced formulas, kept as 64-bit hashes: one in 10^15 is mistaken for known.

    Args:
        hashes: uint64 ``(M,)``.
    """

    def __init__(self, hashes: NDArray[np.uint64]) -> None:
        self._hashes = np.unique(hashes)

    @classmethod
    def of(cls, formulas: Iterable[str]) -> KnownFormulas:
        """Return the set of formulas that :func:`crystal_gym.elements.reduced_formula` wrote."""
        return cls(np.array([_hash(f) for f in formulas], dtype=np.uint64))

    @classmethod
    def bundled(cls) -> KnownFormulas:
        """Return the formulas of the 8,813 labelled training crystals of MP-20."""
        return cls(np.load(_BUNDLED, allow_pickle=False))

    def bundle(self) -> None:
        """Put this set into the package."""
        with atomic_path(_BUNDLED) as path, path.open("wb") as file:
            np.save(file, self._hashes, allow_pickle=False)

    def __contains__(self, formula: object) -> bool:
        if not isinstance(formula, str):
            return False
        value = np.uint64(_hash(formula))
        place = int(np.searchsorted(self._hashes, value))
        return place < len(self) and bool(self._hashes[place] == value)

    def __len__(self) -> int:
        return len(self._hashes)


def _hash(formula: str) -> int:
    return int.from_bytes(hashlib.blake2b(formula.encode(), digest_size=8).digest(), "big")
