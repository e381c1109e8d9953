"""`CrystalFill-v0`: the decision process, its options, masks, seeds and vector forms."""

import json
import math
import subprocess
import sys
import warnings

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from made_crystals import (
    NAMES,
    cif_text,
    edge_set,
    eqn_7,
    eqn_16,
    fill,
    parts,
    play,
    random_choice,
    rocksalt,
    tokens_of,
    triclinic,
)

import crystal_gym  # noqa: F401  (registers the environment)
from crystal_gym.elements import ELEMENTS, symbol_to_token
from crystal_gym.envs.observations import FORMS
from crystal_gym.oracles import Properties, Status, TableOracle
from crystal_gym.sets import load_skeletons
from crystal_gym.targets import UNIFORM_RANGE_EV
from crystal_gym.testing import FixedOracle

FORM_NAMES = list(FORMS)


def action(symbol):
    return symbol_to_token(symbol) - 1


@pytest.fixture
def make(made_set, table):
    """Return a function that makes an environment over the made crystals and their table."""

    def made(target_gap=3.0, **kwargs):
        settings = {"skeletons": made_set, "oracle": TableOracle(table), **kwargs}
        return gym.make("CrystalFill-v0", target_gap=target_gap, **settings)

    return made


# -- conformance --------------------------------------------------------------------------------


@pytest.mark.parametrize("target", [3.0, None], ids=["target", "unconditional"])
@pytest.mark.parametrize("form", FORM_NAMES)
def test_check_env_passes(make, form, target):
    env = make(target, observation=form)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        check_env(env.unwrapped, skip_render_check=True)


@pytest.mark.parametrize("form", FORM_NAMES)
def test_every_observation_of_an_episode_is_in_the_space(make, form):
    env = make(observation=form)
    for name in NAMES:
        observations, *_ = play(env, random_choice(0), seed=0, options={"skeleton": name})
        assert all(env.observation_space.contains(o) for o in observations)


def test_there_are_88_actions(make):
    assert make().action_space == gym.spaces.Discrete(88)


