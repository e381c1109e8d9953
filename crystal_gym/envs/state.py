"""The decision process as pure functions of an immutable state.

A state is a skeleton, the order in which its sites are filled, and the tokens placed so far.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from crystal_gym.skeletons import Skeleton

__all__ = ["State", "initial_state", "is_terminal", "place"]


@dataclass(frozen=True, eq=False)
class State:
    """A partly filled skeleton.

    Attributes:
        skeleton: The skeleton.
        traversal: Sites in the order in which they are filled, ``(n_sites,)``.
        tokens: Element tokens, 0 where empty, int16 ``(n_sites,)``; read-only.
        step: How many sites are filled.
        target_gap: eV, None for the unconditional task.
    """

    skeleton: Skeleton
    traversal: tuple[int, ...]
    tokens: NDArray[np.int16]
    step: int
    target_gap: float | None

    @property
    def focus(self) -> int:
        """The site to fill next; ``n_sites``, which is no site, after the last one."""
        n_sites = len(self.traversal)
        return self.traversal[self.step] if self.step < n_sites else n_sites


def initial_state(
    skeleton: Skeleton, traversal: NDArray[np.int64], target_gap: float | None
) -> State:
    """Return the empty skeleton."""
    tokens = np.zeros(skeleton.n_sites, dtype=np.int16)
    tokens.flags.writeable = False
    return State(skeleton, tuple(traversal.tolist()), tokens, 0, target_gap)


def place(state: State, action: int) -> State:
    """Return the state after element ``action`` (0 to 87) was put on the focus site."""
    tokens = state.tokens.copy()
    tokens[state.focus] = action + 1
    tokens.flags.writeable = False
    return State(state.skeleton, state.traversal, tokens, state.step + 1, state.target_gap)


def is_terminal(state: State) -> bool:
    """Return whether every site is filled."""
    return state.step == len(state.traversal)
