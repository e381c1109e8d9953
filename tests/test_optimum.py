"""`crystal_gym.evaluation.optimum`: the best filling, against a search through the environment."""

from collections import Counter
from itertools import product

import gymnasium as gym
import numpy as np
import pytest
from made_crystals import eqn_7

from crystal_gym.elements import tokens_to_symbols
from crystal_gym.evaluation import optimal_rewards, optimum, regret
from crystal_gym.oracles import TableOracle, load_table
from crystal_gym.validity import smact_valid


def all_returns(env, **options):
    """Return the return of every action sequence that the mask allows, by walking all of them."""
    found = []

    def walk(prefix):
        _, info = env.reset(seed=0, options=options)
        terminated = False
        for action in prefix:
            _, reward, terminated, _, info = env.step(action)
        if terminated:
            found.append(reward)
            return
        for action in np.flatnonzero(info["action_mask"]).tolist():
            walk([*prefix, action])

    walk([])
    return found


@pytest.mark.parametrize("target", [0.0, 1.12, 3.0, None])
def test_no_walk_through_the_environment_ends_above_the_optimum(table, target):
    env = gym.make(
        "CrystalFill-v0",
        target_gap=target,
        skeletons=table.skeletons,
        oracle=TableOracle(table),
        mask="table",
    )
    for number in (0, 1, 3):
        best = max(all_returns(env, skeleton=number, start_site=0))
        assert optimum(table, number, target).reward == pytest.approx(best, abs=1e-12)


def test_the_optimum_names_the_filling_and_its_properties(table):
    best = optimum(table, 0, 3.0)
    entry = table.properties(
        next(i for i in range(len(table)) if np.array_equal(table.entry_tokens(i), best.tokens))
    )
    assert best.properties == entry
    expected = eqn_7(entry.formation_energy_ev_per_atom, entry.band_gap_ev, 3.0)
    assert best.reward == pytest.approx(expected)


def test_a_failed_calculation_is_never_the_optimum(table):
    names = [str(s) for s in table.skeletons.names]
    failed = int(np.flatnonzero(table.status != "ok")[0])
    assert table.skeleton[failed] == names.index("rocksalt")
    assert not np.array_equal(optimum(table, 0, 3.0).tokens, table.entry_tokens(failed))


def test_a_skeleton_without_results_is_refused(table):
    only = table.of_entries(np.flatnonzero(table.skeleton == 1))
    assert np.isneginf(optimal_rewards(only, 3.0)[0])
    with pytest.raises(ValueError, match="no calculated filling of skeleton 0"):
        optimum(only, 0, 3.0)


def test_regret_is_the_distance_to_the_optimum(table):
    best = optimal_rewards(table, 2.0)
    np.testing.assert_allclose(regret(table, [1, 0], best[[1, 0]] - [0.0, 1.5], 2.0), [0.0, 1.5])


def test_another_reward_has_another_optimum(table):
    energies = optimal_rewards(table, 2.0, "energy")
    entries = [np.flatnonzero((table.skeleton == i) & (table.status == "ok")) for i in range(2)]
    expected = [np.exp(-table.formation_energy_ev_per_atom[e].min() / 5) for e in entries]
    np.testing.assert_allclose(energies[:2], expected)


@pytest.fixture(scope="module")
def tabular():
    return load_table("tabular")


def is_valid(tokens):
    return smact_valid(Counter(tokens_to_symbols(tokens)))


class TestBundledTabular:
    """The set whose every valid filling is calculated."""

    def test_it_is_as_large_as_promised(self, tabular):
        assert len(tabular.skeletons) >= 10
        assert len(tabular) >= 2000
        assert set(tabular.skeletons.n_sites.tolist()) <= {2, 3, 4}
        assert len(np.unique(tabular.tokens)) >= 40

    def test_no_crystal_is_in_twice(self, tabular):
        for entry, number in enumerate(tabular.skeleton.tolist()):
            skeleton, tokens = tabular.skeletons[number], tabular.entry_tokens(entry)
            assert tabular.entry_of(skeleton, tokens) == entry

    def test_every_valid_filling_of_each_palette_is_in(self, tabular):
        for number, skeleton in enumerate(tabular.skeletons):
            entries = np.flatnonzero(tabular.skeleton == number).tolist()
            there = {skeleton.canonical_tokens(tabular.entry_tokens(e)) for e in entries}
            palette = sorted(set(b"".join(there)))
            fillings = [np.array(f) for f in product(palette, repeat=skeleton.n_sites)]
            valid = {skeleton.canonical_tokens(f) for f in fillings if is_valid(f)}
            assert there == valid, skeleton.name

    def test_failures_have_a_status_and_no_numbers(self, tabular):
        failed = tabular.status != "ok"
        assert 0 < failed.sum() < 0.2 * len(tabular)
        assert np.isnan(tabular.band_gap_ev[failed]).all()
        assert np.isfinite(tabular.total_energy_ry[~failed]).all()

    def test_its_default_mask_is_the_table(self):
        env = gym.make("CrystalFill-v0", target_gap=3.0, skeletons="tabular")
        for seed in range(30):
            _, info = env.reset(seed=seed)
            terminated = False
            while not terminated:
                allowed = np.flatnonzero(info["action_mask"])
                _, _, terminated, _, info = env.step(int(allowed[seed % len(allowed)]))
            assert info["oracle_status"] == "ok"

    def test_the_environment_pays_the_optimum(self, tabular):
        env = gym.make("CrystalFill-v0", target_gap=3.0, skeletons="tabular")
        for number in range(len(tabular.skeletons)):
            best = optimum(tabular, number, 3.0)
            env.reset(seed=0, options={"skeleton": number})
            terminated = False
            while not terminated:
                focus = env.unwrapped.state.focus
                _, reward, terminated, _, _ = env.step(int(best.tokens[focus]) - 1)
            assert reward == pytest.approx(best.reward)

    def test_an_explicit_mask_wins(self):
        env = gym.make("CrystalFill-v0", target_gap=3.0, skeletons="tabular", mask="elements")
        _, info = env.reset(seed=0)
        assert info["action_mask"].all()