def test_importing_the_environment_needs_neither_torch_nor_d3rlpy():
    code = (
        "import crystal_gym, gymnasium, sys; gymnasium.make('CrystalFill-v0', target_gap=3.0);"
        "print([m for m in ('torch', 'd3rlpy', 'torch_geometric') if m in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_the_bundled_set_and_table_are_the_default():
    env = gym.make("CrystalFill-v0", target_gap=3.0)
    env.reset(seed=0, options={"skeleton": "MgO-rocksalt"})
    state = env.unwrapped.state
    _, reward, *_, info = fill(env, [ELEMENTS[t - 1] for t in state.skeleton.reference])
    assert info["oracle_status"] == "ok"
    properties = info["properties"]
    expected = eqn_7(properties["formation_energy_ev_per_atom"], properties["band_gap_ev"], 3.0)
    assert reward == pytest.approx(expected, rel=0, abs=1e-12)


# -- an episode ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_an_episode_has_one_step_per_site_and_ends_at_the_last(make, made_set, name):
    _, actions, rewards, info = play(make(), random_choice(1), seed=3, options={"skeleton": name})
    assert len(actions) == made_set[NAMES.index(name)].n_sites
    assert rewards[:-1] == [0.0] * (len(actions) - 1)
    assert info["oracle_status"] in ("ok", "unknown")


@pytest.mark.parametrize("name", NAMES)
def test_rebuilding_a_crystal_earns_eqn_7_of_its_label(make, table, name):
    env, entry = make(target_gap=2.0), table.properties(NAMES.index(name))
    env.reset(seed=0, options={"skeleton": name})
    tokens = env.unwrapped.state.skeleton.reference
    _, reward, terminated, truncated, info = fill(env, [ELEMENTS[t - 1] for t in tokens])
    expected = eqn_7(entry.formation_energy_ev_per_atom, entry.band_gap_ev, 2.0)
    assert reward == pytest.approx(expected, rel=0, abs=1e-12)
    assert (terminated, truncated) == (True, False)
    assert info["properties"] == {
        "total_energy_ry": entry.total_energy_ry,
        "formation_energy_ev_per_atom": entry.formation_energy_ev_per_atom,
        "band_gap_ev": entry.band_gap_ev,
    }
    assert info["provenance"] == entry.provenance


def test_equivalent_fillings_earn_the_same_reward(make):
    env, rewards = make(), set()
    for start in (0, 1):
        for first, second in (("Na", "Cl"), ("Cl", "Na")):
            env.reset(seed=0, options={"skeleton": "rocksalt", "start_site": start})
            env.step(action(first))
            rewards.add(env.step(action(second))[1])
    assert len(rewards) == 1
    assert rewards.pop() > 0


def test_the_final_info_names_the_crystal(make):
    env = make()
    env.reset(seed=0, options={"skeleton": "rocksalt"})
    assert fill(env, ["Mg", "O"])[4]["formula"] == "MgO"


def test_an_unknown_crystal_earns_the_failure_reward_and_says_why(make):
    env = make(failure_reward=-2.5)
    env.reset(seed=0, options={"skeleton": "rocksalt"})
    _, reward, *_, info = fill(env, ["Mg", "O"])
    assert reward == -2.5
    assert info["oracle_status"] == "unknown"
    assert "not in the table" in info["provenance"]
    assert set(info["properties"].values()) == {None}


def test_a_failed_calculation_earns_the_failure_reward_and_says_so(make):
    env = make()
    env.reset(seed=0, options={"skeleton": "rocksalt"})
    _, reward, *_, info = fill(env, ["Xe", "Kr"])
    assert reward == 0.0
    assert info["oracle_status"] == "not_converged"


def test_a_missing_property_earns_the_failure_reward_and_says_so(make):
    env = make(oracle=FixedOracle(Properties(-1.0, -1.0, None)), failure_reward=-1.0)
    env.reset(seed=0, options={"skeleton": "rocksalt"})
    _, reward, *_, info = fill(env, ["Mg", "O"])
    assert reward == -1.0
    assert "lacks a property" in info["oracle_status"]


def test_an_oracle_without_the_fast_path_is_asked_with_structures(make):
    oracle = FixedOracle(Properties(-10.0, -1.0, 2.0))
    env = make(oracle=oracle, target_gap=2.0)
    env.reset(seed=0, options={"skeleton": "rocksalt"})
    _, reward, *_ = fill(env, ["Mg", "O"])
    assert [s.composition.reduced_formula for s in oracle.asked] == ["MgO"]
    assert reward == pytest.approx(eqn_7(-1.0, 2.0, 2.0), abs=1e-12)


@pytest.mark.parametrize(
    ("reward", "expected"),
    [
        ("formation", eqn_7(-1.0, 2.0, 3.0)),
        ("total_energy", eqn_16(-10.0, 2.0, 3.0)),
        ("energy", math.exp(0.2)),
        (lambda properties, target: properties.band_gap_ev * 100 + target, 203.0),
    ],
    ids=["formation", "total_energy", "energy", "callable"],
)
def test_the_chosen_reward_is_given(make, reward, expected):
    env = make(oracle=FixedOracle(Properties(-10.0, -1.0, 2.0)), reward=reward)
    env.reset(seed=0, options={"skeleton": "rocksalt"})
    assert fill(env, ["Mg", "O"])[1] == pytest.approx(expected, abs=1e-12)


def test_without_a_target_only_the_energy_counts(make):
    env = make(None, oracle=FixedOracle(Properties(-10.0, -1.0, 2.0)))
    env.reset(seed=0, options={"skeleton": "rocksalt"})
    assert fill(env, ["Mg", "O"])[1] == pytest.approx(math.exp(0.2), abs=1e-12)


def test_the_structure_so_far_holds_dummies_on_empty_sites(make):
    env = make()
    env.reset(seed=0, options={"skeleton": "perovskite", "start_site": 2})
    env.step(action("Ti"))
    symbols = [site.specie.symbol for site in env.unwrapped.structure()]
    assert symbols == ["X", "X", "Ti", "X", "X"]


def test_a_state_that_was_kept_does_not_change(make):
    env = make()
    env.reset(seed=0, options={"skeleton": "rocksalt"})
    before = env.unwrapped.state
    env.step(action("Mg"))
    assert before.tokens.tolist() == [0, 0]
    with pytest.raises(ValueError, match="read-only"):
        before.tokens[0] = 1


# -- the traversal ------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["canonical", "shuffled", "source"])
@pytest.mark.parametrize("name", ["layered", "molecular"])
def test_every_site_of_a_disconnected_skeleton_is_filled(make, name, order):
    env = make(site_order=order)
    for seed in range(3):
        play(env, random_choice(seed), seed=seed, options={"skeleton": name})
        state = env.unwrapped.state
        assert (state.tokens > 0).all()
        assert len(parts(state.skeleton.n_sites, state.skeleton.edge_index)) == 2


def test_the_canonical_traversal_is_the_same_for_the_same_start(make):
    env, options = make(), {"skeleton": "layered", "start_site": 2}
    seen = set()
    for seed in range(5):
        env.reset(seed=seed, options=options)
        seen.add(env.unwrapped.state.traversal)
    assert len(seen) == 1


def test_the_shuffled_traversal_changes_with_the_seed(make):
    env, options = make(site_order="shuffled"), {"skeleton": "layered", "start_site": 2}
    seen = set()
    for seed in range(10):
        env.reset(seed=seed, options=options)
        seen.add(env.unwrapped.state.traversal)
    assert len(seen) > 1
    assert {order[0] for order in seen} == {2}


def test_the_source_order_numbers_sites_as_the_file_does(make):
    env = make(site_order="source")
    env.reset(seed=0, options={"skeleton": "triclinic"})
    expected = tokens_of([s.specie for s in triclinic()])
    np.testing.assert_array_equal(env.unwrapped.state.skeleton.reference, expected)


def test_the_source_order_earns_the_same_reward(made_set, table):
    found = []
    for order in ("canonical", "source"):
        env = gym.make(
            "CrystalFill-v0",
            target_gap=3.0,
            skeletons=table.skeletons,
            oracle=TableOracle(table),
            site_order=order,
        )
        env.reset(seed=0, options={"skeleton": "triclinic"})
        tokens = env.unwrapped.state.skeleton.reference
        found.append(fill(env, [ELEMENTS[t - 1] for t in tokens])[1])
    assert found[0] == found[1] > 0


# -- seeds and options --------------------------------------------------------------------------


def episode_of(env, seed):
    return play(env, random_choice(seed), seed=seed)


@pytest.mark.parametrize("order", ["canonical", "shuffled"])
@pytest.mark.parametrize("form", FORM_NAMES)
def test_the_same_seed_gives_the_same_episode(make, form, order):
    runs = [episode_of(make(observation=form, site_order=order), 11) for _ in range(2)]
    for one, other in zip(runs[0][0], runs[1][0], strict=True):
        assert gym.utils.env_checker.data_equivalence(one, other)
    assert runs[0][1:3] == runs[1][1:3]
    assert runs[0][3]["formula"] == runs[1][3]["formula"]


def test_the_same_seed_gives_the_same_following_episodes(make):
    def following(env):
        env.reset(seed=4)
        starts = []
        for _ in range(6):
            _, info = env.reset()
            starts.append((info["skeleton"], info["focus"]))
        return starts

    assert following(make()) == following(make())


def test_different_seeds_give_different_episodes(make):
    env, seen = make(), set()
    for seed in range(20):
        _, info = env.reset(seed=seed)
        seen.add((info["skeleton"], info["focus"]))
    assert len(seen) > 5


def test_every_skeleton_and_every_start_site_is_drawn(make, made_set):
    env, seen = make(), set()
    env.reset(seed=0)
    for _ in range(400):
        _, info = env.reset()
        seen.add((info["skeleton"], info["focus"]))
    assert seen == {(s.name, site) for s in made_set for site in range(s.n_sites)}


@pytest.mark.parametrize("wanted", [3, np.int64(3), "perovskite"])
def test_the_skeleton_can_be_chosen_by_number_or_name(make, wanted):
    _, info = make().reset(seed=0, options={"skeleton": wanted})
    assert info["skeleton"] == NAMES[3] == "perovskite"


def test_the_start_site_can_be_chosen(make):
    env = make()
    for start in range(5):
        _, info = env.reset(seed=0, options={"skeleton": "perovskite", "start_site": start})
        assert info["focus"] == start == env.unwrapped.state.traversal[0]


def test_choosing_the_skeleton_leaves_the_drawn_start_as_it_is(make):
    env = make()
    _, drawn = env.reset(seed=8)
    _, chosen = env.reset(seed=8, options={"skeleton": drawn["skeleton"]})
    assert chosen["focus"] == drawn["focus"]


def targets_of(env, episodes):
    return [float(env.reset(seed=s)[0]["target_gap"][0]) for s in range(episodes)]


def test_each_episode_draws_one_target_of_a_list(make):
    drawn = targets_of(make(target_gap=[1.0, 2.0, 5.0]), 300)
    values, counts = np.unique(drawn, return_counts=True)
    assert values.tolist() == [1.0, 2.0, 5.0]
    assert counts.min() > 70


def test_each_episode_draws_a_target_from_the_uniform_range(make):
    counts, _ = np.histogram(targets_of(make(target_gap="uniform"), 300), 6, UNIFORM_RANGE_EV)
    assert counts.sum() == 300
    assert counts.min() > 30


def test_a_drawn_target_enters_the_reward(make, table):
    env, entry = make(target_gap="uniform"), table.properties(0)
    observation, _ = env.reset(seed=5, options={"skeleton": "rocksalt"})
    target = env.unwrapped.state.target_gap
    assert observation["target_gap"].tolist() == [np.float32(target)]
    expected = eqn_7(entry.formation_energy_ev_per_atom, entry.band_gap_ev, target)
    assert fill(env, ["Na", "Cl"])[1] == pytest.approx(expected, rel=0, abs=1e-12)


def test_drawing_a_target_leaves_skeleton_and_start_as_they_are(make):
    fixed, drawn = make(target_gap=3.0), make(target_gap="uniform")
    for seed in range(5):
        assert fixed.reset(seed=seed)[1]["skeleton"] == drawn.reset(seed=seed)[1]["skeleton"]
        assert fixed.unwrapped.state.traversal == drawn.unwrapped.state.traversal


def test_choosing_the_skeleton_leaves_the_drawn_target_as_it_is(make):
    env = make(target_gap="uniform")
    env.reset(seed=8)
    target = env.unwrapped.state.target_gap
    env.reset(seed=8, options={"skeleton": "rocksalt", "start_site": 0})
    assert env.unwrapped.state.target_gap == target


def test_a_target_of_the_options_holds_for_one_episode(make):
    env = make(target_gap=3.0)
    observation, _ = env.reset(seed=0, options={"target_gap": 1.12})
    assert observation["target_gap"].tolist() == [np.float32(1.12)]
    observation, _ = env.reset(seed=0)
    assert observation["target_gap"].tolist() == [3.0]


def test_a_target_of_the_options_enters_the_reward(make, table):
    env, entry = make(target_gap=3.0), table.properties(0)
    env.reset(seed=0, options={"skeleton": "rocksalt", "target_gap": 1.12})
    expected = eqn_7(entry.formation_energy_ev_per_atom, entry.band_gap_ev, 1.12)
    assert fill(env, ["Na", "Cl"])[1] == pytest.approx(expected, rel=0, abs=1e-12)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"skeletons": 1}, ValueError, "reset option 'skeletons' is unknown: expected skeleton"),
        ({"skeleton": 7}, ValueError, "skeleton=7 is not in this set: expected 0 to 6"),
        ({"skeleton": -1}, ValueError, "skeleton=-1 is not in this set"),
        ({"skeleton": 1.5}, TypeError, "skeleton=1.5 is not an integer"),
        ({"skeleton": True}, TypeError, "skeleton=True is not an integer"),
        ({"skeleton": "no-such"}, ValueError, "skeleton 'no-such' is not in this set of 7"),
        ({"skeleton": 0, "start_site": 2}, ValueError, "start_site=2 is not a site: .* 0 to 1"),
        ({"skeleton": 0, "start_site": -1}, ValueError, "start_site=-1 is not a site"),
        ({"start_site": "first"}, TypeError, "start_site='first' is not an integer"),
        ({"target_gap": -1.0}, ValueError, "target_gap=-1.0 eV is no band gap"),
        ({"target_gap": float("nan")}, ValueError, "target_gap=nan eV is no band gap"),
        ({"target_gap": "3"}, TypeError, "target_gap='3' is not a number"),
        ({"target_gap": None}, ValueError, "made with target_gap=a number"),
    ],
    ids=str,
)
def test_a_bad_reset_option_is_refused(make, options, error, message):
    with pytest.raises(error, match=message):
        make().reset(seed=0, options=options)


