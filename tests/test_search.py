"""Beam search and sampling, against full enumeration."""

from __future__ import annotations

import numpy as np
import pytest
from made_crystals import NAMES

from crystal_gym.charge_masks import ChargeNeutralMask
from crystal_gym.elements import ELEMENTS, N_ELEMENTS, element_mask, formula_counts
from crystal_gym.envs.observations import COMPACT_HEADER
from crystal_gym.evaluation.search import beam_search, sample_fillings
from crystal_gym.validity import smact_valid

TOKENS = len(COMPACT_HEADER)


class Noise:
    """Logits that depend on the site in focus and on all that is filled."""

    def __init__(self, scale=2.0):
        generator = np.random.default_rng(0)
        self._of_site = generator.normal(size=(60, N_ELEMENTS)) * scale
        self._of_pair = generator.normal(size=(60, N_ELEMENTS + 1, N_ELEMENTS)) * scale
        self.targets = set()

    def values(self, observations):
        focus = observations[:, COMPACT_HEADER.index("focus")].astype(int)
        self.targets |= set(observations[:, COMPACT_HEADER.index("target")].tolist())
        logits = self._of_site[focus]
        for site, tokens in enumerate(observations[:, TOKENS:].T.astype(int)):
            filled = tokens > 0
            logits[filled] += self._of_pair[site, tokens[filled]]
        return logits.astype(np.float32)


def two_sites(made_set):
    return next(i for i in range(len(made_set)) if made_set[i].n_sites == 2)


def everything(policy, made_set, number, allowed, target=None):
    """Return every filling by hand: name, highest log-probability of equal ones, their sum."""
    skeleton = made_set[number]
    width = made_set.max_sites
    first, second = [int(s) for s in _order(skeleton)]
    row = np.zeros((1, TOKENS + width), np.float32)
    row[0, 1] = number

    def logits(tokens, focus):
        row[0, TOKENS:] = 0
        row[0, TOKENS : TOKENS + 2] = tokens
        row[0, COMPACT_HEADER.index("focus")] = focus
        values = np.full(N_ELEMENTS, -np.inf)
        values[allowed] = policy.values(row)[0][allowed]
        return values - np.logaddexp.reduce(values)

    found = {}
    start = logits([0, 0], first)
    for a in allowed:
        tokens = [0, 0]
        tokens[first] = a + 1
        after = logits(tokens, second)
        for b in allowed:
            tokens[second] = b + 1
            name = skeleton.canonical_tokens(np.array(tokens))
            found.setdefault(name, []).append(start[a] + after[b])
    rows = [(name, max(p), np.exp(p).sum()) for name, p in found.items()]
    assert sum(total for _, _, total in rows) == pytest.approx(1.0)
    return sorted(rows, key=lambda row: -row[1])


def _order(skeleton):
    from crystal_gym.datasets.trajectories import start_sites
    from crystal_gym.graphs import breadth_first_order

    return breadth_first_order(skeleton.neighbours, int(start_sites(skeleton, 1)[0]))


def test_a_wide_beam_is_full_enumeration_on_two_sites(made_set):
    number, policy = two_sites(made_set), Noise()
    expected = everything(policy, made_set, number, np.arange(N_ELEMENTS))
    found = beam_search(policy, made_set, number, target_gap=None, width=N_ELEMENTS**2)
    skeleton = made_set[number]
    assert len(found) == len(expected)
    names = [skeleton.canonical_tokens(tokens) for tokens in found.tokens]
    assert names == [name for name, _, _ in expected]
    np.testing.assert_allclose(found.log_probability, [p for _, p, _ in expected], atol=1e-5)


def test_a_beam_as_wide_as_the_elements_finds_the_best(made_set):
    number, policy = two_sites(made_set), Noise()
    found = beam_search(policy, made_set, number, target_gap=None, width=N_ELEMENTS)
    name, probability, _ = everything(policy, made_set, number, np.arange(N_ELEMENTS))[0]
    assert made_set[number].canonical_tokens(found.tokens[0]) == name
    assert found.log_probability[0] == pytest.approx(probability, abs=1e-5)


def test_one_beam_is_the_greedy_policy(made_set):
    policy = Noise()
    for number in range(len(made_set)):
        found = beam_search(policy, made_set, number, target_gap=2.5, width=1)
        tokens = np.zeros((1, made_set.max_sites), np.int16)
        for site in _order(made_set[number]):
            row = np.zeros((1, TOKENS + made_set.max_sites), np.float32)
            row[0, TOKENS:], row[0, 2] = tokens[0], site
            tokens[0, site] = policy.values(row)[0].argmax() + 1
        np.testing.assert_array_equal(found.tokens[0], tokens[0, : made_set[number].n_sites])
    assert 2.5 in policy.targets


def test_masks_fixed_sites_and_symmetry(made_set):
    number = NAMES.index("rocksalt")
    skeleton = made_set[number]
    allowed = element_mask(["Na", "Mg", "Cl", "O"])
    start = np.zeros(skeleton.n_sites, np.int16)
    start[0] = ELEMENTS.index("Mg") + 1
    found = beam_search(Noise(), made_set, number, target_gap=None, mask=allowed, start=start)
    assert len(found) > 1
    assert (found.tokens[:, 0] == start[0]).all()
    assert set(np.unique(found.tokens)) <= set((np.flatnonzero(allowed) + 1).tolist())
    names = [skeleton.canonical_tokens(tokens) for tokens in found.tokens]
    assert len(set(names)) == len(names)
    assert (np.diff(found.log_probability) <= 0).all()


