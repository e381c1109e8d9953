"""One oracle after the other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from crystal_gym.oracles.base import Filling, FillingOracle, Oracle, Properties, Status

if TYPE_CHECKING:
    from pymatgen.core import Structure

__all__ = ["ChainOracle"]


class ChainOracle:
    """Asks the first oracle, and the next for what that one does not know.

    ``ChainOracle([TableOracle("mp20"), CachedOracle(EspressoOracle())])`` looks a crystal up and
    calculates it where it is in no table. Only ``unknown`` is passed on: a calculation that was
    tried and failed is an answer.

    Args:
        oracles: In the order of asking, at least one.
    """

    def __init__(self, oracles: Sequence[Oracle]) -> None:
        if not oracles:
            raise ValueError("a chain needs at least one oracle; none was given")
        for oracle in oracles:
            if not isinstance(oracle, Oracle) or isinstance(oracle, type):
                raise TypeError(f"{oracle!r} has no evaluate(structures): expected oracles")
        self.oracles = tuple(oracles)

    def __repr__(self) -> str:
        return f"ChainOracle({', '.join(map(repr, self.oracles))})"

    def evaluate(self, structures: Sequence[Structure]) -> list[Properties]:
        """Return the properties of each structure from the first oracle that knows them."""
        answers = self.oracles[0].evaluate(structures)
        for oracle in self.oracles[1:]:
            open_ = [i for i, a in enumerate(answers) if a.status is Status.UNKNOWN]
            if not open_:
                break
            for i, answer in zip(
                open_, oracle.evaluate([structures[i] for i in open_]), strict=True
            ):
                answers[i] = answer
        return answers

    def evaluate_fillings(self, fillings: Sequence[Filling]) -> list[Properties]:
        """Return the properties of each filling from the first oracle that knows them."""
        answers = [Properties(status=Status.UNKNOWN)] * len(fillings)
        for oracle in self.oracles:
            open_ = [i for i, a in enumerate(answers) if a.status is Status.UNKNOWN]
            if not open_:
                break
            asked = [fillings[i] for i in open_]
            for i, answer in zip(open_, _ask(oracle, asked), strict=True):
                answers[i] = answer
        return answers


def _ask(oracle: Oracle, fillings: Sequence[Filling]) -> list[Properties]:
    if isinstance(oracle, FillingOracle):
        return oracle.evaluate_fillings(fillings)
    return oracle.evaluate([skeleton.structure(tokens) for skeleton, tokens in fillings])
