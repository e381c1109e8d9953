"""Baselines: blind to the elements of the skeletons they fill, valid where that is promised."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from made_crystals import replaced, rocksalt
from scipy.stats import chisquare

from crystal_gym.charge_masks import ChargeNeutralMask
from crystal_gym.datasets.build import build_mini
from crystal_gym.datasets.minari_io import load_trajectories
from crystal_gym.elements import ELEMENTS, formula_counts
from crystal_gym.evaluation import Task, rollout
from crystal_gym.evaluation.baselines import (
    MajorityPolicy,
    NearestNeighbour,
    RandomBalanced,
    RandomPolicy,
    Substitution,
)
from crystal_gym.evaluation.metrics import validity
from crystal_gym.evaluation.prototypes import PrototypeLibrary
from crystal_gym.skeletons import SkeletonSet, build_skeletons
from crystal_gym.structures import cell_from_structure


@pytest.fixture(scope="module")
def mini(isolated_folders):
    build_mini()
    return load_trajectories("crystal-mini-v0")


@pytest.fixture(scope="module")
def library(mini):
    return PrototypeLibrary(mini)


@pytest.fixture(scope="module")
def task(mini):
    return Task.of_trajectories(mini).first_orders().rows(np.arange(40))


def species_blind(task):
    """Return the task with other names and other elements in its source crystals."""
    skeletons = task.skeletons
    other = dataclasses.replace(
        skeletons,
        names=np.array([f"x{i}" for i in range(len(skeletons))]),
        reference=np.roll(skeletons.reference, 17),
    )
    assert isinstance(other, SkeletonSet)
    return Task(other, task.skeleton, task.traversal)


def test_no_baseline_sees_the_elements(mini, library, task):
    designers = [
        lambda task, aim: rollout(RandomPolicy(0), task, aim),
        lambda task, aim: rollout(MajorityPolicy(mini), task, aim),
    ]
    designers += [RandomBalanced(0), Substitution(library), NearestNeighbour(library)]
    for design in designers:
        for target in (None, 3.0):
            first, second = design(task, target), design(species_blind(task), target)
            np.testing.assert_array_equal(first, second)


def test_random_charge_balanced_is_always_valid_and_repeats(task):
    first, second = RandomBalanced(3)(task), RandomBalanced(3)(task)
    np.testing.assert_array_equal(first, second)
    assert validity(first) == 1.0
    assert not np.array_equal(first, RandomBalanced(4)(task))


def test_it_draws_as_the_random_policy_under_the_mask(task):
    """The last site of a crystal: every allowed element alike."""
    mask = ChargeNeutralMask()
    small = int(np.flatnonzero(task.n_sites == 2)[0])
    one = task.rows(np.full(6000, small))
    filled = RandomBalanced(0)(one)
    last = one.traversal[0, 1]
    first_tokens, counts = np.unique(filled[:, one.traversal[0, 0]], return_counts=True)
    token = first_tokens[counts.argmax()]
    rows = filled[filled[:, one.traversal[0, 0]] == token]
    state = np.zeros(2, np.int16)
    state[one.traversal[0, 0]] = token
    allowed = np.flatnonzero(mask(state)) + 1
    drawn, counts = np.unique(rows[:, last], return_counts=True)
    assert set(drawn) <= set(allowed)
    full = np.zeros(len(allowed))
    full[np.searchsorted(allowed, drawn)] = counts
    assert chisquare(full).pvalue > 1e-4


def test_the_nearest_neighbour_of_a_known_crystal_is_a_crystal_like_it(mini, library):
    structures = [rocksalt("Na", "Cl"), rocksalt("Mg", "O", a=4.25)]
    cells = [cell_from_structure(replaced(s, ["X", "X"]), "x") for s in structures]
    skeletons, _ = build_skeletons(cells)
    skeletons.register()
    task = Task.of_skeletons(skeletons)
    for filled in NearestNeighbour(library)(task, None):
        counts = formula_counts(filled)
        assert sorted(counts.values()) == [1, 1]
    near, far = (NearestNeighbour(library)(task, target) for target in (0.0, 9.0))
    gaps = {}
    for data_row in range(len(mini)):
        gaps[tuple(mini.finished[data_row][:2])] = mini.band_gap_ev[data_row]
    assert not np.array_equal(near, far)
    for low, high in zip(near, far, strict=True):
        found = [gaps.get(tuple(t), gaps.get(tuple(t[::-1]))) for t in (low, high)]
        assert found[0] < found[1]


def test_substitution_changes_one_element_for_one_of_its_charge(library, task):
    source, changed = NearestNeighbour(library)(task, None), Substitution(library)(task)
    different = 0
    for old, new in zip(source, changed, strict=True):
        pairs = {(a, b) for a, b in zip(old.tolist(), new.tolist(), strict=True) if a != b}
        assert len(pairs) <= 1
        for a, b in pairs:
            different += 1
            sites = old == a
            assert (new[sites] == b).all()
            assert b not in old
            assert ELEMENTS[b - 1] != ELEMENTS[a - 1]
    assert different > 0.7 * len(task)