@pytest.mark.parametrize("search", [beam_search, sample_fillings])
def test_with_the_neutral_mask_every_candidate_is_valid(made_set, search):
    rule = ChargeNeutralMask(element_mask(["Na", "Mg", "Al", "Cl", "O", "Ne"])).rows
    for number in range(len(made_set)):
        found = search(Noise(), made_set, number, target_gap=1.0, mask=rule)
        assert len(found) > 0
        for tokens in found.tokens:
            assert smact_valid(formula_counts(tokens))


def test_an_infeasible_mask_leaves_nothing(made_set):
    number = two_sites(made_set)
    start = np.array([ELEMENTS.index("He") + 1, 0])
    rule = ChargeNeutralMask(element_mask(["Na", "Cl"])).rows
    for search in (beam_search, sample_fillings):
        found = search(Noise(), made_set, number, target_gap=None, mask=rule, start=start)
        assert len(found) == 0
        assert found.tokens.shape == (0, 2)


def test_draws_follow_the_probabilities(made_set):
    number, policy = two_sites(made_set), Noise(scale=1.0)
    allowed = element_mask(["Na", "Cl", "O"])
    expected = everything(policy, made_set, number, np.flatnonzero(allowed))
    skeleton, counts = made_set[number], {}
    for seed in range(3000):
        found = sample_fillings(
            policy, made_set, number, target_gap=None, count=1, seed=seed, mask=allowed
        )
        name = skeleton.canonical_tokens(found.tokens[0])
        counts[name] = counts.get(name, 0) + 1
    for name, _, p in expected:
        error = np.sqrt(p * (1 - p) / 3000)
        assert counts.get(name, 0) / 3000 == pytest.approx(p, abs=4.5 * error)
    cold = sample_fillings(
        policy, made_set, number, target_gap=None, temperature=1e-4, mask=allowed
    )
    assert len(cold) == 1
    again = [
        sample_fillings(policy, made_set, number, target_gap=None, seed=5).tokens for _ in range(2)
    ]
    np.testing.assert_array_equal(*again)


@pytest.mark.parametrize(
    ("search", "settings", "message"),
    [
        (beam_search, {"width": 0}, "width=0 is no beam"),
        (beam_search, {"start": [1]}, r"start=\[1\] does not fit"),
        (sample_fillings, {"start": [0, 99]}, "expected 2 tokens from 0 .empty. to 88"),
        (sample_fillings, {"count": 0}, "count=0"),
        (sample_fillings, {"temperature": 0.0}, "a temperature above 0"),
    ],
)
def test_wrong_settings_are_explained(made_set, search, settings, message):
    with pytest.raises(ValueError, match=message):
        search(Noise(), made_set, two_sites(made_set), target_gap=None, **settings)


def test_required_elements_occur_and_cost_nothing_else(made_set):
    number, policy = two_sites(made_set), Noise()
    wanted = [ELEMENTS.index("Mg") + 1]
    found = beam_search(
        policy, made_set, number, target_gap=None, width=N_ELEMENTS**2, required=wanted
    )
    skeleton = made_set[number]
    expected = {
        skeleton.canonical_tokens(np.array([wanted[0], token]))
        for token in range(1, N_ELEMENTS + 1)
    } | {skeleton.canonical_tokens(np.array([token, wanted[0]])) for token in range(1, 89)}
    assert {skeleton.canonical_tokens(tokens) for tokens in found.tokens} == expected
    for search in (beam_search, sample_fillings):
        for tokens in search(policy, made_set, number, target_gap=None, required=wanted).tokens:
            assert wanted[0] in tokens
    with pytest.raises(ValueError, match="3 required elements do not fit on 2 empty sites"):
        beam_search(policy, made_set, number, target_gap=None, required=[1, 2, 3])


@pytest.mark.parametrize("search", [beam_search, sample_fillings])
def test_groups_are_filled_together_and_stay_neutral(made_set, search):
    number = NAMES.index("perovskite")
    n_sites = made_set[number].n_sites
    groups = np.arange(n_sites) % 2
    rule = ChargeNeutralMask(element_mask(["Na", "Mg", "Al", "Cl", "O", "Ti"])).rows
    found = search(Noise(), made_set, number, target_gap=None, groups=groups, mask=rule)
    assert len(found) > 2
    for tokens in found.tokens:
        assert len(set(tokens[groups == 0])) == len(set(tokens[groups == 1])) == 1
        assert smact_valid(formula_counts(tokens))
    one = search(Noise(), made_set, number, target_gap=None, groups=np.zeros(n_sites), mask=rule)
    assert all(len(set(tokens)) == 1 for tokens in one.tokens)
    with pytest.raises(ValueError, match="expected one number for each of its 5 sites"):
        search(Noise(), made_set, number, target_gap=None, groups=[0])