def test_a_target_is_refused_where_there_is_none(make):
    with pytest.raises(ValueError, match="made with target_gap=None"):
        make(None).reset(seed=0, options={"target_gap": 2.0})


# -- masks --------------------------------------------------------------------------------------


def test_all_elements_are_allowed_by_default(make):
    _, info = make().reset(seed=0)
    assert info["action_mask"].dtype == np.int8
    assert info["action_mask"].tolist() == [1] * 88


def test_only_the_chosen_elements_are_allowed_at_every_step(make):
    env = make(elements=["Zn", "S"])
    _, info = env.reset(seed=0, options={"skeleton": "perovskite"})
    for _ in range(5):
        assert {ELEMENTS[a] for a in np.flatnonzero(info["action_mask"])} == {"Zn", "S"}
        *_, info = env.step(action("S"))


def test_action_masks_are_those_of_the_info(make):
    env = make(mask="table")
    _, info = env.reset(seed=0, options={"skeleton": "perovskite"})
    choose = random_choice(0)
    for _ in range(4):
        np.testing.assert_array_equal(env.unwrapped.action_masks(), info["action_mask"])
        *_, info = env.step(choose(info))


def test_changing_a_returned_mask_does_not_change_the_environment(make):
    env = make(elements=["Zn"])
    _, info = env.reset(seed=0)
    info["action_mask"][:] = 1
    env.unwrapped.action_masks()[:] = 1
    assert env.unwrapped.action_masks().sum() == 1


