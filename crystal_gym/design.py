"""New compounds on the skeleton of a known one: search, prediction and ranking.

A crystal lends its sites. A policy proposes elements for them, by beam search and by sampling; an
oracle, usually the surrogate, predicts gap and formation energy; candidates are ranked by the
reward that these predictions lead to expect. Nothing here is a calculation: what is predicted
stays apart from what DFT finds (:attr:`Candidate.predicted`, :attr:`Candidate.calculated`).
"""

from __future__ import annotations

import math
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from crystal_gym.charge_masks import ChargeNeutralMask
from crystal_gym.elements import (
    ELEMENTS,
    EMPTY,
    element_mask,
    formula_counts,
    reduced_formula,
    symbol_to_token,
)
from crystal_gym.evaluation.properties import IN_RANGE_EV
from crystal_gym.evaluation.rollout import Task, Valued
from crystal_gym.evaluation.search import beam_search, sample_fillings
from crystal_gym.oracles.base import Filling, FillingOracle, Properties, Status
from crystal_gym.rewards import FormationReward
from crystal_gym.skeletons import Skeleton, SkeletonSet, build_skeletons
from crystal_gym.structures import cell_from_structure, site_symbols, to_structure
from crystal_gym.targets import check_target_gap
from crystal_gym.validity import are_common, charge_assignment, electronegativity

if TYPE_CHECKING:
    from pymatgen.core import Structure

__all__ = [
    "MAX_DESIGN_SITES",
    "RANKINGS",
    "Candidate",
    "DesignProblem",
    "DesignSettings",
    "best_by_reward",
    "design",
    "expectations",
]

MAX_DESIGN_SITES = 60
"""Policies are trained on cells of up to 20 sites; three times that is as far as they are asked."""

RANKINGS = ("reward", "likelihood")

_LARGEST_GAP_EV = 20.0
"""Solid helium, at the top of the labels, has 18.6 eV."""

_LARGEST_VOLUME = 150.0
"""Å^3 a site: caesium, the largest atom, takes 116 in its metal; a molecule in a box more."""


