"""`crystal_gym.envs.vector`: as many environments in arrays as one by one, step for step."""

from __future__ import annotations

from functools import partial

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import SyncVectorEnv
from gymnasium.vector.utils import iterate

import crystal_gym  # noqa: F401
from crystal_gym.oracles import Properties, Status
from crystal_gym.testing import FixedOracle

N = 7


def make_many(num_envs=N, **kwargs):
    return gym.make_vec(
        "CrystalFill-v0", num_envs=num_envs, vectorization_mode="vector_entry_point", **kwargs
    )


def one_by_one(num_envs=N, **kwargs):
    make = partial(gym.make, "CrystalFill-v0", disable_env_checker=True, **kwargs)
    return SyncVectorEnv([make] * num_envs)


def same(a, b):
    if isinstance(a, dict):
        assert set(a) == set(b)
        for key in a:
            same(a[key], b[key])
    elif isinstance(a, tuple):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            same(x, y)
    else:
        assert np.asarray(a).dtype == np.asarray(b).dtype
        np.testing.assert_array_equal(a, b)


def same_infos(ours, theirs):
    """Compare where a mask says that something is told; what is not known is NaN or None."""
    assert set(ours) == set(theirs)
    for key, told in ours.items():
        if key.startswith("_"):
            np.testing.assert_array_equal(told, theirs[key], err_msg=key)
        elif isinstance(told, dict):
            same_infos(told, theirs[key])
        else:
            there = ours[f"_{key}"]
            for x, y in zip(told[there], theirs[key][there], strict=True):
                if isinstance(x, float):
                    assert x == y or (np.isnan(x) and (y is None or np.isnan(y))), key
                else:
                    np.testing.assert_array_equal(x, y, err_msg=key)


@pytest.mark.parametrize(
    "kwargs",
    [
        {"observation": "compact", "target_gap": 3.0},
        {"observation": "graph", "target_gap": 1.12, "site_order": "shuffled"},
        {"observation": "packed", "target_gap": 2.0, "elements": ["Na", "Cl", "O", "Ti"]},
        {"observation": "space", "target_gap": 2.0},
        {"observation": "compact", "reward": "total_energy", "failure_reward": -1.0},
        {"observation": "packed"},
        {"observation": "compact", "target_gap": "uniform"},
        {"observation": "graph", "target_gap": [1.12, 2.0, "uniform"], "site_order": "shuffled"},
        {"skeletons": "tabular", "observation": "graph", "target_gap": 3.0},
        {"skeletons": "mini", "mask": "charge_neutral", "observation": "compact"},
    ],
    ids=str,
)
def test_equals_single_environments_step_for_step(kwargs):
    many, single = make_many(**kwargs), one_by_one(**kwargs)
    assert many.observation_space == single.observation_space
    assert many.action_space == single.action_space
    generator = np.random.default_rng(1)
    ended = 0
    for seed in (5, None, [int(s) for s in generator.integers(1000, size=N)]):
        (ours, infos), (theirs, their_infos) = many.reset(seed=seed), single.reset(seed=seed)
        if seed is None:  # nothing was drawn from outside: both go on
            same(ours, theirs)
        for _ in range(30):
            same(ours, theirs)
            same_infos(infos, their_infos)
            assert many.observation_space.contains(ours)
            allowed = infos["action_mask"]
            actions = (generator.random(allowed.shape) * allowed).argmax(1)
            ours, rewards, over, cut, infos = many.step(actions)
            theirs, their_rewards, their_over, their_cut, their_infos = single.step(actions)
            np.testing.assert_array_equal(rewards, their_rewards)
            np.testing.assert_array_equal(over, their_over)
            np.testing.assert_array_equal(cut, their_cut)
            ended += int(over.sum())
    assert ended > 3 * N
    many.close()


def test_options_hold_for_all_and_for_one_episode():
    many, single = (
        f(observation="compact", target_gap=3.0, skeletons="mini") for f in (make_many, one_by_one)
    )
    options = {"skeleton": 3, "start_site": 1, "target_gap": 1.0}
    ours, _ = many.reset(seed=0, options=options)
    same(ours, single.reset(seed=0, options=options)[0])
    assert set(ours["skeleton"].ravel()) == {3}
    for _ in range(12):
        actions = np.full(N, 7)
        ours, theirs = many.step(actions)[0], single.step(actions)[0]
        same(ours, theirs)
    assert set(ours["target_gap"].ravel()) == {3.0}


def test_what_was_returned_does_not_change_later():
    many = make_many(observation="compact", target_gap=3.0)
    first, infos = many.reset(seed=0)
    kept = {name: array.copy() for name, array in first.items()}
    focus = infos["focus"].copy()
    many.step(np.zeros(N, dtype=int))
    same(first, kept)
    np.testing.assert_array_equal(infos["focus"], focus)


def test_crystals_that_end_together_are_one_call():
    oracle = FixedOracle(Properties(status=Status.UNKNOWN, provenance="none"))
    many = make_many(oracle=oracle, observation="compact", skeletons="mini")
    many.reset(seed=0, options={"skeleton": 0})
    over = np.zeros(N, dtype=bool)
    while not over.any():
        _, rewards, over, _, infos = many.step(np.zeros(N, dtype=int))
    assert over.all()
    assert oracle.batches == [N]
    assert (rewards == 0).all()
    assert set(infos["oracle_status"]) == {"unknown"}
    assert np.isnan(infos["properties"]["band_gap_ev"]).all()


@pytest.mark.parametrize(
    ("actions", "error", "message"),
    [
        (np.zeros(3, dtype=int), TypeError, r"actions of shape \(3,\).*expected 7 whole numbers"),
        (np.zeros(N), TypeError, "float64"),
        (np.full(N, 88), ValueError, "action=88 of environment 0 is out of range"),
        (np.array([0] * 6 + [-1]), ValueError, "action=-1 of environment 6 is out of range"),
        (
            np.array([10, 10, 5] + [10] * 4),
            ValueError,
            r"action 5 \(C\) of environment 2 is masked",
        ),
    ],
)
def test_a_bad_action_is_refused_and_nothing_moves(actions, error, message):
    many = make_many(elements=["Na", "Cl"], observation="compact")
    before, _ = many.reset(seed=0)
    with pytest.raises(error, match=message):
        many.step(actions)
    after = many.step(np.full(N, 10))[0]
    assert ((after["element_tokens"] != before["element_tokens"]).sum(1) == 1).all()


def test_arguments_are_those_of_the_environment():
    with pytest.raises(ValueError, match="observation='grid' is unknown"):
        make_many(observation="grid")
    with pytest.raises(TypeError, match="colour"):
        make_many(colour="red")
    with pytest.raises(ValueError, match="num_envs=0"):
        make_many(num_envs=0)
    many = make_many()
    with pytest.raises(RuntimeError, match="call reset"):
        many.step(np.zeros(N, dtype=int))
    with pytest.raises(ValueError, match="2 seeds for 7 environments"):
        many.reset(seed=[1, 2])
    with pytest.raises(ValueError, match="reset option 'size' is unknown"):
        many.reset(options={"size": 3})


def test_gymnasium_can_take_its_observations_apart():
    many = make_many(observation="graph", target_gap=3.0)
    observations, _ = many.reset(seed=0)
    parts = list(iterate(many.observation_space, observations))
    assert len(parts) == N
    assert all(many.single_observation_space.contains(part) for part in parts)