def test_the_table_mask_allows_the_elements_of_calculated_fillings(make):
    _, info = make(mask="table").reset(seed=0, options={"skeleton": "rocksalt"})
    allowed = {ELEMENTS[a] for a in np.flatnonzero(info["action_mask"])}
    assert allowed == {"Na", "Cl", "Li", "F"}  # XeKr failed


def test_the_table_mask_follows_the_sites_filled_so_far(make):
    env = make(mask="table")
    env.reset(seed=0, options={"skeleton": "rocksalt"})
    *_, info = env.step(action("Li"))
    assert {ELEMENTS[a] for a in np.flatnonzero(info["action_mask"])} == {"F"}


@pytest.mark.parametrize("name", NAMES)
def test_following_the_table_mask_always_ends_in_a_calculated_crystal(make, name):
    env = make(mask="table")
    for seed in range(4):
        *_, info = play(env, random_choice(seed), seed=seed, options={"skeleton": name})
        assert info["oracle_status"] == "ok"


def test_the_table_mask_and_the_elements_hold_together(make):
    env = make(mask="table", elements=["Na", "Cl", "F"])
    env.reset(seed=0, options={"skeleton": "rocksalt"})
    mask = env.unwrapped.action_masks()
    assert mask[action("Na")] == 1
    assert mask[action("Li")] == 0


