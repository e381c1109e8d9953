"""Compounds on the skeleton of a crystal: what is asked for is what comes out."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from ase import Atoms
from made_crystals import perovskite, rocksalt, wurtzite
from pymatgen.core import Composition, Lattice, Structure
from scipy import stats
from test_search import Noise

from crystal_gym.design import DesignProblem, DesignSettings, design, expectations
from crystal_gym.elements import ELEMENTS, EMPTY, formula_counts, symbol_to_token
from crystal_gym.known_formulas import KnownFormulas
from crystal_gym.oracles import Properties, Status
from crystal_gym.rewards import FormationReward
from crystal_gym.structures import site_symbols
from crystal_gym.validity import smact_valid


class MeanNumber:
    """Says of every filling a gap and an energy that its tokens decide; knows no iodine."""

    def __init__(self, spread=0.4):
        self.spread = spread

    def evaluate(self, structures):
        raise NotImplementedError

    def evaluate_fillings(self, fillings):
        return [self._answer(f.tokens) for f in fillings]

    def _answer(self, tokens):
        if symbol_to_token("I") in tokens:
            return Properties(status=Status.UNKNOWN, provenance="no iodine")
        return Properties(
            band_gap_ev=float(np.mean(tokens) / 12),
            formation_energy_ev_per_atom=-float(tokens[0] / 50),
            provenance="made up",
            details={"band_gap_std_ev": self.spread},
        )


def settings(gap=3.0, **changes):
    return DesignSettings(target_gap=(gap, gap), **{"width": 40, "samples": 40, **changes})


def found(structure, oracle=None, known=(), **changes):
    problem = DesignProblem.of(structure)
    return problem, design(problem, settings(**changes), Noise(), oracle or MeanNumber(), known)


def symbols_of(candidate):
    return [ELEMENTS[t - 1] for t in candidate.tokens]


def test_candidates_are_valid_unique_and_sorted():
    problem, candidates = found(wurtzite(), isostructural=False)
    assert len(candidates) == 20
    names = {problem.skeleton.canonical_tokens(c.tokens) for c in candidates}
    assert len(names) == 20
    for common in (True, False):
        some = [c.expected_reward for c in candidates if c.common is common]
        rewards = [r for r in some if r is not None]
        assert rewards == sorted(rewards, reverse=True)
    common = [c.common for c in candidates if c.expected_reward is not None]
    assert common == sorted(common, reverse=True)
    for candidate in candidates:
        assert smact_valid(formula_counts(candidate.tokens))
        charges = candidate.charges
        assert sum(charges[s] for s in symbols_of(candidate)) == 0


def test_what_cannot_be_predicted_comes_last_and_is_kept():
    _, candidates = found(rocksalt(), only=("Na", "K", "Cl", "I"), count=100)
    unknown = [c.expected_reward is None for c in candidates]
    assert any(unknown)
    assert unknown == sorted(unknown)
    for candidate in candidates:
        assert (candidate.predicted.status is Status.UNKNOWN) == ("I" in symbols_of(candidate))
        assert (candidate.hit_probability is None) == ("I" in symbols_of(candidate))


def test_likelihood_is_another_ranking():
    _, by_reward = found(wurtzite(), isostructural=False)
    _, candidates = found(wurtzite(), isostructural=False, rank="likelihood")
    likelihood = [c.log_probability for c in candidates]
    assert likelihood == sorted(likelihood, reverse=True)
    assert likelihood != [c.log_probability for c in by_reward]


@pytest.mark.parametrize("isostructural", [True, False])
def test_lists_of_elements_and_kept_sites(isostructural):
    structure = perovskite()
    common = {"isostructural": isostructural, "count": 200}
    _, candidates = found(structure, include=("Ba",), exclude=("O", "Pb"), **common)
    assert candidates
    for candidate in candidates:
        assert "Ba" in symbols_of(candidate)
        assert not {"O", "Pb"} & set(symbols_of(candidate))
    _, candidates = found(structure, only=("Li", "Ca", "Ge", "O", "F"), **common)
    assert candidates
    assert {s for c in candidates for s in symbols_of(c)} <= {"Li", "Ca", "Ge", "O", "F"}
    problem, candidates = found(structure, keep=("O",), **common)
    source = site_symbols(structure)
    changed = set()
    for candidate in candidates:
        filled = site_symbols(problem.structure(candidate.tokens))
        for old, new in zip(source, filled, strict=True):
            if old == "O":
                assert new == "O"
            else:
                changed.add(new)
    assert len(changed) > 3
    number = source.index("Ti") + 1
    problem, candidates = found(structure, keep=(str(number),), **common)
    for candidate in candidates:
        assert site_symbols(problem.structure(candidate.tokens))[number - 1] == "Ti"


def test_an_included_element_that_is_kept_needs_no_other_site():
    _, candidates = found(perovskite(), keep=("O", "Ti"), include=("Ti",))
    assert any(symbols_of(c).count("Ti") == 1 for c in candidates)


def test_equivalent_sites_get_the_same_element():
    structure = perovskite()
    problem, candidates = found(structure, count=100)
    source = np.array(site_symbols(structure))
    for candidate in candidates:
        filled = np.array(site_symbols(problem.structure(candidate.tokens)))
        for symbol in set(source):
            assert len(set(filled[source == symbol])) == 1
    _, free = found(structure, isostructural=False, count=100)
    assert any(len(set(symbols_of(c))) > 3 for c in free)
    # The bare skeleton of rock salt has one kind of site, the crystal has two.
    assert len(set(DesignProblem.of(rocksalt()).orbits().tolist())) == 2
    empty = rocksalt()
    empty.replace_species({"Na": "X", "Cl": "X"})
    assert len(set(DesignProblem.of(empty).orbits().tolist())) == 1


def test_structures_keep_cell_and_order_of_the_source():
    structure = perovskite()
    structure = Structure.from_sites(list(structure)[::-1])
    problem = DesignProblem.of(structure)
    filled = problem.structure(problem.skeleton.reference)
    np.testing.assert_allclose(filled.lattice.matrix, structure.lattice.matrix)
    np.testing.assert_allclose(filled.frac_coords, structure.frac_coords)
    assert site_symbols(filled) == site_symbols(structure)


def test_expectations_against_draws():
    oracle = MeanNumber(spread=0.7)
    _, candidates = found(wurtzite(), oracle, isostructural=False)
    draws = np.random.default_rng(0).normal(size=200_000)
    for candidate in candidates[:3]:
        gaps = np.maximum(candidate.predicted.band_gap_ev + 0.7 * draws, 0.0)
        energy = candidate.predicted.formation_energy_ev_per_atom
        rewards = FormationReward().values(0.0, energy, gaps, 3.0)
        assert candidate.expected_reward == pytest.approx(rewards.mean(), abs=0.02)
        hits = (gaps >= 2.75) & (gaps <= 3.25)
        assert candidate.hit_probability == pytest.approx(hits.mean(), abs=0.005)
        normal = stats.norm(candidate.predicted.band_gap_ev, 0.7)
        assert candidate.hit_probability == pytest.approx(normal.cdf(3.25) - normal.cdf(2.75))


@pytest.mark.parametrize("target", [(3.0, 3.0), (0.0, 1.0), (2.0, 4.0)], ids=str)
def test_what_may_be_a_metal_is_expected_to_be_one_as_often(target):
    generator = np.random.default_rng(0)
    metal = generator.random(400_000) < 0.3
    gaps = np.where(metal, 0.0, np.maximum(generator.normal(2.8, 0.5, len(metal)), 0.0))
    rewards = FormationReward().values(0.0, -1.0, gaps, np.clip(gaps, *target))
    details = {"band_gap_std_ev": 0.5, "metal_probability": 0.3}
    predicted = Properties(-10.0, -1.0, 2.8, details=details)
    settings = DesignSettings(target)
    low, high = settings.window
    reward, hit = expectations(predicted, settings)
    assert reward == pytest.approx(rewards.mean(), abs=0.02)
    assert hit == pytest.approx(((gaps >= low) & (gaps <= high)).mean(), abs=0.005)


def test_a_range_asks_for_several_targets_and_counts_its_inside():
    policy, problem = Noise(), DesignProblem.of(wurtzite())
    wide = DesignSettings((1.0, 2.0), width=20, samples=20, isostructural=False)
    candidates = design(problem, wide, policy, MeanNumber(0.0))
    assert {1.0, 1.5, 2.0} <= policy.targets
    for candidate in candidates:
        gap = candidate.predicted.band_gap_ev
        assert candidate.hit_probability == float(1.0 <= gap <= 2.0)
        energy = np.exp(-candidate.predicted.formation_energy_ev_per_atom / 5)
        outside = max(1.0 - gap, 0.0, gap - 2.0)
        expected = energy + 10 * np.exp(-(outside**2) / 3)
        assert candidate.expected_reward == pytest.approx(expected)


def test_an_unconditional_policy_is_given_no_target():
    policy, problem = Noise(), DesignProblem.of(wurtzite())
    candidates = design(problem, settings(), policy, MeanNumber(), conditional=False)
    assert policy.targets == {0.0}  # the column of a row without a target
    assert all(c.hit_probability is not None for c in candidates)


def test_novelty_is_that_of_the_training_data():
    _, candidates = found(rocksalt(), only=("Na", "K", "Cl", "F"), known=KnownFormulas.of(["NaCl"]))
    novel = {Composition(c.formula).reduced_formula: c.novel for c in candidates}
    assert not novel.pop("NaCl")
    assert novel
    assert all(novel.values())


def test_the_bundled_formulas_hold_what_everyone_knows():
    known = KnownFormulas.bundled()
    assert 7_000 < len(known) < 8_000
    assert "MgO" in known
    assert "NaXe7" not in known
    assert 3 not in known
    assert "NaCl" not in KnownFormulas.of([])


def test_the_same_seed_gives_the_same_candidates():
    tokens = [
        np.stack([c.tokens for c in found(wurtzite(), isostructural=False, seed=seed)[1]])
        for seed in (0, 0, 1)
    ]
    np.testing.assert_array_equal(tokens[0], tokens[1])
    assert not np.array_equal(tokens[0], tokens[2])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target_gap": (3.0, 1.0)}, "lowest gap .eV. first"),
        ({"target_gap": (-1.0, -1.0)}, "expected a number from 0"),
        ({"target_gap": (99.0, 99.0)}, "beyond all solids: expected at most 20 eV"),
        ({"count": 0}, "count=0: expected 1 or more"),
        ({"rank": "beauty"}, "expected reward or likelihood"),
        ({"include": ("Zz",)}, "'Zz'"),
        ({"include": ("O",), "exclude": ("O",)}, "O is to be included and excluded"),
        ({"include": ("O", "O")}, "O is to be included and included twice"),
        ({"include": ("O",), "only": ("Na",)}, "O is to be included, but only Na may be chosen"),
        ({"only": ("O",), "exclude": ("O",)}, "every element that may be chosen is excluded"),
    ],
)
def test_contradictions_are_explained(changes, message):
    with pytest.raises(ValueError, match=message):
        DesignSettings(**{"target_gap": (3.0, 3.0), **changes})


def test_what_cannot_be_done_on_a_crystal_is_explained():
    structure = perovskite()
    for changes, message in (
        ({"keep": ("Fe",)}, "'Fe' cannot be kept: .* holds"),
        ({"keep": ("9",)}, "site 9 is not in .*: expected a number from 1 to 5"),
        ({"keep": tuple(set(site_symbols(structure)))}, "all 5 sites of .* are kept"),
        ({"only": ("Ne",), "keep": ("O",)}, "no neutral composition is within reach"),
        ({"include": ("Li", "Na", "K", "Rb", "Cs", "F")}, "6 required elements do not fit"),
        ({"include": ("He",), "only": ("He", "Al", "Ca"), "keep": ("O",)}, "found nothing on"),
    ):
        with pytest.raises(ValueError, match=message):
            found(structure, **changes)


def big(n):
    return rocksalt().copy() * (n, n, n)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: big(4), "128 sites: expected at most 60; its primitive cell has 2"),
        (
            lambda: Structure(Lattice.cubic(4), [{"Na": 0.5, "K": 0.5}], [[0, 0, 0]]),
            "disordered",
        ),
        (
            lambda: Structure(Lattice.cubic(20), ["C", "O"], [[0, 0, 0], [0, 0, 0.0565]]),
            "like a molecule in vacuum",
        ),
        (lambda: Atoms("CO", [[0, 0, 0], [0, 0, 1.1]], cell=[9, 9, 9]), "not periodic"),
        (lambda: Structure(Lattice.cubic(4), ["Po"], [[0, 0, 0]]), "Po"),
    ],
)
def test_what_is_no_crystal_is_explained(make, message):
    with pytest.raises(ValueError, match=message):
        DesignProblem.of(make())


def test_sixty_sites_are_possible():
    _, candidates = found(big(3), width=8, samples=4)
    assert all(len(c.tokens) == 54 for c in candidates)
    assert all((c.tokens != EMPTY).all() for c in candidates)


def test_every_pair_on_two_sites_is_found():
    allowed = ("Li", "Mg", "Al", "F", "O", "N")
    _, candidates = found(rocksalt(), only=allowed, count=1000, width=36, isostructural=False)
    expected = {
        frozenset((a, b))
        for a, b in itertools.combinations_with_replacement(allowed, 2)
        if smact_valid(formula_counts(np.array([symbol_to_token(a), symbol_to_token(b)])))
    }
    assert {frozenset(symbols_of(c)) for c in candidates} == expected
    assert len(candidates) == len(expected)
