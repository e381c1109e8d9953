"""`crystal_gym.datasets.replay`: datasets as d3rlpy replay buffers."""

from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
from made_crystals import eqn_7

from crystal_gym.element_embedding import EMBEDDING, embed
from crystal_gym.envs.observations import COMPACT_HEADER, compact_rows
from crystal_gym.oracles import TableOracle
from crystal_gym.skeletons import registered_set

d3rlpy = pytest.importorskip("d3rlpy")

from crystal_gym.datasets import load_d3rlpy  # noqa: E402  (needs d3rlpy)

TARGETS = [0.0, 1.12, 3.0]


@pytest.fixture(scope="module")
def replayed(trajectories, table):
    """Return every transition of every episode, stepped through an environment."""

    def walk(target):
        env = gym.make(
            "CrystalFill-v0",
            target_gap=target,
            skeletons=trajectories.skeletons,
            oracle=TableOracle(table),
            observation="compact",
        )

        def row(observation):
            tokens = observation["element_tokens"][None]
            number, focus = observation["skeleton"], observation["focus"]
            return compact_rows(trajectories.skeletons, number, tokens, focus, target)[0]

        found = []
        for k in range(len(trajectories)):
            first, end = trajectories.step_ptr[k : k + 2]
            options = {
                "skeleton": int(trajectories.skeleton[k]),
                "start_site": int(trajectories.traversal[first]),
            }
            observation, _ = env.reset(seed=0, options=options)
            for t in range(first, end):
                action = int(trajectories.actions[t])
                following, reward, terminated, _, _ = env.step(action)
                found.append((row(observation), action, reward, row(following), terminated))
                observation = following
        return found

    return walk


@pytest.mark.parametrize("target", [*TARGETS, None])
def test_transitions_are_those_of_the_environment(trajectories, replayed, target):
    expected = replayed(target)
    buffer = load_d3rlpy(trajectories, target)
    index = np.arange(buffer.transition_count)
    batch = buffer.transitions(index, None if target is None else np.full(len(index), target))
    assert len(expected) == len(index)
    for i, (observation, action, reward, following, terminated) in enumerate(expected):
        np.testing.assert_array_equal(batch.observations[i], observation)
        np.testing.assert_array_equal(batch.next_observations[i], following)
        assert batch.actions[i].tolist() == [action]
        assert batch.rewards[i, 0] == np.float32(reward)
        assert batch.terminals[i].tolist() == [float(terminated)]


def test_a_sampled_batch_is_made_of_transitions_of_the_environment(trajectories, replayed):
    known = {
        (*o.tolist(), a, np.float32(r).item(), *n.tolist(), float(t))
        for o, a, r, n, t in replayed(3.0)
    }
    batch = load_d3rlpy(trajectories, 3.0).sample_transition_batch(256)
    for i in range(256):
        seen = (
            *batch.observations[i].tolist(),
            int(batch.actions[i, 0]),
            float(batch.rewards[i, 0]),
            *batch.next_observations[i].tolist(),
            float(batch.terminals[i, 0]),
        )
        assert seen in known


def test_the_next_observation_of_a_terminal_transition_is_the_finished_crystal(trajectories):
    buffer = load_d3rlpy(trajectories, 3.0)
    last = trajectories.step_ptr[1:] - 1
    batch = buffer.transitions(last, np.full(len(last), 3.0))
    assert batch.terminals.all()
    for k, row in enumerate(batch.next_observations):
        tokens = trajectories.final_tokens(k)
        first = len(COMPACT_HEADER)
        np.testing.assert_array_equal(row[first : first + len(tokens)], tokens)
        assert row[2] == len(tokens)  # no site in focus


def test_next_actions_are_those_of_the_same_episode(trajectories):
    buffer = load_d3rlpy(trajectories, 3.0)
    batch = buffer.transitions(np.arange(buffer.transition_count), None)
    inside = np.flatnonzero(batch.terminals[:, 0] == 0)
    np.testing.assert_array_equal(batch.next_actions[inside, 0], trajectories.actions[inside + 1])