def test_a_skeleton_without_calculated_fillings_is_refused(make):
    env = make(mask="table", elements=["Zn"])
    with pytest.raises(ValueError, match="no allowed element is left for site .* of rocksalt"):
        env.reset(seed=0, options={"skeleton": "rocksalt"})


# -- bad input ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "error", "message"),
    [
        (-1.0, ValueError, "target_gap=-1.0 eV is no band gap: expected a number from 0"),
        (float("nan"), ValueError, "target_gap=nan eV is no band gap"),
        (float("inf"), ValueError, "target_gap=inf eV is no band gap"),
        ("three", ValueError, "target_gap='three' is unknown: expected a number in eV, 'uniform'"),
        (True, TypeError, "target_gap=True is not a number"),
        ({3.0}, TypeError, r"target_gap=\{3.0\} is not a number: expected a band gap in eV"),
        ([], TypeError, r"target_gap=\[\] is not usable: expected a non-empty list"),
        ([1.0, -2.0], ValueError, "target_gap=-2.0 eV is no band gap"),
        ("hindsight", ValueError, "target_gap='hindsight' is for stored episodes"),
        ([3.0, "hindsight"], ValueError, "target_gap='hindsight' is for stored episodes"),
    ],
    ids=str,
)
def test_a_bad_target_is_refused(target, error, message):
    with pytest.raises(error, match=message):
        gym.make("CrystalFill-v0", target_gap=target)


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"skeletons": "no-such-set"}, ValueError, "'no-such-set' is neither a known set nor"),
        ({"skeletons": []}, ValueError, "needs at least one structure"),
        ({"skeletons": 3}, TypeError, "type int is not understood"),
        ({"oracle": "no-such"}, ValueError, "'no-such' is neither a known table"),
        ({"oracle": 3}, TypeError, r"oracle=3 has no evaluate\(structures\)"),
        ({"observation": "picture"}, ValueError, "observation='picture' is unknown: .* graph"),
        ({"mask": "none"}, ValueError, "mask='none' is unknown: expected one of elements"),
        ({"reward": "best"}, ValueError, "reward='best' is unknown: expected one of formation"),
        ({"reward": 3}, TypeError, "reward=3 is not callable"),
        ({"site_order": "file"}, ValueError, "site_order='file' is unknown: .* canonical"),
        ({"elements": ["Xx"]}, ValueError, "element 'Xx' is not supported"),
        ({"elements": ["Ar"]}, ValueError, "element 'Ar' is not supported"),
        ({"elements": "Zn"}, TypeError, "elements='Zn' is one string"),
        ({"elements": []}, ValueError, "elements is empty"),
        ({"failure_reward": float("nan")}, ValueError, "failure_reward=nan is not usable"),
        ({"failure_reward": "none"}, ValueError, "failure_reward='none' is not usable"),
    ],
    ids=str,
)
def test_a_bad_argument_is_refused(kwargs, error, message):
    with pytest.raises(error, match=message):
        gym.make("CrystalFill-v0", target_gap=3.0, **kwargs)


