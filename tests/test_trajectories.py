"""`crystal_gym.datasets.trajectories`: which orders a crystal is filled in."""

from dataclasses import replace

import numpy as np
import pytest
from made_crystals import EXTRA_FILLINGS, NAMES

from crystal_gym.datasets.trajectories import (
    in_source_order,
    joined,
    plan_trajectories,
    sample_boltzmann,
    sample_uniform,
    start_sites,
)
from crystal_gym.graphs import breadth_first_order
from crystal_gym.oracles import Status


def test_every_calculated_crystal_has_up_to_five_orders(trajectories, table):
    entries = np.flatnonzero(table.status == "ok")
    sites = table.skeletons.n_sites[table.skeleton[entries]]
    assert len(trajectories) == np.minimum(sites, 5).sum()
    assert len(trajectories.actions) == (np.minimum(sites, 5) * sites).sum()


def test_orders_of_one_crystal_start_at_different_sites(trajectories):
    starts = trajectories.traversal[trajectories.step_ptr[:-1]]
    pairs = list(zip(trajectories.total_energy_ry.tolist(), starts.tolist(), strict=True))
    assert len(set(pairs)) == len(pairs)


def test_failed_calculations_give_no_episode(trajectories, table):
    failed = [x for x in EXTRA_FILLINGS if x[2] is Status.NOT_CONVERGED]
    assert len(failed) == 1
    assert len(set(trajectories.total_energy_ry.tolist())) == len(table) - 1
    assert not np.isnan(trajectories.band_gap_ev).any()


def test_disconnected_crystals_are_in(trajectories):
    names = {str(trajectories.skeletons.names[i]) for i in trajectories.skeleton}
    assert {"layered", "molecular"} <= names == set(NAMES)


def test_each_order_is_a_breadth_first_order_over_all_sites(trajectories):
    for k in range(len(trajectories)):
        a, b = trajectories.step_ptr[k : k + 2]
        skeleton = trajectories.skeletons[int(trajectories.skeleton[k])]
        order = trajectories.traversal[a:b]
        expected = breadth_first_order(skeleton.neighbours, int(order[0]))
        np.testing.assert_array_equal(order, expected)


def test_actions_rebuild_the_entry(trajectories, table):
    by_energy = {e: i for i, e in enumerate(table.total_energy_ry.tolist())}
    for k in range(len(trajectories)):
        entry = by_energy[float(trajectories.total_energy_ry[k])]
        np.testing.assert_array_equal(trajectories.final_tokens(k), table.entry_tokens(entry))
        assert trajectories.band_gap_ev[k] == table.band_gap_ev[entry]
        assert (
            trajectories.formation_energy_ev_per_atom[k]
            == table.formation_energy_ev_per_atom[entry]
        )


def test_tokens_are_those_placed_before_each_step(trajectories):
    expected = []
    for k in range(len(trajectories)):
        tokens = np.zeros(trajectories.skeletons.max_sites, dtype=int)
        for t in range(trajectories.step_ptr[k], trajectories.step_ptr[k + 1]):
            expected.append(tokens.copy())
            tokens[trajectories.traversal[t]] = trajectories.actions[t] + 1
    found = trajectories.tokens_before(np.arange(len(trajectories.actions)))
    np.testing.assert_array_equal(found, expected)


def test_episode_and_step_number_every_transition(trajectories):
    expected = [
        (k, step)
        for k in range(len(trajectories))
        for step in range(trajectories.step_ptr[k + 1] - trajectories.step_ptr[k])
    ]
    found = np.column_stack([trajectories.episode, trajectories.step])
    np.testing.assert_array_equal(found, expected)


def test_start_sites_are_different_and_follow_from_the_geometry(made_set):
    for skeleton in made_set:
        starts = start_sites(skeleton, 5).tolist()
        assert len(set(starts)) == len(starts) == min(5, skeleton.n_sites)
        assert starts == start_sites(skeleton, 5).tolist()


def test_fewer_orders_are_the_first_of_more(made_set):
    for skeleton in made_set:
        assert start_sites(skeleton, 1)[0] == start_sites(skeleton, 5)[0]


def test_a_table_without_calculated_crystals_is_refused(table):
    failed = replace(table, status=np.full(len(table), "not_converged"))
    with pytest.raises(ValueError, match="holds no calculated crystal"):
        plan_trajectories(failed)


def test_uniform_episodes_end_in_calculated_fillings(table):
    episodes = sample_uniform(table, 20, seed=3)
    assert len(episodes) == 20 * len(table.skeletons)
    energies = table.total_energy_ry[table.status == "ok"].tolist()
    assert set(episodes.total_energy_ry.tolist()) <= set(energies)
    rocksalt = episodes.total_energy_ry[episodes.skeleton == 0]
    assert len(set(rocksalt.tolist())) == 2  # both of its calculated fillings come up