def test_a_batch_has_d3rlpys_shapes_and_types(trajectories):
    batch = load_d3rlpy(trajectories, 3.0).sample_transition_batch(32)
    assert batch.observations.shape == batch.next_observations.shape == (32, 25)
    for name in ("observations", "actions", "rewards", "next_observations", "terminals"):
        assert getattr(batch, name).dtype == np.float32, name
    for name in ("actions", "rewards", "terminals", "intervals"):
        assert getattr(batch, name).shape == (32, 1), name
    assert batch.intervals.tolist() == [[1.0]] * 32


def test_every_transition_is_sampled(trajectories):
    buffer = load_d3rlpy(trajectories, "hindsight")
    batch = buffer.sample_transition_batch(20 * buffer.transition_count)
    seen = {tuple(row) for row in np.column_stack([batch.observations, batch.actions]).tolist()}
    every = buffer.transitions(np.arange(buffer.transition_count), buffer_gaps(buffer))
    expected = {tuple(r) for r in np.column_stack([every.observations, every.actions]).tolist()}
    assert seen == expected


def buffer_gaps(buffer):
    return buffer.trajectories.band_gap_ev[buffer.trajectories.episode]


def test_the_same_seed_samples_the_same_batches(trajectories):
    one, other = (
        load_d3rlpy(trajectories, "uniform", seed=5).sample_transition_batch(64) for _ in range(2)
    )
    np.testing.assert_array_equal(one.observations, other.observations)
    np.testing.assert_array_equal(one.rewards, other.rewards)


def test_another_seed_samples_other_batches(trajectories):
    one, other = (
        load_d3rlpy(trajectories, 3.0, seed=seed).sample_transition_batch(64) for seed in (0, 1)
    )
    assert not np.array_equal(one.observations, other.observations)


@pytest.mark.parametrize("target", [[0.5, 4.5], "uniform", "hindsight"], ids=str)
def test_rewards_fit_the_target_that_the_observation_shows(trajectories, target):
    batch = load_d3rlpy(trajectories, target).sample_transition_batch(512)
    terminal = batch.terminals[:, 0] == 1
    np.testing.assert_array_equal(batch.observations[:, 4], batch.next_observations[:, 4])
    energies = {
        (int(trajectories.skeleton[k]), *trajectories.final_tokens(k).tolist()): k
        for k in range(len(trajectories))
    }
    n_sites = trajectories.skeletons.n_sites
    for row, reward in zip(
        batch.next_observations[terminal], batch.rewards[terminal, 0], strict=True
    ):
        number = int(row[1])
        tokens = row[5 : 5 + n_sites[number]].astype(int).tolist()
        k = energies[(number, *tokens)]
        expected = eqn_7(
            trajectories.formation_energy_ev_per_atom[k],
            trajectories.band_gap_ev[k],
            float(row[4]),
        )
        assert reward == pytest.approx(expected, abs=1e-5)
    assert not batch.rewards[~terminal].any()


def test_hindsight_shows_each_crystal_its_own_gap(trajectories):
    buffer = load_d3rlpy(trajectories, "hindsight")
    gaps = {np.float32(g).item() for g in trajectories.band_gap_ev}
    batch = buffer.sample_transition_batch(256)
    assert set(batch.observations[:, 4].tolist()) <= gaps


def test_a_list_mixes_hindsight_and_uniform_targets(trajectories):
    buffer = load_d3rlpy(trajectories, target_gap=["hindsight", "uniform", 9.0], seed=0)
    index = np.arange(len(trajectories.actions)).repeat(20)
    gaps = trajectories.band_gap_ev[trajectories.episode[index]]
    targets = buffer.targets.sample(gaps, np.random.default_rng(0))
    own, fixed = targets == gaps, targets == 9.0
    rest = targets[~own & ~fixed]
    for share in (own.mean(), fixed.mean(), len(rest) / len(index)):
        assert 0.28 < share < 0.39
    assert rest.min() >= 0
    assert rest.max() <= 6
    assert len(np.unique(rest)) == len(rest)


