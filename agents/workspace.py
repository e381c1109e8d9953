"""Memory that one gradient step after another uses again.

What a network remembers for its gradient is hundreds of MB, which the C library gives back to the
system when a step ends and asks for in the next: 37,000 page faults, 14% of a step of the paper's
network at batch 1,024. Here it stays with the process.
"""

from __future__ import annotations

from collections import deque

import torch
from torch import Tensor

__all__ = ["Loan"]

_LEAST = 1 << 16
"""Numbers below which memory is not worth keeping."""

_free: deque[Tensor] = deque(maxlen=64)  # what has waited longest goes first


class Loan:
    """Uninitialised float32 memory on the CPU, free for others when this object is gone.

    Args:
        count: Numbers.

    Attributes:
        memory: ``(count,)``.
    """

    def __init__(self, count: int) -> None:
        self._whole = _take(count)
        self.memory = self._whole[:count]

    def __del__(self) -> None:
        if len(self._whole) >= _LEAST:
            _free.append(self._whole)


def _take(count: int) -> Tensor:
    best = -1
    for number, memory in enumerate(_free):
        if count <= len(memory) <= 2 * count and (best < 0 or len(memory) < len(_free[best])):
            best = number
    if best >= 0:
        found = _free[best]
        del _free[best]
        return found
    return torch.empty(count + count // 8)  # the next batch has a few edges more or less
