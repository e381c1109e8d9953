"""`crystal_gym.envs.wrappers`: actions as points of the elements, states as zeros and ones."""

import warnings

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import crystal_gym  # noqa: F401 (registers the environment)
from crystal_gym.element_embedding import EMBEDDING, EMBEDDING_SIZE, decode, embed
from crystal_gym.elements import ELEMENTS, tokens_to_symbols
from crystal_gym.envs import EmbeddedActions, OneHotObservations, one_hot

FEW = ["Mg", "Zn", "O", "S", "Cl"]


def made(**kwargs):
    return EmbeddedActions(gym.make("CrystalFill-v0", target_gap=3.0, **kwargs))


@pytest.mark.parametrize("form", ["graph", "packed", "compact", "space"])
def test_check_env_passes(form):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        check_env(made(observation=form), skip_render_check=True)


def test_a_point_places_its_element():
    env = made()
    env.reset(seed=0)
    focus = env.unwrapped.state.focus
    env.step(embed([ELEMENTS.index("Ti")])[0])
    assert tokens_to_symbols(env.unwrapped.state.tokens)[focus] == "Ti"


@pytest.mark.parametrize(
    "kwargs", [{"elements": FEW}, {"skeletons": "tabular"}], ids=["elements", "table"]
)
def test_any_action_places_the_nearest_allowed_element(kwargs):
    env = made(**kwargs)
    for seed in range(5):
        _, info = env.reset(seed=seed)
        env.action_space.seed(seed)
        terminated = False
        while not terminated:
            mask, focus = info["action_mask"], env.unwrapped.state.focus
            assert 0 < mask.sum() < 88
            action = env.action_space.sample()
            _, _, terminated, _, info = env.step(action)
            token = env.unwrapped.state.tokens[focus]
            assert mask[token - 1]
            assert token - 1 == decode(action[None], mask)[0]
        assert "formula" in info


def test_a_mask_narrowed_by_a_wrapper_below_counts():
    class OnlyGold(gym.Wrapper):
        def reset(self, **kwargs):
            return self.narrowed(self.env.reset(**kwargs))

        def step(self, action):
            return self.narrowed(self.env.step(action))

        def narrowed(self, result):
            result[-1]["action_mask"] = np.eye(88, dtype=np.int8)[ELEMENTS.index("Au")]
            return result

    env = EmbeddedActions(OnlyGold(gym.make("CrystalFill-v0", target_gap=3.0)))
    env.reset(seed=0)
    terminated = False
    while not terminated:
        *_, terminated, _, info = env.step(EMBEDDING[0])
    assert info["formula"] == "Au"


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_it_works_in_vector_environments(mode):
    envs = gym.make_vec(
        "CrystalFill-v0",
        num_envs=2,
        vectorization_mode=mode,
        wrappers=[EmbeddedActions],
        target_gap=3.0,
        observation="packed",
        elements=FEW,
    )
    assert envs.single_action_space.shape == (EMBEDDING_SIZE,)
    envs.reset(seed=0)
    envs.action_space.seed(0)
    ended = 0
    for _ in range(40):
        _, _, terminated, _, _ = envs.step(envs.action_space.sample())
        ended += int(terminated.sum())
    envs.close()
    assert ended > 1


def test_a_wrapped_environment_can_be_made_again_from_its_spec():
    env = made(observation="packed")
    again = gym.make(gym.envs.registration.EnvSpec.from_json(env.spec.to_json()))
    assert again.action_space == env.action_space
    np.testing.assert_array_equal(again.reset(seed=1)[0], env.reset(seed=1)[0])


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (3, r"action=3 is no point of the elements: expected 5 numbers \(period, group"),
        (np.zeros(88, np.float32), "no point of the elements"),
        (np.zeros((1, 5), np.float32), "no point of the elements"),
        (np.full(5, np.nan, np.float32), "nan.*expected finite numbers.*diverged"),
    ],
    ids=["element", "one-hot", "batch", "NaN"],
)
def test_what_is_no_point_is_refused(action, message):
    env = made()
    env.reset(seed=0)
    with pytest.raises(ValueError, match=message):
        env.step(action)


def test_step_before_reset_is_refused_as_without_the_wrapper():
    with pytest.raises(gym.error.ResetNeeded):
        made().step(EMBEDDING[0])


# -- one-hot observations -------------------------------------------------------------------------


def plain(**kwargs):
    kwargs = {"target_gap": 2.5, "observation": "compact", **kwargs}
    return OneHotObservations(gym.make("CrystalFill-v0", skeletons="tabular", **kwargs))


@pytest.mark.parametrize("target_gap", [2.5, None])
def test_check_env_passes_for_rows_of_zeros_and_ones(target_gap):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        check_env(plain(target_gap=target_gap, mask="elements"), skip_render_check=True)


def test_a_row_holds_the_whole_state():
    env = plain()
    row, info = env.reset(seed=3, options={"skeleton": 11})
    terminated, filled = False, 0
    while True:
        state = env.unwrapped.state
        assert row.shape == (12 + 4 * 89 + 5 + 1,)
        assert row[:12].argmax() == 11
        np.testing.assert_array_equal(row[12:-6].reshape(4, 89).argmax(1), state.tokens)
        assert row[-6:-1].argmax() == state.focus
        assert row[-1] == 2.5
        assert row[:-1].sum() == 1 + 4 + 1
        if terminated:
            break
        row, _, terminated, _, info = env.step(np.flatnonzero(info["action_mask"])[0])
        filled += 1
    assert filled == 4


def test_batches_of_a_vector_environment_become_the_same_rows():
    many = gym.make_vec(
        "CrystalFill-v0",
        num_envs=5,
        vectorization_mode="vector_entry_point",
        target_gap=2.5,
        skeletons="tabular",
        observation="compact",
    )
    observations, infos = many.reset(seed=7)
    rows = one_hot(observations, many.single_observation_space)
    for i, row in enumerate(rows):
        np.testing.assert_array_equal(row, plain().reset(seed=7 + i)[0])
    actions = infos["action_mask"].argmax(1)
    rows = one_hot(many.step(actions)[0], many.single_observation_space)
    for i, row in enumerate(rows):
        single = plain()
        single.reset(seed=7 + i)
        np.testing.assert_array_equal(row, single.step(actions[i])[0])


@pytest.mark.parametrize("form", ["graph", "packed"])
def test_other_observations_are_refused(form):
    with pytest.raises(ValueError, match="expected those of observation='compact'"):
        plain(observation=form)


def test_no_two_compact_observations_share_an_array():
    env = gym.make("CrystalFill-v0", observation="compact")
    first, info = env.reset(seed=0)
    second, *_ = env.step(int(info["action_mask"].argmax()))
    for name, array in first.items():
        assert array.flags.writeable
        assert not np.shares_memory(array, second[name])