def test_balance_draws_ranges_of_gaps_alike(trajectories):
    """One crystal with a wide gap against all others without one."""
    gaps = np.zeros(len(trajectories))
    gaps[-1] = 5.2
    data = replace(trajectories, band_gap_ev=gaps)
    wide = (data.episode == len(data) - 1).mean()
    assert wide < 0.2
    for balance, expected in ((0.0, wide), (1.0, 0.5)):
        buffer = load_d3rlpy(data, target_gap="hindsight", balance=balance, seed=0)
        shown = buffer.sample_transition_batch(4000).observations[:, 4]
        assert (shown > 5).mean() == pytest.approx(expected, abs=0.03)
    with pytest.raises(ValueError, match="balance=2 is out of range"):
        load_d3rlpy(data, balance=2)


def test_a_batch_knows_what_its_crystals_will_be(trajectories):
    batch = load_d3rlpy(trajectories, seed=0).sample_transition_batch(30)
    last = batch.terminals[:, 0] == 1
    assert last.any()
    width = batch.finished.shape[1]
    assert (batch.finished[last] == batch.next_observations[last, 5 : 5 + width]).all()
    filled = batch.observations[:, 5 : 5 + width]
    assert ((filled == 0) | (filled == batch.finished)).all()


def test_without_a_target_rows_are_unconditional(trajectories):
    batch = load_d3rlpy(trajectories, None).sample_transition_batch(64)
    assert not batch.observations[:, 3:5].any()
    terminal = batch.terminals[:, 0] == 1
    energies = np.exp(-trajectories.formation_energy_ev_per_atom / 5).astype(np.float32)
    assert set(batch.rewards[terminal, 0].tolist()) <= set(energies.tolist())


def test_an_unknown_property_earns_the_failure_reward(trajectories):
    unknown = replace(trajectories, band_gap_ev=np.full(len(trajectories), np.nan))
    batch = load_d3rlpy(unknown, 3.0, failure_reward=-7.0).sample_transition_batch(64)
    terminal = batch.terminals[:, 0] == 1
    assert set(batch.rewards[terminal, 0].tolist()) == {-7.0}


def test_a_callable_that_gives_infinity_earns_the_failure_reward(trajectories):
    # The environment gives failure_reward for any reward that is not finite.
    buffer = load_d3rlpy(trajectories, 3.0, reward=lambda p, t: float("inf"), failure_reward=-7.0)
    assert set(buffer.episode_rewards(np.arange(3), np.full(3, 3.0)).tolist()) == {-7.0}


# -- what d3rlpy asks for -----------------------------------------------------------------------


def test_episodes_are_those_of_the_dataset(trajectories):
    buffer = load_d3rlpy(trajectories, 3.0)
    assert buffer.size() == len(buffer.episodes) == len(trajectories)
    for number in (0, 5, -1):
        episode = buffer.episodes[number]
        k = range(len(trajectories))[number]
        steps = slice(*trajectories.step_ptr[k : k + 2])
        np.testing.assert_array_equal(episode.actions[:, 0], trajectories.actions[steps])
        assert episode.terminated
        expected = eqn_7(
            trajectories.formation_energy_ev_per_atom[k], trajectories.band_gap_ev[k], 3.0
        )
        assert episode.compute_return() == pytest.approx(expected, abs=1e-5)


def test_one_target_holds_through_an_episode(trajectories):
    episode = load_d3rlpy(trajectories, "uniform").episodes[8]
    assert len(set(episode.observations[:, 4].tolist())) == 1


def test_transitions_of_a_batch_equal_its_rows(trajectories):
    batch = load_d3rlpy(trajectories, "uniform").sample_transition_batch(16)
    assert len(batch.transitions) == 16
    for i, transition in enumerate(batch.transitions):
        np.testing.assert_array_equal(transition.observation, batch.observations[i])
        np.testing.assert_array_equal(transition.next_observation, batch.next_observations[i])
        assert transition.action.tolist() == batch.actions[i].tolist()
        assert transition.reward.tolist() == batch.rewards[i].tolist()
        assert transition.terminal == batch.terminals[i, 0]


def test_rewards_to_go_are_those_until_the_end_of_the_episode(trajectories):
    buffer = load_d3rlpy(trajectories, 2.0)
    index = np.arange(buffer.transition_count)
    batch = buffer.transitions(index, np.full(len(index), 2.0))
    for i in index[::5]:
        k = int(trajectories.episode[i])
        left = int(trajectories.step_ptr[k + 1] - i)
        expected = eqn_7(
            trajectories.formation_energy_ev_per_atom[k], trajectories.band_gap_ev[k], 2.0
        )
        to_go = batch.transitions[int(i)].rewards_to_go
        assert to_go.shape == (left, 1)
        assert to_go[:-1].tolist() == [[0.0]] * (left - 1)
        assert to_go[-1, 0] == pytest.approx(expected, abs=1e-5)


