"""`crystal_gym.datasets.relabel`: targets and rewards of stored episodes."""

import gymnasium as gym
import numpy as np
import pytest
from made_crystals import eqn_7, eqn_16

from crystal_gym.datasets.relabel import terminal_rewards
from crystal_gym.oracles import TableOracle
from crystal_gym.targets import UNIFORM_RANGE_EV, TargetSampler

GAPS = np.array([0.0, 1.5, 4.0, 2.5] * 500)


def generator():
    return np.random.default_rng(7)


def replayed_reward(trajectories, table, episode, target, **kwargs):
    """Return the terminal reward of an environment that was made with the target."""
    env = gym.make(
        "CrystalFill-v0",
        target_gap=target,
        skeletons=trajectories.skeletons,
        oracle=TableOracle(table),
        **kwargs,
    )
    first, end = trajectories.step_ptr[episode : episode + 2]
    options = {
        "skeleton": int(trajectories.skeleton[episode]),
        "start_site": int(trajectories.traversal[first]),
    }
    env.reset(seed=0, options=options)
    for step in range(first, end):
        _, reward, *_ = env.step(int(trajectories.actions[step]))
    return reward


def relabelled(trajectories, reward, targets):
    return terminal_rewards(
        reward,
        trajectories.total_energy_ry,
        trajectories.formation_energy_ev_per_atom,
        trajectories.band_gap_ev,
        targets,
    )


def gap_and_target(properties, target_gap):
    return properties.band_gap_ev * 10 + (target_gap or 0.0)


@pytest.mark.parametrize("reward", ["formation", "total_energy", "energy", gap_and_target])
@pytest.mark.parametrize("target", [0.0, 1.12, 3.0, 5.5, None])
def test_relabelled_rewards_are_those_of_an_environment_made_with_the_target(
    trajectories, table, target, reward
):
    count = len(trajectories)
    targets = None if target is None else np.full(count, target)
    rewards = relabelled(trajectories, reward, targets)
    for episode in range(0, count, 4):
        expected = replayed_reward(trajectories, table, episode, target, reward=reward)
        assert rewards[episode] == pytest.approx(expected, rel=0, abs=1e-12)


@pytest.mark.parametrize("mode", ["hindsight", "uniform", [0.5, 1.12, 4.0]], ids=str)
def test_drawn_targets_give_the_rewards_of_environments_made_with_them(trajectories, table, mode):
    targets = TargetSampler(mode).sample(trajectories.band_gap_ev, generator())
    rewards = relabelled(trajectories, "formation", targets)
    for episode in range(0, len(trajectories), 4):
        target = float(targets[episode])
        expected = replayed_reward(trajectories, table, episode, target)
        assert rewards[episode] == pytest.approx(expected, rel=0, abs=1e-12)


def test_relabelled_rewards_are_eqns_7_and_16(trajectories):
    targets = np.linspace(0, 6, len(trajectories))
    columns = zip(
        trajectories.total_energy_ry,
        trajectories.formation_energy_ev_per_atom,
        trajectories.band_gap_ev,
        targets,
        strict=True,
    )
    expected = [(eqn_7(f, g, t), eqn_16(e, g, t)) for e, f, g, t in columns]
    found = [relabelled(trajectories, name, targets) for name in ("formation", "total_energy")]
    np.testing.assert_allclose(np.array(found).T, expected, rtol=0, atol=1e-9)


def test_a_callable_that_knows_no_reward_gives_nan():
    one = np.array([-1.0])
    found = terminal_rewards(lambda properties, target: None, one, one, -one, np.array([3.0]))
    assert np.isnan(found).all()


def test_a_callable_sees_none_where_a_property_is_unknown():
    seen = []

    def look(properties, target_gap):
        seen.append(properties.band_gap_ev)
        return 1.0

    terminal_rewards(look, *[np.array([np.nan])] * 3, np.array([3.0]))
    assert seen == [None]  # as the environment asks it


# -- targets ------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", [3.0, 3, np.float32(3), [3.0], (3.0,)], ids=repr)
def test_one_target_serves_all(target):
    assert set(TargetSampler(target).sample(GAPS, generator()).tolist()) == {3.0}


@pytest.mark.parametrize("targets", [[1.0, 2.0, 5.0], np.array([1.0, 2.0, 5.0])], ids=repr)
def test_each_target_of_a_list_is_drawn_about_as_often(targets):
    drawn = TargetSampler(targets).sample(GAPS, generator())
    values, counts = np.unique(drawn, return_counts=True)
    assert values.tolist() == [1.0, 2.0, 5.0]
    assert counts.min() > len(GAPS) / 3 * 0.85


def test_uniform_targets_fill_their_range():
    drawn = TargetSampler("uniform").sample(GAPS, generator())
    low, high = UNIFORM_RANGE_EV
    assert drawn.min() >= low
    assert drawn.max() <= high
    counts, _ = np.histogram(drawn, bins=6, range=(low, high))
    assert counts.min() > len(GAPS) / 6 * 0.8


def test_hindsight_targets_are_the_crystals_own_gaps():
    np.testing.assert_array_equal(TargetSampler("hindsight").sample(GAPS, generator()), GAPS)


def test_without_a_target_none_is_drawn():
    sampler = TargetSampler(None)
    assert sampler.sample(GAPS, generator()) is None
    assert not sampler.conditional


@pytest.mark.parametrize("target", [3.0, [1.0, 2.0], "uniform", "hindsight"], ids=str)
def test_all_other_targets_are_conditional(target):
    assert TargetSampler(target).conditional


@pytest.mark.parametrize("target", ["uniform", [1.0, 2.0]], ids=str)
def test_the_same_generator_draws_the_same_targets(target):
    draws = [TargetSampler(target).sample(GAPS, generator()) for _ in range(2)]
    np.testing.assert_array_equal(*draws)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (-1.0, "target_gap=-1.0 eV is no band gap"),
        (float("nan"), "target_gap=nan eV is no band gap"),
        (float("inf"), "target_gap=inf eV is no band gap"),
        (True, "target_gap=True is not a number"),
        ("three", "target_gap='three' is unknown: .* 'uniform', 'hindsight'"),
        ([1.0, -2.0], "target_gap=-2.0 eV is no band gap"),
        ([1.0, float("nan")], "target_gap=nan eV is no band gap"),
        ([1.0, "3"], "target_gap='3' is unknown"),
        ([1.0, True], "target_gap=True is not a number"),
        ([1.0, None], "target_gap"),
        ([], r"target_gap=\[\] is not usable"),
        ({"gap": 3.0}, "is not a number"),
    ],
    ids=str,
)
def test_a_bad_target_is_refused(target, message):
    with pytest.raises((ValueError, TypeError), match=message):
        TargetSampler(target)
