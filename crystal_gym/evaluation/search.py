"""Many different fillings of one skeleton: beam search and sampling over a policy.

A policy's values are taken as logits, so that a filling has a probability: of a cloned behaviour
it is what the data would do; of conservative Q-learning, whose regulariser is a cross-entropy, it
weighs that against the reward.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from crystal_gym.elements import EMPTY, N_ELEMENTS
from crystal_gym.envs.observations import compact_rows
from crystal_gym.evaluation.baselines import masked
from crystal_gym.evaluation.rollout import MaskRule, Task, Valued
from crystal_gym.skeletons import Skeleton, SkeletonSet

__all__ = ["Candidates", "beam_search", "sample_fillings"]


@dataclass(frozen=True, eq=False)
class Candidates:
    """Different fillings, the likeliest first; symmetry makes none of them another.

    Attributes:
        tokens: Element tokens, int16 ``(K, n_sites)``.
        log_probability: Of the policy along the search's order of sites, ``(K,)``.
    """

    tokens: NDArray[np.int16]
    log_probability: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.tokens)


def beam_search(
    policy: Valued,
    skeletons: SkeletonSet,
    number: int = 0,
    *,
    target_gap: float | None,
    width: int = 64,
    start: ArrayLike | None = None,
    required: Sequence[int] = (),
    groups: ArrayLike | None = None,
    mask: NDArray[np.int8] | MaskRule | None = None,
) -> Candidates:
    """Return the likeliest fillings that a beam finds.

    With a width of 88 to the power of the empty sites but one it finds the likeliest of all.

    Args:
        policy: Gives the logits.
        skeletons: The set.
        number: Which skeleton of it.
        target_gap: eV; None for an unconditional policy.
        width: Partial fillings that are kept at every site.
        start: Tokens of sites that are filled already and stay so, 0 elsewhere, ``(n_sites,)``.
        required: Tokens of elements that have to occur, each on at least one empty site. They are
            placed first, on the sites that the policy likes best for them, so fillings are scored
            along orders that begin there.
        groups: Number of the group of every site, ``(n_sites,)``: the empty sites of a group get
            the same element, which is scored once, at the first of them. None: each by itself.
        mask: Elements allowed everywhere, int8 ``(88,)``, or a rule for partial fillings such as
            ``ChargeNeutralMask().rows``.

    Returns:
        At most ``width`` candidates; none where the mask lets nothing be finished.

    Raises:
        ValueError: If ``width`` is below 1, ``start`` does not fit the skeleton or leaves fewer
            sites than there are required elements.
    """
    if width < 1:
        raise ValueError(f"width={width} is no beam: expected 1 or more")
    problem = _Problem(policy, skeletons, number, target_gap, groups, mask)
    tokens, score = problem.begin(start, required, width)
    while len(tokens) and (tokens == EMPTY).any():
        sites = problem.next_sites(tokens)
        total = (score[:, None] + problem.log_probabilities(tokens, sites)).ravel()
        best = np.argsort(-total, kind="stable")[:width]
        best = best[np.isfinite(total[best])]
        parent, chosen = best // N_ELEMENTS, best % N_ELEMENTS
        tokens, score = problem.filled(tokens[parent], sites[parent], chosen + 1), total[best]
    return _different(problem.skeleton, tokens, score)


def sample_fillings(
    policy: Valued,
    skeletons: SkeletonSet,
    number: int = 0,
    *,
    target_gap: float | None,
    count: int = 64,
    temperature: float = 1.0,
    seed: int = 0,
    start: ArrayLike | None = None,
    required: Sequence[int] = (),
    groups: ArrayLike | None = None,
    mask: NDArray[np.int8] | MaskRule | None = None,
) -> Candidates:
    """Return different fillings among ``count`` that are drawn from the policy.

    Args:
        policy: Gives the logits.
        skeletons: The set.
        number: Which skeleton of it.
        target_gap: eV; None for an unconditional policy.
        count: How many are drawn, before equal ones are put together.
        temperature: Logits are divided by it: below 1 the likely ones are drawn more often.
        seed: Of the draws.
        start: As in :func:`beam_search`.
        required: As in :func:`beam_search`.
        groups: As in :func:`beam_search`.
        mask: As in :func:`beam_search`.

    Returns:
        Different ones, the likeliest first.

    Raises:
        ValueError: If ``count`` or ``temperature`` is not above 0, or ``start`` does not fit.
    """
    if count < 1 or not 0 < temperature < np.inf:
        raise ValueError(
            f"count={count} and temperature={temperature} are not usable: expected at least 1 "
            "filling and a temperature above 0"
        )
    problem = _Problem(policy, skeletons, number, target_gap, groups, mask)
    generator = np.random.default_rng(seed)
    tokens, score = problem.begin(start, required, count)
    chosen = _drawn(np.repeat(score[None], count, 0) / temperature, generator)
    tokens, score = tokens[chosen], score[chosen]
    while len(tokens) and (tokens == EMPTY).any():
        sites = problem.next_sites(tokens)
        logits = problem.log_probabilities(tokens, sites)
        possible = np.isfinite(logits).any(1)
        tokens, score, sites = tokens[possible], score[possible], sites[possible]
        logits = logits[possible]
        rows, chosen = np.arange(len(tokens)), _drawn(logits / temperature, generator)
        score = score + logits[rows, chosen]
        tokens = problem.filled(tokens, sites, chosen + 1)
    return _different(problem.skeleton, tokens, score)


def _drawn(logits: NDArray[np.float64], generator: np.random.Generator) -> NDArray[np.int64]:
    """Return one draw from each row's distribution: the highest of its logits with Gumbel noise."""
    if logits.shape[1] == 0:
        return np.zeros(0, np.int64)  # there is nothing to draw from
    return (logits + generator.gumbel(size=logits.shape)).argmax(1)