def test_the_table_mask_needs_a_table(make):
    with pytest.raises(ValueError, match="mask='table' needs a table oracle, not FixedOracle"):
        make(mask="table", oracle=FixedOracle(Properties()))


@pytest.mark.parametrize(
    ("bad", "error", "message"),
    [
        (88, ValueError, "action=88 is out of range: expected 0 to 87"),
        (-1, ValueError, "action=-1 is out of range"),
        (1.0, TypeError, "action=1.0 is not an integer"),
        (np.float32(2), TypeError, "is not an integer"),
        ("Zn", TypeError, "action='Zn' is not an integer"),
        (None, TypeError, "action=None is not an integer"),
        (True, TypeError, "action=True is not an integer"),
        (np.array([1, 2]), TypeError, "is not an integer"),
    ],
    ids=str,
)
def test_a_bad_action_is_refused_and_changes_nothing(make, bad, error, message):
    env = make().unwrapped
    env.reset(seed=0)
    before = env.state
    with pytest.raises(error, match=message):
        env.step(bad)
    assert env.state is before


@pytest.mark.parametrize("good", [11, np.int64(11), np.array(11), np.array([11])], ids=repr)
def test_integers_of_every_kind_are_actions(make, good):
    env = make().unwrapped
    env.reset(seed=0)
    env.step(good)
    assert env.state.tokens.max() == 12


