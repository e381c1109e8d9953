"""One oracle after the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

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
        if isinstance(oracles, Oracle):
            raise TypeError(f"{oracles!r} is one oracle: expected a list such as [first, second]")
        self.oracles = tuple(oracles)
        if not self.oracles:
            raise ValueError("a chain needs at least one oracle; none was given")
        for oracle in self.oracles:
            if not isinstance(oracle, Oracle) or isinstance(oracle, type):
                raise TypeError(
                    f"{oracle!r} has no evaluate(structures): expected oracles, not their classes"
                )

    def __repr__(self) -> str:
        return f"ChainOracle({', '.join(map(repr, self.oracles))})"

    def evaluate(self, structures: Sequence[Structure]) -> list[Properties]:
        """Return the properties of each structure from the first oracle that knows them."""
        return self._first_known(structures, lambda oracle, asked: oracle.evaluate(asked))

    def evaluate_fillings(self, fillings: Sequence[Filling]) -> list[Properties]:
        """Return the properties of each filling from the first oracle that knows them."""
        return self._first_known(fillings, _ask)

    def _first_known(
        self, questions: Sequence[Any], ask: Callable[[Oracle, list[Any]], list[Properties]]
    ) -> list[Properties]:
        answers = [Properties(status=Status.UNKNOWN)] * len(questions)
        for oracle in self.oracles:
            unanswered = [i for i, a in enumerate(answers) if a.status is Status.UNKNOWN]
            if not unanswered:
                break
            found = ask(oracle, [questions[i] for i in unanswered])
            for i, answer in zip(unanswered, found, strict=True):
                answers[i] = answer
        return answers


def _ask(oracle: Oracle, fillings: Sequence[Filling]) -> list[Properties]:
    if isinstance(oracle, FillingOracle):
        return oracle.evaluate_fillings(fillings)
    return oracle.evaluate([skeleton.structure(tokens) for skeleton, tokens in fillings])