@dataclass(frozen=True)
class DesignSettings:
    """What is asked for.

    Attributes:
        target_gap: eV, lowest and highest; equal for a point, which counts as hit within
            ±0.25 eV.
        count: How many candidates to return.
        include: Elements that have to occur, by symbol.
        exclude: Elements that must not be chosen.
        only: Elements that may be chosen; none for all 88.
        keep: Elements of the source crystal, or numbers of its sites from 1 in the order of the
            file, that stay as they are.
        isostructural: Sites that are equivalent by the symmetry of the source crystal get the same
            element; else each site is filled by itself.
        neutral: Only compositions that pass SMACT (smact14).
        rank: ``reward``, what the oracle's predictions lead to expect, those with common
            oxidation states first; or ``likelihood``, the policy's own.
        width: Of the beam.
        samples: Fillings drawn beside the beam.
        seed: Of the draws.

    Raises:
        TypeError: If a target is not a number.
        ValueError: If a value is out of range, or the lists of elements contradict each other.
    """

    target_gap: tuple[float, float]
    count: int = 20
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    only: tuple[str, ...] = ()
    keep: tuple[str | int, ...] = ()
    isostructural: bool = True
    neutral: bool = True
    rank: str = "reward"
    width: int = 128
    samples: int = 256
    seed: int = 0

    def __post_init__(self) -> None:
        low, high = map(check_target_gap, self.target_gap)
        if low is None or high is None or low > high:
            raise ValueError(
                f"target_gap={self.target_gap} is no range: expected the lowest gap (eV) first, "
                "or one number twice for a point"
            )
        if high > _LARGEST_GAP_EV:
            raise ValueError(
                f"target_gap={high:g} eV is beyond all solids: expected at most "
                f"{_LARGEST_GAP_EV:g} eV; policies are trained on 0 to 6 eV above all"
            )
        for name in ("count", "width", "samples"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: expected 1 or more")
        if self.rank not in RANKINGS:
            raise ValueError(f"rank={self.rank!r} is unknown: expected {' or '.join(RANKINGS)}")
        for symbol in (*self.include, *self.exclude, *self.only):
            symbol_to_token(symbol)  # refuses what is no element, with the closest ones
        wanted = set(self.include)
        twice = {s for s in wanted if self.include.count(s) > 1}
        for clash, words in ((wanted & set(self.exclude), "excluded"), (twice, "included twice")):
            if clash:
                raise ValueError(
                    f"{sorted(clash)[0]} is to be included and {words}: expected each element in "
                    "one of the lists"
                )
        if self.only and not wanted <= set(self.only):
            raise ValueError(
                f"{sorted(wanted - set(self.only))[0]} is to be included, but only "
                f"{', '.join(self.only)} may be chosen: expected it among them"
            )
        if not self.elements.any():
            raise ValueError(
                "every element that may be chosen is excluded: expected some that are left"
            )

    @property
    def elements(self) -> NDArray[np.int8]:
        """Elements that may be chosen, int8 ``(88,)``."""
        chosen = element_mask(self.only or None)
        return chosen & ~element_mask(self.exclude) if self.exclude else chosen

    @property
    def window(self) -> tuple[float, float]:
        """Gaps (eV) that count as a hit."""
        low, high = self.target_gap
        return (low - IN_RANGE_EV, high + IN_RANGE_EV) if low == high else (low, high)

    @property
    def aims(self) -> tuple[float, ...]:
        """Targets (eV) that the policy is given: a point, or three across a range."""
        low, high = self.target_gap
        return (low,) if low == high else (low, (low + high) / 2, high)


@dataclass(frozen=True, eq=False)
class DesignProblem:
    """A crystal that lends its sites.

    Attributes:
        name: Of the crystal.
        source: The crystal as it came.
        skeletons: Its skeleton, a set of one.
    """

    name: str
    source: Structure
    skeletons: SkeletonSet

    @classmethod
    def of(cls, structure: Any, name: str | None = None) -> DesignProblem:
        """Return the problem of a crystal.

        Args:
            structure: pymatgen Structure or ASE Atoms. The dummy species X is an empty site.
            name: Defaults to the reduced formula.

        Returns:
            The crystal as a Structure and its skeleton, a set of one that is registered in this
            process.

        Raises:
            TypeError: If it is neither.
            ValueError: If it is no ordered crystal of at most 60 sites.
        """
        source = to_structure(structure)
        name = name or (source.composition.reduced_formula if len(source) else "structure")
        if len(source) > MAX_DESIGN_SITES:
            primitive = len(source.get_primitive_structure())
            smaller = f"; its primitive cell has {primitive}" if primitive < len(source) else ""
            raise ValueError(
                f"{name} has {len(source)} sites: expected at most {MAX_DESIGN_SITES}{smaller}"
            )
        cell = cell_from_structure(source, name)
        per_site = abs(np.linalg.det(cell.lattice)) / len(cell.frac_coords)
        if per_site > _LARGEST_VOLUME:
            raise ValueError(
                f"{name} has {per_site:.0f} Å^3 for each site, like a molecule in vacuum: expected "
                f"a crystal, at most {_LARGEST_VOLUME:.0f} Å^3 a site"
            )
        skeletons, _ = build_skeletons([cell], workers=1)
        skeletons.register()
        return cls(name, source, skeletons)

    @property
    def skeleton(self) -> Skeleton:
        """The skeleton."""
        skeleton: Skeleton = self.skeletons[0]
        return skeleton

    def structure(self, tokens: NDArray[np.integer]) -> Structure:
        """Return a filling in the cell and site order of the source."""
        filled = self.source.copy()
        filled.remove_oxidation_states()
        for site, rank in enumerate(self.skeleton.source_rank.tolist()):
            filled.replace(rank, ELEMENTS[int(tokens[site]) - 1])
        return filled

    def orbits(self) -> NDArray[np.int64]:
        """Return one number a site, the same for sites that the source's symmetry makes equal.

        Symmetry of the bare skeleton that exchanges different elements does not count.
        """
        skeleton = self.skeleton
        same = (skeleton.reference[skeleton.permutations] == skeleton.reference).all(axis=1)
        return skeleton.permutations[same].min(axis=0).astype(np.int64)

    def kept(self, keep: Sequence[str | int]) -> NDArray[np.int16]:
        """Return the tokens of sites that stay.

        Args:
            keep: Elements of the source by symbol, or numbers of its sites from 1 in the order of
                the file, as int or as digits.

        Returns:
            int16 ``(n_sites,)`` in the skeleton's numbering, 0 where a site is to be filled.

        Raises:
            ValueError: If the crystal has no such element or site, or nothing is left to fill.
        """
        skeleton, symbols = self.skeleton, site_symbols(self.source)
        chosen = np.zeros(skeleton.n_sites, bool)  # in the order of the file
        for what in keep:
            if isinstance(what, int) or what.isdecimal():
                if not 1 <= int(what) <= len(symbols):
                    raise ValueError(
                        f"site {what} is not in {self.name}: expected a number from 1 to "
                        f"{len(symbols)}, in the order of the file"
                    )
                chosen[int(what) - 1] = True
            elif what in symbols:
                chosen |= np.array(symbols) == what
            else:
                raise ValueError(
                    f"{what!r} cannot be kept: {self.name} holds {', '.join(sorted(set(symbols)))};"
                    " expected one of these, or the number of a site"
                )
        tokens = np.where(chosen[skeleton.source_rank], skeleton.reference, EMPTY)
        if (tokens != EMPTY).all():
            raise ValueError(
                f"all {len(symbols)} sites of {self.name} are kept: expected one or more to fill"
            )
        return tokens.astype(np.int16)


@dataclass(frozen=True, eq=False)
class Candidate:
    """A filled skeleton.

    Attributes:
        tokens: Elements in the skeleton's numbering, int16 ``(n_sites,)``.
        formula: Reduced formula, elements by electronegativity.
        charges: Oxidation states by symbol; None where the composition is not valid (smact14).
        common: Whether all of these states are common for their elements.
        novel: Whether the policy's training data hold no crystal of this formula.
        log_probability: Of the policy, the best along the searches that found it.
        predicted: What the oracle says, with standard deviations in ``details`` where it knows.
        expected_reward: Eqn (7) averaged over the predicted distribution of the gap; None where
            nothing is predicted.
        hit_probability: That the gap lies in the window, by the same distribution.
        calculated: What DFT found; None where nothing was calculated.
        relaxed: What an optional relaxation found, JSON-ready.
    """

    tokens: NDArray[np.int16]
    formula: str
    charges: dict[str, int] | None
    common: bool
    novel: bool
    log_probability: float
    predicted: Properties
    expected_reward: float | None
    hit_probability: float | None
    calculated: Properties | None = None
    relaxed: dict[str, Any] = field(default_factory=dict)


def design(
    problem: DesignProblem,
    settings: DesignSettings,
    policy: Valued,
    oracle: FillingOracle,
    known: Container[str] = (),
    *,
    conditional: bool = True,
) -> list[Candidate]:
    """Return the best candidates; no two are the same crystal.

    Args:
        problem: The skeleton.
        settings: What is asked for.
        policy: Proposes.
        oracle: Predicts.
        known: Reduced formulas of the policy's training data.
        conditional: Whether the policy takes a target; the rank has one either way.

    Returns:
        At most ``settings.count``, the best first by ``settings.rank``.

    Raises:
        ValueError: If the settings leave nothing that could be proposed.
    """
    start = problem.kept(settings.keep)
    present = {ELEMENTS[t - 1] for t in start.tolist() if t != EMPTY}
    required = [symbol_to_token(s) for s in settings.include if s not in present]
    neutral = ChargeNeutralMask(settings.elements)
    if settings.neutral and not neutral(start).any():
        raise ValueError(
            f"no neutral composition is within reach on {problem.name} with these elements: "
            "expected other --only, --exclude or --keep, or --mask elements to allow any"
        )
    common: dict[str, Any] = {
        "start": start,
        "required": required,
        "groups": problem.orbits() if settings.isostructural else None,
        "mask": neutral.rows if settings.neutral else settings.elements,
    }
    found: dict[bytes, tuple[float, NDArray[np.int16]]] = {}
    aims = settings.aims if conditional else (None,)
    for number, aim in enumerate(aims):
        share = max(1, settings.samples // len(aims))
        seed = settings.seed + number
        for candidates in (
            beam_search(policy, problem.skeletons, target_gap=aim, width=settings.width, **common),
            sample_fillings(
                policy, problem.skeletons, target_gap=aim, count=share, seed=seed, **common
            ),
        ):
            rows = zip(candidates.log_probability.tolist(), candidates.tokens, strict=True)
            for score, tokens in rows:
                name = problem.skeleton.canonical_tokens(tokens)
                if name not in found or found[name][0] < score:
                    found[name] = score, tokens
    if not found:
        raise ValueError(
            f"the search found nothing on {problem.name} that holds "
            f"{', '.join(settings.include) or 'these elements'} and is neutral: expected fewer "
            "conditions, a larger --width, or --mask elements"
        )
    fillings = [Filling(problem.skeleton, tokens) for _, tokens in found.values()]
    predictions = oracle.evaluate_fillings(fillings)
    judged = [
        _candidate(tokens, score, predicted, settings, known)
        for (score, tokens), predicted in zip(found.values(), predictions, strict=True)
    ]
    return sorted(judged, key=lambda c: _rank(c, settings.rank))[: settings.count]


def _candidate(
    tokens: NDArray[np.int16],
    log_probability: float,
    predicted: Properties,
    settings: DesignSettings,
    known: Container[str],
) -> Candidate:
    counts = formula_counts(tokens)
    charges = charge_assignment(counts)
    reward, hit = expectations(predicted, settings)
    return Candidate(
        tokens=tokens,
        formula=_written(counts),
        charges=charges,
        common=charges is not None and are_common(charges),
        novel=reduced_formula(tokens) not in known,
        log_probability=log_probability,
        predicted=predicted,
        expected_reward=reward,
        hit_probability=hit,
    )


def _written(counts: Mapping[str, int]) -> str:
    """Return a reduced formula as chemists write it: by electronegativity."""
    divisor = math.gcd(*counts.values())
    order = sorted(counts, key=lambda s: (electronegativity(s) or math.inf, s))
    return "".join(f"{s}{n if (n := counts[s] // divisor) > 1 else ''}" for s in order)


def _rank(candidate: Candidate, rank: str) -> tuple[bool, float, float]:
    """Return what candidates are sorted by: the lowest first.

    An oracle that has learned from real compounds knows little of Ca+ or of alloys: by reward,
    candidates with common oxidation states come first, those without a prediction last.
    """
    likelihood = -candidate.log_probability
    if rank == "likelihood":
        return False, likelihood, 0.0
    reward = candidate.expected_reward
    if reward is None:
        return True, math.inf, likelihood
    return not candidate.common, -reward, likelihood


_NODES, _WEIGHTS = np.polynomial.hermite_e.hermegauss(31)


def expectations(
    predicted: Properties, settings: DesignSettings
) -> tuple[float | None, float | None]:
    """Return expected reward and probability of a hit.

    The gap is 0 with the probability of a metal, and else normally distributed about the predicted
    one. A range has its distance in the place of the difference to a point.

    Args:
        predicted: With ``band_gap_std_ev`` and ``metal_probability`` in its details, as the
            surrogate has them; what is not there is 0.
        settings: What is asked for.

    Returns:
        Reward and probability; None where gap or energy is unknown.
    """
    gap, energy = predicted.band_gap_ev, predicted.formation_energy_ev_per_atom
    if predicted.status is not Status.OK or gap is None or energy is None:
        return None, None
    spread = float(predicted.details.get("band_gap_std_ev", 0.0))
    metal = float(predicted.details.get("metal_probability", 0.0))
    gaps = np.append(np.maximum(gap + spread * _NODES, 0.0), 0.0)
    weights = np.append((1.0 - metal) * _WEIGHTS / _WEIGHTS.sum(), metal)
    nearest = np.clip(gaps, *settings.target_gap)
    reward = float(FormationReward().values(0.0, energy, gaps, nearest) @ weights)
    low, high = settings.window
    if spread == 0.0:
        hit = float(low <= gap <= high)
    else:
        below_low = 0.0 if low <= 0 else _normal_cdf((low - gap) / spread)
        hit = _normal_cdf((high - gap) / spread) - below_low
    return reward, (1.0 - metal) * hit + metal * (low <= 0)


def best_by_reward(
    policy: Valued,
    oracle: FillingOracle,
    task: Task,
    target_gap: float,
    *,
    width: int = 64,
    progress: bool = False,
) -> NDArray[np.int16]:
    """Fill each skeleton with what a search likes best: a method to be judged like a rollout.

    Of a beam under the charge-neutral mask, each site filled by itself, it takes the filling whose
    predicted properties lead to expect the highest reward (:func:`expectations`), and the likeliest
    where the oracle knows none. Where no filling is neutral the beam has no mask.

    Args:
        policy: Gives the logits.
        oracle: Predicts, usually the surrogate.
        task: What to fill.
        target_gap: eV.
        width: Of the beam.
        progress: Show a progress bar on standard error.

    Returns:
        Tokens, int16 ``(len(task), max_sites)``.
    """
    settings = DesignSettings((target_gap, target_gap))
    rule = ChargeNeutralMask().rows
    tokens = np.zeros((len(task), task.skeletons.max_sites), np.int16)
    bar = tqdm(task.skeleton.tolist(), "search", unit="crystal", disable=not progress)
    for row, number in enumerate(bar):
        skeleton = task.skeletons[number]
        for mask in (rule, None):
            found = beam_search(
                policy, task.skeletons, number, target_gap=target_gap, width=width, mask=mask
            )
            if len(found):
                break
        answers = oracle.evaluate_fillings([Filling(skeleton, t) for t in found.tokens])
        rewards = [expectations(answer, settings)[0] for answer in answers]
        known = [-math.inf if reward is None else reward for reward in rewards]
        tokens[row, : skeleton.n_sites] = found.tokens[int(np.argmax(known))]
    return tokens


def _normal_cdf(x: float) -> float:
    return 0.5 * math.erfc(-x / math.sqrt(2.0))