class _Problem:
    """One skeleton to be filled by one policy."""

    def __init__(
        self,
        policy: Valued,
        skeletons: SkeletonSet,
        number: int,
        target_gap: float | None,
        groups: ArrayLike | None,
        mask: NDArray[np.int8] | MaskRule | None,
    ) -> None:
        self.skeleton: Skeleton = skeletons[number]
        self._policy, self._skeletons, self._number = policy, skeletons, number
        self._target_gap, self._mask = target_gap, mask
        n_sites = self.skeleton.n_sites
        self._groups = np.arange(n_sites) if groups is None else np.asarray(groups)
        if self._groups.shape != (n_sites,):
            raise ValueError(
                f"groups of shape {self._groups.shape} do not fit {self.skeleton.name}: expected "
                f"one number for each of its {n_sites} sites"
            )
        task = Task.of_skeletons(skeletons, [number])  # the order: by the geometry alone
        self._order = task.traversal[0, : self.skeleton.n_sites].astype(np.int64)

    def begin(
        self, start: ArrayLike | None, required: Sequence[int], width: int
    ) -> tuple[NDArray[np.int16], NDArray[np.float64]]:
        """Return the first partial fillings ``(B, n_sites)`` and their log-probabilities."""
        n_sites = self.skeleton.n_sites
        first = np.zeros(n_sites, np.int16) if start is None else np.array(start, np.int16)
        if first.shape != (n_sites,) or first.min() < EMPTY or first.max() > N_ELEMENTS:
            raise ValueError(
                f"start={np.asarray(start).tolist()} does not fit {self.skeleton.name}: expected "
                f"{n_sites} tokens from 0 (empty) to {N_ELEMENTS}"
            )
        n_empty = int((first == EMPTY).sum())
        if len(required) > n_empty:
            raise ValueError(
                f"{len(required)} required elements do not fit on {n_empty} empty sites of "
                f"{self.skeleton.name}: expected one site or more for each"
            )
        tokens, score = first[None], np.zeros(1)
        for token in required:
            tokens, score = self._placed(tokens, score, token)
            keep = _different(self.skeleton, tokens, score)
            tokens, score = keep.tokens[:width], keep.log_probability[:width]
        return tokens, score

    def _placed(
        self, tokens: NDArray[np.int16], score: NDArray[np.float64], token: int
    ) -> tuple[NDArray[np.int16], NDArray[np.float64]]:
        """Put an element on every empty site of partial fillings in turn."""
        parent, sites = np.nonzero(tokens == EMPTY)
        total = score[parent] + self.log_probabilities(tokens[parent], sites)[:, token - 1]
        possible = np.isfinite(total)
        parent, sites, total = parent[possible], sites[possible], total[possible]
        return self.filled(tokens[parent], sites, np.full(len(sites), token)), total

    def _together(self, tokens: NDArray[np.int16], sites: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return the empty sites that are filled with the next one of each, ``(B, n_sites)``."""
        together: NDArray[np.bool_] = self._groups[None] == self._groups[sites][:, None]
        return together & (tokens == EMPTY)

    def filled(
        self, tokens: NDArray[np.int16], sites: NDArray[np.int64], chosen: NDArray[np.integer]
    ) -> NDArray[np.int16]:
        """Return partial fillings with one more element each, on a site and those of its group."""
        return np.where(self._together(tokens, sites), chosen[:, None], tokens).astype(np.int16)

    def next_sites(self, tokens: NDArray[np.int16]) -> NDArray[np.int64]:
        """Return the empty site of each partial filling that comes next, ``(B,)``."""
        return self._order[(tokens[:, self._order] == EMPTY).argmax(1)]

    def log_probabilities(
        self, tokens: NDArray[np.int16], sites: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        """Return what the policy says of every element at a site, ``(B, 88)``; -inf is masked."""
        n_rows, n_sites = tokens.shape
        numbers = np.full(n_rows, self._number)
        rows = compact_rows(self._skeletons, numbers, tokens, sites, self._target_gap)
        mask = self._mask
        if callable(mask):
            at_once = self._together(tokens, sites).sum(1)
            numbers_of_sites = np.full(n_rows, n_sites)
            # Rules need not know of groups where there are none.
            more = () if (at_once == 1).all() else (at_once,)
            mask = mask(tokens, numbers_of_sites, *more)
        logits = masked(self._policy.values(rows).astype(np.float64), mask)
        normaliser = np.logaddexp.reduce(logits, axis=1, keepdims=True)
        return logits - np.where(np.isfinite(normaliser), normaliser, 0.0)


def _different(
    skeleton: Skeleton, tokens: NDArray[np.int16], score: NDArray[np.float64]
) -> Candidates:
    """Sort, and keep the likeliest of those that symmetry makes equal."""
    order = np.argsort(-score, kind="stable")
    kept: dict[bytes, int] = {}
    for row in order.tolist():
        kept.setdefault(skeleton.canonical_tokens(tokens[row]), row)
    rows = list(kept.values())
    return Candidates(tokens[rows], score[rows])