def test_single_transitions_can_be_sampled(trajectories):
    assert load_d3rlpy(trajectories, 3.0).sample_transition().observation.shape == (25,)


@pytest.mark.parametrize("length", [1, 4, 8])
def test_trajectory_batches_have_their_shape(trajectories, length):
    batch = load_d3rlpy(trajectories, 3.0).sample_trajectory_batch(6, length)
    assert batch.observations.shape == (6, length, 25)
    assert batch.actions.shape == (6, length, 1)
    assert batch.returns_to_go.shape == (6, length, 1)


def test_trajectory_batches_are_padded_pieces_of_episodes(trajectories):
    batch = load_d3rlpy(trajectories, 3.0).sample_trajectory_batch(32, 4)
    for i in range(32):
        real = batch.masks[i] == 1
        placed = np.count_nonzero(batch.observations[i, real][:, 5:], axis=1)
        assert np.diff(placed).tolist() == [1] * (real.sum() - 1)
        assert not batch.observations[i, ~real].any()
        tables = set(batch.observations[i, real][:, 0].tolist())
        assert tables == {trajectories.skeletons.table_id}


def test_a_decision_transformer_takes_a_step_on_trajectory_batches(trajectories):
    pytest.importorskip("torch")
    from d3rlpy.algos import DiscreteDecisionTransformerConfig

    config = DiscreteDecisionTransformerConfig(
        batch_size=4, context_size=4, num_layers=1, num_heads=1, max_timestep=10
    )
    algo = config.create(device="cpu")
    buffer = load_d3rlpy(trajectories, 3.0)
    algo.build_with_dataset(buffer)
    losses = algo.update(buffer.sample_trajectory_batch(4, 4))
    assert all(np.isfinite(v) for v in losses.values())


def test_signatures_are_those_of_the_rows(trajectories):
    info = load_d3rlpy(trajectories, 3.0).dataset_info
    assert info.observation_signature.shape == [(25,)]
    assert info.action_size == 88
    assert info.action_space == d3rlpy.constants.ActionSpace.DISCRETE


# -- actions as points --------------------------------------------------------------------------


def both(trajectories):
    return load_d3rlpy(trajectories, 2.0), load_d3rlpy(trajectories, 2.0, actions="embedding")


def test_embedded_actions_are_the_points_of_the_elements(trajectories):
    discrete, continuous = (b.sample_transition_batch(256) for b in both(trajectories))
    inside = discrete.terminals[:, 0] == 0
    for name in ("actions", "next_actions"):
        points, numbers = getattr(continuous, name), getattr(discrete, name)[:, 0].astype(int)
        assert points.dtype == np.float32
        assert not points[~inside].any() or name == "actions"
        np.testing.assert_array_equal(points[inside], embed(numbers[inside]))
    np.testing.assert_array_equal(continuous.actions, EMBEDDING[discrete.actions[:, 0].astype(int)])
    for name in ("observations", "rewards", "next_observations", "terminals"):
        np.testing.assert_array_equal(getattr(continuous, name), getattr(discrete, name))


def test_embedded_actions_reach_transitions_episodes_and_trajectories(trajectories):
    discrete, continuous = both(trajectories)
    batch = continuous.sample_transition_batch(4)
    for i, transition in enumerate(batch.transitions):
        np.testing.assert_array_equal(transition.action, batch.actions[i])
        np.testing.assert_array_equal(transition.next_action, batch.next_actions[i])
    numbers = discrete.episodes[8].actions[:, 0]
    np.testing.assert_array_equal(continuous.episodes[8].actions, embed(numbers))
    assert continuous.sample_trajectory_batch(3, 4).actions.shape == (3, 4, 5)


