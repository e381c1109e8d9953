"""`crystal_gym.evaluation.metrics` and `baselines` against counts by hand."""

import numpy as np
import pytest
from made_crystals import NAMES, tokens_of

from crystal_gym.elements import CLASS_NAMES, ELEMENT_CLASS, ELEMENTS, N_ELEMENTS
from crystal_gym.evaluation import MajorityPolicy, RandomPolicy, score, text_table
from crystal_gym.evaluation.metrics import (
    accuracy,
    compositions,
    exact_match,
    novelty,
    similarity,
    validity,
)
from crystal_gym.evaluation.rollout import Task


def rows(*crystals):
    width = max(len(c) for c in crystals)
    table = np.zeros((len(crystals), width), dtype=np.int16)
    for row, symbols in enumerate(crystals):
        table[row, : len(symbols)] = tokens_of(symbols)
    return table


REFERENCE = rows(["Na", "Cl"], ["Sr", "Ti", "O", "O", "O"], ["Li", "O", "Li"])


def test_accuracy_by_hand():
    tokens = rows(["Na", "F"], ["Sr", "Zr", "O", "S", "O"], ["Li", "O", "K"])
    assert accuracy(tokens, REFERENCE) == 6 / 10


def test_similarity_by_hand():
    # Br is a halogen, Zr a transition metal, S a nonmetal, K an alkali metal; Ba not one.
    tokens = rows(["Na", "Br"], ["Sr", "Zr", "O", "S", "O"], ["K", "O", "Ba"])
    assert similarity(tokens, REFERENCE) == 9 / 10


def class_of(token):
    return CLASS_NAMES[ELEMENT_CLASS[token - 1]]


def test_accuracy_and_similarity_are_those_of_a_count_site_by_site():
    generator = np.random.default_rng(3)
    reference = generator.integers(1, N_ELEMENTS + 1, (40, 8))
    reference[generator.random((40, 8)) < 0.3] = 0
    tokens = np.where(
        generator.random((40, 8)) < 0.4, reference, generator.integers(1, 89, (40, 8))
    )
    tokens = np.where(reference == 0, 0, tokens)
    pairs = [(int(t), int(r)) for t, r in zip(tokens.flat, reference.flat, strict=True) if r]
    assert accuracy(tokens, reference) == pytest.approx(
        sum(t == r for t, r in pairs) / len(pairs), abs=1e-15
    )
    assert similarity(tokens, reference) == pytest.approx(
        sum(class_of(t) == class_of(r) for t, r in pairs) / len(pairs), abs=1e-15
    )


def test_an_empty_site_is_a_miss():
    tokens = REFERENCE.copy()
    tokens[0, 0] = 0
    assert accuracy(tokens, REFERENCE) == similarity(tokens, REFERENCE) == 9 / 10


def test_perfect_crystals_score_one():
    assert accuracy(REFERENCE, REFERENCE) == similarity(REFERENCE, REFERENCE) == 1.0


def test_different_shapes_are_refused():
    with pytest.raises(ValueError, match=r"shape \(3, 5\) cannot be compared .* \(2, 5\)"):
        accuracy(REFERENCE, REFERENCE[:2])


def test_a_reference_without_elements_is_refused():
    with pytest.raises(ValueError, match="the reference holds no elements"):
        similarity(REFERENCE, np.zeros_like(REFERENCE))


# -- exact match --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def task(made_set):
    return Task.of_skeletons(made_set)


def test_the_reference_matches_itself(task):
    assert exact_match(task.reference, task) == 1.0


def test_relabelled_equivalent_sites_match(task, made_set):
    tokens = task.reference.copy()
    for row, skeleton in enumerate(made_set):
        n_sites = skeleton.n_sites
        tokens[row, :n_sites] = tokens[row, :n_sites][skeleton.permutations[-1]]
    assert not np.array_equal(tokens, task.reference)
    assert exact_match(tokens, task) == 1.0


def test_a_swap_of_inequivalent_sites_does_not_match(task):
    tokens = task.reference.copy()
    row = NAMES.index("triclinic")
    tokens[row, [0, 1]] = tokens[row, [1, 0]]
    assert exact_match(tokens, task) == (len(task) - 1) / len(task)


def test_a_wrong_element_does_not_match(task):
    tokens = task.reference.copy()
    tokens[0, 0] = tokens_of(["Rb"])[0]
    assert exact_match(tokens, task) == (len(task) - 1) / len(task)


# -- compositions -------------------------------------------------------------------------------