def test_uniform_episodes_choose_uniformly_among_allowed_elements(table):
    episodes = sample_uniform(table, 400, seed=0)
    first = episodes.actions[episodes.step_ptr[:-1]][episodes.skeleton == 0]
    counts = np.bincount(first)[np.unique(first)]
    assert len(counts) == 4  # Na, Cl, Li, F on either site
    assert counts.min() > 60  # 100 expected, standard deviation 9


def test_a_cold_policy_ends_in_the_best_filling(table):
    rewards = np.where(table.status == "ok", table.band_gap_ev, -np.inf)
    episodes = sample_boltzmann(table, rewards, 5, temperature=1e-3)
    best = [rewards[table.skeleton == i].max() for i in range(len(table.skeletons))]
    np.testing.assert_array_equal(episodes.band_gap_ev, np.repeat(best, 5))


def test_a_warm_policy_follows_boltzmann_weights(table):
    rewards = np.full(len(table), -np.inf)
    entries = np.flatnonzero((table.skeleton == 0) & (table.status == "ok"))
    rewards[table.status == "ok"] = 0.0
    rewards[entries] = [0.0, np.log(3.0)]
    episodes = sample_boltzmann(table, rewards, 2000, temperature=1.0)
    ended = episodes.total_energy_ry[episodes.skeleton == 0]
    share = np.mean(ended == table.total_energy_ry[entries[1]])
    assert share == pytest.approx(0.75, abs=0.04)  # four standard deviations


def test_sampled_episodes_depend_on_the_seed_alone(table):
    one, same, other = (sample_uniform(table, 5, seed=s) for s in (1, 1, 2))
    np.testing.assert_array_equal(one.actions, same.actions)
    assert one.actions.tolist() != other.actions.tolist()


def test_joined_episodes_follow_each_other(table):
    first, second = sample_uniform(table, 2, seed=0), sample_uniform(table, 3, seed=1)
    both = joined([first, second])
    assert len(both) == len(first) + len(second)
    for k, part in ((0, first), (len(first), second)):
        for i in range(len(part)):
            np.testing.assert_array_equal(both.final_tokens(k + i), part.final_tokens(i))
    np.testing.assert_array_equal(both.band_gap_ev[len(first) :], second.band_gap_ev)


def test_episodes_over_different_sets_cannot_be_joined(table, made_set):
    fewer = sample_uniform(replace(table.of_entries(np.array([0])), skeletons=made_set[:1]), 1)
    with pytest.raises(ValueError, match="different skeleton sets"):
        joined([sample_uniform(table, 1), fewer])


def test_the_source_order_fills_the_same_atoms(trajectories):
    """Same places in space, same elements, numbered as in the files."""
    source = in_source_order(trajectories)
    for k in range(len(trajectories)):
        mine = trajectories.skeletons[int(trajectories.skeleton[k])]
        theirs = source.skeletons[int(source.skeleton[k])]
        steps = slice(trajectories.step_ptr[k], trajectories.step_ptr[k + 1])
        places = mine.frac_coords[trajectories.traversal[steps]]
        assert (theirs.frac_coords[source.traversal[steps]] == places).all()
    assert (source.actions == trajectories.actions).all()
    assert (source.skeletons.source_rank[: source.skeletons.site_ptr[1]] >= 0).all()


def test_a_subset_holds_the_episodes_asked_for(trajectories, monkeypatch):
    monkeypatch.setattr("crystal_gym.files._MAPPED_FROM", 0)
    monkeypatch.setattr("crystal_gym.datasets.trajectories._EPISODES_AT_ONCE", 3)
    wanted = np.array([7, 2, 2, len(trajectories) - 1])
    some = trajectories.subset(wanted)
    assert len(some) == 4
    for number, episode in enumerate(wanted.tolist()):
        ours = slice(*some.step_ptr[number : number + 2].tolist())
        theirs = slice(*trajectories.step_ptr[episode : episode + 2].tolist())
        np.testing.assert_array_equal(some.traversal[ours], trajectories.traversal[theirs])
        np.testing.assert_array_equal(some.actions[ours], trajectories.actions[theirs])
        assert some.band_gap_ev[number] == trajectories.band_gap_ev[episode]


def test_finished_crystals_are_those_of_each_episode(trajectories, monkeypatch):
    monkeypatch.setattr("crystal_gym.datasets.trajectories._EPISODES_AT_ONCE", 3)
    for episode, tokens in enumerate(trajectories.finished):
        expected = trajectories.final_tokens(episode)
        np.testing.assert_array_equal(tokens[: len(expected)], expected)
        assert not tokens[len(expected) :].any()


def test_a_subset_of_nothing_is_empty(trajectories):
    nothing = trajectories.subset(np.empty(0, dtype=np.int64))
    assert (len(nothing), len(nothing.actions)) == (0, 0)


def test_all_episodes_in_order_are_the_same_object(trajectories):
    assert trajectories.subset(np.arange(len(trajectories))) is trajectories