def test_d3rlpy_learns_that_embedded_actions_are_continuous(trajectories):
    info = both(trajectories)[1].dataset_info
    assert info.action_signature.shape == [(5,)]
    assert info.action_signature.dtype == [np.float32]
    assert info.action_size == 5
    assert info.action_space == d3rlpy.constants.ActionSpace.CONTINUOUS


def test_an_unknown_form_of_actions_is_refused(trajectories):
    with pytest.raises(ValueError, match="actions='one-hot' is unknown: expected 'elements'"):
        load_d3rlpy("crystal-none-v0", actions="one-hot")


def test_loading_registers_the_skeleton_set_of_the_rows(trajectories):
    batch = load_d3rlpy(trajectories, 3.0).sample_transition_batch(2)
    assert registered_set(int(batch.observations[0, 0])) is not None


@pytest.mark.parametrize("call", ["append", "append_episode", "dump"])
def test_the_buffer_takes_nothing_in(trajectories, call):
    buffer = load_d3rlpy(trajectories, 3.0)
    arguments = {"append": (0, 0, 0), "append_episode": (None,), "dump": (None,)}[call]
    with pytest.raises(ValueError, match="view of a dataset on disk and takes nothing in"):
        getattr(buffer, call)(*arguments)


# -- loading ------------------------------------------------------------------------------------


def test_a_dataset_loads_by_its_id(made_dataset, trajectories):
    one, other = load_d3rlpy(made_dataset.id, 1.12), load_d3rlpy(trajectories, 1.12)
    first, second = one.sample_transition_batch(64), other.sample_transition_batch(64)
    np.testing.assert_array_equal(first.observations, second.observations)
    np.testing.assert_array_equal(first.rewards, second.rewards)


def test_a_dataset_loads_as_an_object(made_dataset, trajectories):
    assert load_d3rlpy(made_dataset).transition_count == len(trajectories.actions)


def test_an_unknown_dataset_is_refused_naming_those_at_hand(empty_minari):
    with pytest.raises(ValueError, match="-none-v0' is not on this machine: there are none;"):
        load_d3rlpy("crystal-none-v0")


def test_a_known_dataset_that_is_not_built_is_refused_with_how_to_build_it(made_dataset):
    # One of a similar name is there, and is not what was meant.
    with pytest.raises(ValueError, match="machine yet: run `crystal-gym data build mp20`$"):
        load_d3rlpy("crystal-mp20-val-v0")


@pytest.mark.parametrize("target", [-1.0, float("nan"), "three", [], True], ids=str)
def test_a_bad_target_is_refused_before_anything_is_read(target):
    with pytest.raises((ValueError, TypeError), match="target_gap"):
        load_d3rlpy("crystal-none-v0", target)


def test_reordered_transitions_are_steps_of_other_orders(trajectories):
    buffer = load_d3rlpy(trajectories, target_gap="hindsight", reorder=1.0, seed=0)
    batch = buffer.sample_transition_batch(2000)
    focus, number = COMPACT_HEADER.index("focus"), COMPACT_HEADER.index("skeleton")
    width = batch.finished.shape[1]
    tokens = slice(len(COMPACT_HEADER), len(COMPACT_HEADER) + width)
    breadth_first = {
        (int(skeleton), row.tobytes())
        for skeleton, row in zip(
            trajectories.skeleton[trajectories.episode],
            trajectories.tokens_before(np.arange(len(trajectories.actions))) > 0,
            strict=True,
        )
    }
    new, starts = 0, set()
    for i in range(2000):
        now, then = batch.observations[i], batch.next_observations[i]
        finished, site, action = batch.finished[i], int(now[focus]), int(batch.actions[i, 0])
        n_sites, filled = np.count_nonzero(finished), now[tokens] > 0
        np.testing.assert_array_equal(now[tokens][filled], finished[filled])
        assert not filled[site]
        assert finished[site] == action + 1
        expected = now[tokens].copy()
        expected[site] = action + 1
        np.testing.assert_array_equal(then[tokens], expected)
        last = np.count_nonzero(filled) == n_sites - 1
        assert bool(batch.terminals[i, 0]) == last
        following = int(then[focus])
        if last:
            assert following == n_sites
            assert batch.next_actions[i, 0] == 0
        else:
            assert batch.rewards[i, 0] == 0
            assert expected[following] == 0
            assert batch.next_actions[i, 0] == finished[following] - 1
        new += (int(now[number]), filled.tobytes()) not in breadth_first
        if not filled.any():
            starts.add((int(now[number]), site))
    assert new > 100
    assert len(starts) > len(trajectories.skeletons)
    ends = batch.terminals[:, 0] > 0
    assert np.ptp(batch.rewards[ends, 0]) > 0


