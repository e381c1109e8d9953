"""`crystal_gym.datasets.splits`: nothing of what judges is on the other side."""

import numpy as np
import pytest
from conftest import card_of

from crystal_gym.datasets import build_mini
from crystal_gym.datasets.minari_io import load_trajectories, write_dataset
from crystal_gym.datasets.splits import composition_split, judging_dataset, load_split
from crystal_gym.elements import formula_counts


@pytest.fixture(scope="module")
def mini():
    return load_trajectories(build_mini().dataset_id)


def systems(trajectories):
    return {tuple(formula_counts(row)) for row in trajectories.finished}


def crystals(trajectories):
    pairs = zip(trajectories.skeleton.tolist(), trajectories.finished, strict=True)
    return {(number, row.tobytes()) for number, row in pairs}


@pytest.mark.parametrize("seed", range(4))
def test_no_chemical_system_is_on_both_sides_and_no_crystal_is_lost(mini, seed):
    training, judging = composition_split(mini, share=0.2, seed=seed)
    assert not systems(training) & systems(judging)
    assert len(training) + len(judging) == len(mini)
    assert crystals(training) | crystals(judging) == crystals(mini)
    assert abs(len(crystals(judging)) / len(crystals(mini)) - 0.2) < 0.02


def test_the_published_kind_of_split_does_share_chemical_systems(mini):
    training, judging = load_split("crystal-mini-v0")
    assert systems(training) & systems(judging)


def test_the_seed_decides(mini):
    first, again, other = (composition_split(mini, seed=s)[1] for s in (0, 0, 1))
    assert np.array_equal(first.finished, again.finished)
    assert crystals(first) != crystals(other)


@pytest.mark.parametrize("share", [0, 1, -0.1, 1.5])
def test_a_share_that_is_none_is_refused(mini, share):
    with pytest.raises(ValueError, match="is no share of the crystals"):
        composition_split(mini, share=share)


def test_one_chemical_system_alone_cannot_be_split(mini):
    one = mini.subset(np.flatnonzero(mini.skeleton == 0))
    with pytest.raises(ValueError, match="all crystals are of one chemical system"):
        composition_split(one)


def test_the_own_validation_set_judges_where_there_is_one(empty_minari, table, trajectories):
    for name in ("crystal-one-v0", "crystal-one-val-v0", "crystal-two-v0"):
        write_dataset(card_of(name), trajectories, table)
    assert judging_dataset("crystal-one-v0") == "crystal-one-val-v0"
    assert judging_dataset("crystal-one-v0", split="composition") == "crystal-one-v0"
    assert judging_dataset("crystal-one-v0", "crystal-two-v0") == "crystal-two-v0"
    training, judging = load_split("crystal-one-v0")
    assert len(training) == len(judging) == len(trajectories)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("crystal-made-v0", None, "random"), "split='random' is unknown: expected published or"),
        (("crystal-made-v0", "crystal-no-v0"), "dataset 'crystal-no-v0' is not on this machine"),
        (("crystal-made-v0", "crystal-made-v0", "composition"), "does not go with split='compo"),
        (("crystal-made-v0",), "has 7 skeletons, too few to hold every tenth out"),
        (("crystal-no-v0",), "dataset 'crystal-no-v0' is not on this machine"),
    ],
    ids=["split", "validation", "both", "few", "dataset"],
)
def test_what_cannot_be_split_is_said_in_one_sentence(made_dataset, arguments, message):
    with pytest.raises(ValueError, match=message):
        load_split(*arguments)