def test_a_masked_action_is_refused_by_name(make):
    env = make(elements=["Zn", "S"])
    env.reset(seed=0)
    with pytest.raises(ValueError, match=rf"action {action('O')} \(O\) is masked here"):
        env.step(action("O"))


@pytest.mark.parametrize("call", ["step", "structure", "state"])
def test_before_the_first_reset_there_is_no_episode(make, call):
    env = make().unwrapped
    with pytest.raises(RuntimeError, match=r"call reset\(\) first"):
        {"step": lambda: env.step(0), "structure": env.structure, "state": lambda: env.state}[
            call
        ]()


def test_step_before_reset_is_refused_through_the_wrappers(make):
    with pytest.raises(Exception, match="reset"):
        make().step(0)


def test_step_after_the_end_is_refused(make):
    env = make().unwrapped
    env.reset(seed=0, options={"skeleton": "rocksalt"})
    env.step(0)
    env.step(0)
    with pytest.raises(RuntimeError, match=r"step\(\) after the end: all 2 sites are filled"):
        env.step(0)


# -- specs and vectors --------------------------------------------------------------------------


def test_the_spec_survives_json():
    kwargs = {"observation": "compact", "elements": ["Zn", "S"], "mask": "elements"}
    env = gym.make("CrystalFill-v0", target_gap=2.5, **kwargs)
    text = env.spec.to_json()
    assert json.loads(text)["kwargs"] == {"target_gap": 2.5, **kwargs}
    again = gym.make(gym.envs.registration.EnvSpec.from_json(text))
    assert again.observation_space == env.observation_space
    assert again.unwrapped.action_masks().sum() == 2


def test_a_spec_in_json_works_where_the_package_was_not_imported():
    text = gym.make("CrystalFill-v0", target_gap=2.5).spec.to_json()
    code = (
        "import sys, gymnasium as gym; from gymnasium.envs.registration import EnvSpec;"
        "env = gym.make(EnvSpec.from_json(sys.argv[1])); env.reset(seed=0); print('fine')"
    )
    assert subprocess.check_output([sys.executable, "-c", code, text], text=True) == "fine\n"


def test_importing_the_package_again_is_harmless():
    import importlib

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        importlib.reload(sys.modules["crystal_gym"])


def vector(kind, form, **kwargs):
    ids = [lambda: gym.make("CrystalFill-v0", target_gap=3.0, observation=form)] * 2
    classes = {"sync": gym.vector.SyncVectorEnv, "async": gym.vector.AsyncVectorEnv}
    return classes[kind](ids, **kwargs)


def run_vector(envs, n_steps=12):
    rewards, ends = [], 0
    try:
        envs.reset(seed=[5, 6])
        generator = np.random.default_rng(0)
        for _ in range(n_steps):
            _, reward, terminated, truncated, info = envs.step(generator.integers(88, size=2))
            assert info["action_mask"].shape == (2, 88)
            assert not truncated.any()
            rewards.append(reward.tolist())
            ends += int(terminated.sum())
    finally:
        envs.close()
    return rewards, ends