def test_reorder_is_a_share(trajectories):
    stored, mixed = (load_d3rlpy(trajectories, 3.0, reorder=r, seed=0) for r in (0.0, 0.3))
    one, other = (buffer.sample_transition_batch(4000) for buffer in (stored, mixed))
    changed = (one.observations != other.observations).any(1)
    assert 0.1 < changed.mean() < 0.3  # a random order can give the stored state
    np.testing.assert_array_equal(one.terminals, other.terminals)
    np.testing.assert_array_equal(one.rewards, other.rewards)
    with pytest.raises(ValueError, match=r"reorder=1.5 is out of range: expected 0"):
        load_d3rlpy(trajectories, reorder=1.5)


# -- longer returns -----------------------------------------------------------------------------


@pytest.mark.parametrize("n_steps", [2, 3, 50])
def test_longer_transitions_are_single_ones_in_a_row(trajectories, n_steps):
    gamma = 0.9
    single = load_d3rlpy(trajectories, 3.0)
    longer = load_d3rlpy(trajectories, 3.0, n_steps=n_steps, gamma=gamma)
    index = np.arange(single.transition_count)
    targets = np.full(len(index), 3.0)
    ones, many = single.transitions(index, targets), longer.transitions(index, targets)
    for i in range(len(index)):
        end = trajectories.step_ptr[trajectories.episode[i] + 1]
        last = min(i + n_steps, end) - 1
        rewards = ones.rewards[i : last + 1, 0].astype(float)
        expected = sum(gamma**k * r for k, r in enumerate(rewards))
        assert many.rewards[i, 0] == pytest.approx(expected, rel=1e-6)
        assert many.intervals[i, 0] == last + 1 - i
        for name in ("observations", "actions"):
            np.testing.assert_array_equal(getattr(many, name)[i], getattr(ones, name)[i])
        for name in ("next_observations", "next_actions", "terminals"):
            np.testing.assert_array_equal(getattr(many, name)[i], getattr(ones, name)[last])


def test_longer_transitions_in_random_orders_end_where_their_order_leads(trajectories):
    width = len(COMPACT_HEADER)
    buffer = load_d3rlpy(trajectories, 3.0, n_steps=3, reorder=1.0)
    batch = buffer.sample_transition_batch(300)
    before, after = batch.observations[:, width:], batch.next_observations[:, width:]
    finished = np.zeros_like(after)
    finished[:, : batch.finished.shape[1]] = batch.finished
    added = (before == 0) & (after > 0)
    np.testing.assert_array_equal(added.sum(1), batch.intervals[:, 0])
    np.testing.assert_array_equal(after[added], finished[added])
    np.testing.assert_array_equal(after[before > 0], before[before > 0])
    over = (after > 0).sum(1) == (finished > 0).sum(1)
    np.testing.assert_array_equal(over, batch.terminals[:, 0] == 1)
    focus = batch.next_observations[:, 2].astype(int)
    assert (focus[over] == (finished[over] > 0).sum(1)).all()
    assert (after[~over, focus[~over]] == 0).all()
    assert (batch.rewards[~over] == 0).all()


def test_episodes_keep_single_steps(trajectories):
    one, many = (load_d3rlpy(trajectories, 3.0, n_steps=n) for n in (1, 5))
    for name in ("observations", "actions", "rewards"):
        np.testing.assert_array_equal(
            getattr(one.episodes[2], name), getattr(many.episodes[2], name)
        )


@pytest.mark.parametrize("kwargs", [{"n_steps": 0}, {"n_steps": 1.5}, {"gamma": 1.2}], ids=str)
def test_steps_and_discounts_that_are_none_are_refused(trajectories, kwargs):
    ((name, value),) = kwargs.items()
    with pytest.raises(ValueError, match=f"{name}={value}"):
        load_d3rlpy(trajectories, **kwargs)
