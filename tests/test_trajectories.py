"""`crystal_gym.datasets.trajectories`: which orders a crystal is filled in."""

from dataclasses import replace

import numpy as np
import pytest
from made_crystals import EXTRA_FILLINGS, NAMES

from crystal_gym.datasets.trajectories import plan_trajectories, start_sites
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
    np.testing.assert_array_equal(trajectories.tokens, expected)


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
