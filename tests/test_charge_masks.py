"""Masks that keep a valid composition within reach, against plain enumeration."""

from __future__ import annotations

import itertools
import random

import gymnasium as gym
import numpy as np
import pytest

import crystal_gym.charge_masks as C
from crystal_gym.charge_masks import ChargeNeutralMask
from crystal_gym.elements import ELEMENTS, N_ELEMENTS, element_mask, formula_counts, symbol_to_token
from crystal_gym.evaluation import RandomPolicy, Task, rollout
from crystal_gym.evaluation.metrics import validity
from crystal_gym.sets import load_skeletons
from crystal_gym.validity import smact_valid


def tokens_of(*symbols):
    return [symbol_to_token(symbol) for symbol in symbols]


def enumerated(palette, filled, empty):
    """Try every choice for the empty sites."""
    mask = np.zeros(N_ELEMENTS, np.int8)
    for rest in itertools.combinations_with_replacement(palette, empty):
        if smact_valid(formula_counts(np.array([*filled, *rest]))):
            mask[np.array(rest) - 1] = 1
    return mask


def random_cases(count, palettes, sites):
    generator = random.Random(0)
    for _ in range(count):
        palette = generator.sample(range(1, N_ELEMENTS + 1), generator.randint(*palettes))
        n_sites = generator.randint(*sites)
        filled = generator.choices(palette, k=generator.randint(0, n_sites - 1))
        yield palette, filled, n_sites


@pytest.mark.parametrize(("palettes", "sites"), [((1, 6), (1, 6)), ((20, 40), (2, 3))])
def test_masks_are_those_of_enumeration(palettes, sites):
    seen = set()
    for palette, filled, n_sites in random_cases(250, palettes, sites):
        chosen = element_mask([ELEMENTS[token - 1] for token in palette])
        empty = n_sites - len(filled)
        found = ChargeNeutralMask(chosen)([*filled, *[0] * empty])
        expected = enumerated(palette, filled, empty)
        np.testing.assert_array_equal(found, expected, err_msg=f"{palette} {filled} {n_sites}")
        seen.add(0 if not expected.any() else (1 if expected.sum() == chosen.sum() else 2))
    assert seen == {0, 1, 2}  # nothing, everything, something is allowed


def test_all_elements_on_the_last_sites_against_enumeration():
    everything = range(1, N_ELEMENTS + 1)
    mask = ChargeNeutralMask()
    for filled in (["O", "Na"], ["O", "O", "O", "Al"], ["Cl", "K", "K"], ["Fe", "Cu"], ["Xe", "O"]):
        for empty in (1, 2):
            tokens = tokens_of(*filled)
            expected = enumerated(everything, tokens, empty)
            np.testing.assert_array_equal(mask([*tokens, *[0] * empty]), expected)


def test_an_element_keeps_its_state_on_new_sites():
    """Eu(2+)2 Eu(3+) F7 would be neutral, but one element has one state."""
    palette = tokens_of("Eu", "Ba", "F")
    mask = ChargeNeutralMask(element_mask(["Eu", "Ba", "F"]))
    filled = tokens_of("Eu", "Eu")
    found = mask([*filled, *[0] * 8])
    np.testing.assert_array_equal(found, enumerated(palette, filled, 8))
    assert not found[ELEMENTS.index("F")]


def test_shared_givers_are_not_used_twice():
    """Sodium alone can give +1: it cannot give anything else on another site."""
    assert C._have_different_ones([0b01, 0b11])
    assert C._have_different_ones([0b001, 0b111, 0b010])
    assert not C._have_different_ones([0b01, 0b11, 0b10])
    assert C._states_to_spare({1: 0b11, 2: 0b1111, 3: 0b11}, 0) == (1, 2)
    assert C._states_to_spare({1: 0b11, 2: 0b1111}, 0b01) == (2,)


def test_the_short_way_and_the_long_way_agree(monkeypatch):
    cases = [
        (tokens_of("O", "O", "Ti"), 4),
        (tokens_of("S", "P"), 5),
        (tokens_of("F", "Si", "Li"), 3),
    ]
    short = [ChargeNeutralMask()([*filled, *[0] * empty]) for filled, empty in cases]
    monkeypatch.setattr(C, "_have_different_ones", lambda _: False)
    monkeypatch.setattr(C, "_states_to_spare", lambda *_: ())
    for (filled, empty), expected in zip(cases, short, strict=True):
        np.testing.assert_array_equal(ChargeNeutralMask()([*filled, *[0] * empty]), expected)


def test_random_choices_within_the_mask_are_always_valid():
    skeletons = load_skeletons("mini")
    task = Task.of_skeletons(skeletons)
    free = rollout(RandomPolicy(seed=0), task, 3.0)
    masked = rollout(RandomPolicy(seed=0), task, 3.0, action_mask=ChargeNeutralMask().rows)
    assert validity(free) < 0.9
    assert validity(masked) == 1.0


def test_the_environment_offers_only_what_can_be_completed():
    env = gym.make(
        "CrystalFill-v0",
        target_gap=3.0,
        mask="charge_neutral",
        elements=["Na", "Mg", "Al", "O", "F", "He"],
    ).unwrapped
    for seed in range(40):
        _, info = env.reset(seed=seed)
        terminated = False
        while not terminated:
            action = env.action_space.sample(info["action_mask"])
            _, _, terminated, _, info = env.step(action)
        assert smact_valid(formula_counts(env._state.tokens))


def test_an_element_that_ruins_everything_is_refused():
    env = gym.make("CrystalFill-v0", mask="charge_neutral").unwrapped
    env.reset(seed=0, options={"skeleton": 0})
    env.step(ELEMENTS.index("O"))
    with pytest.raises(ValueError, match=r"action 1 \(He\) is masked here"):
        env.step(ELEMENTS.index("He"))


@pytest.mark.parametrize(
    ("tokens", "message"),
    [([1, 2], "0 of 2 sites are empty"), ([0] * 257, "257 of 257 sites are empty")],
)
def test_what_is_no_partial_filling_is_refused(tokens, message):
    with pytest.raises(ValueError, match=message):
        ChargeNeutralMask()(tokens)


def test_masks_cannot_be_changed_by_their_users():
    mask = ChargeNeutralMask()
    with pytest.raises(ValueError, match="read-only"):
        mask([0, 0])[3] = 0


def test_several_sites_at_once_against_enumeration():
    seen = set()
    for palette, filled, n_sites in random_cases(150, (1, 6), (2, 6)):
        empty = n_sites - len(filled)
        chosen = element_mask([ELEMENTS[token - 1] for token in palette])
        for at_once in range(2, empty + 1):
            expected = np.zeros(N_ELEMENTS, np.int8)
            for token in palette:
                for rest in itertools.combinations_with_replacement(palette, empty - at_once):
                    crystal = [*filled, *[token] * at_once, *rest]
                    expected[token - 1] |= smact_valid(formula_counts(np.array(crystal)))
            state = [*filled, *[0] * empty]
            np.testing.assert_array_equal(ChargeNeutralMask(chosen)(state, at_once), expected)
            seen.add(bool(expected.any()))
    assert seen == {True, False}
    with pytest.raises(ValueError, match="1 of 2 sites are empty: expected at least 2"):
        ChargeNeutralMask()([1, 0], 2)