@pytest.mark.parametrize("form", FORM_NAMES)
def test_a_sync_vector_of_every_form_runs_past_the_end_of_episodes(form):
    assert run_vector(vector("sync", form))[1] >= 2


@pytest.mark.parametrize("form", ["graph", "packed", "compact"])
def test_an_async_vector_runs_past_the_end_of_episodes(form):
    assert run_vector(vector("async", form))[1] >= 2


def test_an_async_vector_of_graph_spaces_runs_without_shared_memory():
    assert run_vector(vector("async", "space", shared_memory=False))[1] >= 2


@pytest.mark.parametrize("form", ["graph", "packed", "compact"])
def test_sync_and_async_vectors_give_the_same_observations(form):
    seen = []
    for kind in ("sync", "async"):
        envs = vector(kind, form)
        try:
            envs.reset(seed=[5, 6])
            seen.append(envs.step(np.array([3, 4]))[0])
        finally:
            envs.close()
    assert gym.utils.env_checker.data_equivalence(*seen)


def test_own_structures_and_files_make_an_environment(tmp_path):
    (tmp_path / "salt.cif").write_text(cif_text(rocksalt()))
    env = gym.make("CrystalFill-v0", target_gap=3.0, skeletons=str(tmp_path / "salt.cif"))
    _, info = env.reset(seed=0)
    assert info["skeleton"] == "salt"


def test_own_structures_are_looked_up_in_the_bundled_table():
    bundled = load_skeletons("mini")
    (number,) = np.flatnonzero(bundled.names == "MgO-rocksalt")
    structure = bundled[int(number)].structure(bundled[int(number)].reference)
    structure.translate_sites([0, 1], [0.1, 0.2, 0.3])
    env = gym.make("CrystalFill-v0", target_gap=3.0, skeletons=[structure])
    env.reset(seed=0)
    *_, info = fill(env, ["Mg", "O"])
    assert info["oracle_status"] == str(Status.OK)


def test_the_graph_observed_is_the_graph_of_the_skeleton(make, made_set):
    env = make()
    observation, _ = env.reset(seed=0, options={"skeleton": "triclinic"})
    skeleton = made_set[NAMES.index("triclinic")]
    real = observation["edge_mask"].astype(bool)
    seen = edge_set(observation["edge_index"][:, real], observation["edge_image"][real])
    assert seen == edge_set(skeleton.edge_index, skeleton.edge_image)


def test_a_table_mask_with_chosen_elements_never_runs_dry():
    env = gym.make(
        "CrystalFill-v0", target_gap=3.0, mask="table", elements=["Mg", "Na", "F", "Cl", "S", "O"]
    ).unwrapped
    finished = 0
    for number in range(len(env.skeletons)):
        try:
            _, info = env.reset(seed=number, options={"skeleton": number})
        except ValueError:
            continue  # no calculated filling of this skeleton holds these elements alone
        terminated = False
        while not terminated:
            action = int(np.flatnonzero(info["action_mask"])[-1])
            _, _, terminated, _, info = env.step(action)
        assert info["oracle_status"] == "ok"
        finished += 1
    assert finished > 3


@pytest.mark.parametrize("answer", [{}, [], None, [{"band_gap_ev": 1.0}]], ids=str)
def test_an_oracle_that_answers_nonsense_is_named(answer):
    class Nonsense:
        def evaluate(self, structures):
            return answer

    env = gym.make("CrystalFill-v0", target_gap=3.0, oracle=Nonsense()).unwrapped
    env.reset(seed=0)
    for _ in range(env.state.skeleton.n_sites - 1):
        env.step(0)
    with pytest.raises(TypeError, match="the oracle Nonsense answered"):
        env.step(0)