def test_compositions_are_reduced_formulas():
    assert compositions(rows(["Na", "Cl", "Na", "Cl"], ["O", "Ti", "O"])) == {"NaCl", "TiO2"}


def test_novelty_is_the_share_of_unknown_formulas():
    tokens = rows(["Na", "Cl"], ["Cl", "Na", "Cl", "Na"], ["K", "Cl"], ["Na", "Cl", "Cl"])
    assert novelty(tokens, compositions(rows(["Na", "Cl"]))) == 2 / 4


@pytest.mark.parametrize(
    ("symbols", "valid"),
    [
        ("Na Cl", True),
        ("Mg O", True),
        ("Ti O O", True),
        ("Ca F F", True),
        ("Si Si", True),  # a single element
        ("Na Mg", True),  # an alloy of metals
        ("Na Cl Cl", False),  # charges do not add up
        ("Na F F", False),
        ("Xe Kr", False),  # no oxidation states
        ("O O Na F", False),
    ],
)
def test_smact_validity_of_known_compositions(symbols, valid):
    assert validity(rows(symbols.split())) == valid


def test_validity_does_not_depend_on_the_number_of_formula_units():
    for symbols in (["Na", "Cl"], ["Na", "Cl", "Cl"]):
        assert validity(rows(symbols)) == validity(rows(symbols * 3))


def test_validity_is_the_share_of_valid_crystals():
    assert validity(rows(["Na", "Cl"], ["Na", "Cl", "Cl"], ["Mg", "O"], ["Xe", "Kr"])) == 2 / 4


def test_an_empty_crystal_has_no_composition():
    with pytest.raises(ValueError, match="is no composition: expected at least one atom"):
        validity(np.zeros((1, 4), dtype=np.int16))


@pytest.mark.data
def test_most_real_validation_crystals_are_valid(val_rows, val_labels):
    from made_crystals import species_in

    # FACTS: 96.1% of all 2,484 (smact14); every tenth here.
    crystals = [species_in(val_rows[x.position].cif) for x in val_labels[::10]]
    assert 0.93 < validity(rows(*crystals)) < 0.99


# -- scores and baselines -----------------------------------------------------------------------


def test_scores_are_the_single_measures(task):
    tokens = task.reference.copy()
    tokens[0, 0] = tokens_of(["Rb"])[0]
    scores = score(tokens, task, {"NaCl"})
    assert scores.accuracy == accuracy(tokens, task.reference)
    assert scores.similarity == similarity(tokens, task.reference)
    assert scores.validity == validity(tokens)
    assert scores.novelty == novelty(tokens, {"NaCl"})
    assert scores.exact_match == exact_match(tokens, task)


def test_the_table_shows_per_cent(task):
    text = text_table({"true": score(task.reference, task, set())})
    head, _, line = text.splitlines()
    assert [cell.strip() for cell in head.split("|")[1:4]] == ["policy", "accuracy", "similarity"]
    assert [cell.strip() for cell in line.split("|")[1:4]] == ["true", "100.0", "100.0"]
    assert len({len(x) for x in text.splitlines()}) == 1


def test_the_random_policy_draws_every_element_about_equally():
    actions = RandomPolicy(seed=1).predict(np.zeros((8800, 25), dtype=np.float32))
    counts = np.bincount(actions, minlength=N_ELEMENTS)
    assert len(counts) == N_ELEMENTS
    assert counts.min() > 50
    assert counts.max() < 160


def test_the_random_policy_repeats_with_its_seed():
    zeros = np.zeros((50, 25), dtype=np.float32)
    one, same, other = (RandomPolicy(s).predict(zeros).tolist() for s in (3, 3, 4))
    assert one == same != other


@pytest.mark.parametrize("shape", [(88,), (30, 88)], ids=["one mask", "a mask per row"])
def test_baselines_keep_to_the_mask(trajectories, shape):
    mask = np.zeros(shape, dtype=np.int8)
    mask[..., [4, 60]] = 1
    zeros = np.zeros((30, 25), dtype=np.float32)
    for policy in (RandomPolicy(0), MajorityPolicy(trajectories)):
        assert set(policy.predict(zeros, mask).tolist()) <= {4, 60}


def test_the_majority_policy_chooses_the_most_frequent_element(trajectories):
    counts = {e: 0 for e in ELEMENTS}
    for action in trajectories.actions:
        counts[ELEMENTS[action]] += 1
    best = max(counts, key=counts.get)
    actions = MajorityPolicy(trajectories).predict(np.zeros((3, 25), dtype=np.float32))
    assert [ELEMENTS[a] for a in actions] == [best] * 3
