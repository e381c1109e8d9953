"""Skeletons of 60 sites through everything that takes skeletons."""

import gymnasium as gym
import minari
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from made_crystals import STRUCTURES
from pymatgen.core import Lattice

import crystal_gym  # noqa: F401  (registers CrystalFill-v0)
from crystal_gym.datasets.minari_io import DatasetCard, load_trajectories, write_dataset
from crystal_gym.datasets.trajectories import plan_trajectories
from crystal_gym.elements import N_ELEMENTS
from crystal_gym.oracles import Properties, Status, TableOracle
from crystal_gym.oracles.table import table_of_fillings
from crystal_gym.skeletons import build_skeletons
from crystal_gym.structures import cell_from_structure

SITES = 60
TILINGS = {"rocksalt": (5, 3, 2), "perovskite": (3, 2, 2), "triclinic": (5, 2, 1)}


def tiled(name):
    """Return 60 sites of a made crystal under a strain that leaves no symmetry but translations."""
    structure = STRUCTURES[name].copy()
    strain = np.random.default_rng(0).normal(scale=0.02, size=(3, 3))
    structure.lattice = Lattice(structure.lattice.matrix @ (np.eye(3) + (strain + strain.T) / 2))
    structure.make_supercell(TILINGS[name])
    return structure


@pytest.fixture(scope="module")
def table():
    cells = [cell_from_structure(tiled(name), name) for name in TILINGS]
    skeletons, problems = build_skeletons(cells, workers=1)
    assert not problems
    assert set(skeletons.n_sites) == {SITES}
    found = Properties(-9.0, -1.0, 2.0, Status.OK, "made")
    return table_of_fillings(skeletons, [(i, c.reference, found) for i, c in enumerate(cells)])


@pytest.fixture(scope="module")
def trajectories(table):
    return plan_trajectories(table)


def made(table, **options):
    return gym.make(
        "CrystalFill-v0",
        skeletons=table.skeletons,
        oracle=TableOracle(table),
        target_gap=2.0,
        disable_env_checker=True,
        **options,
    )


@pytest.mark.parametrize("form", ["graph", "packed", "compact", "space"])
def test_an_episode_of_60_steps_ends_in_the_known_crystal(table, form):
    env = made(table, observation=form)
    observation, _ = env.reset(seed=0, options={"skeleton": 1})
    reference = table.skeletons[1].reference
    for step in range(SITES):
        assert observation in env.observation_space
        action = int(reference[env.unwrapped.state.focus]) - 1
        observation, reward, terminated, _, info = env.step(action)
        assert terminated == (step == SITES - 1)
    assert info["oracle_status"] == "ok"
    assert reward == pytest.approx(np.exp(1 / 5) + 10)


@pytest.mark.filterwarnings("ignore:.*Box observation space:UserWarning")
def test_gymnasiums_check_passes(table):
    check_env(made(table).unwrapped, skip_render_check=True)


@pytest.mark.parametrize("mask", ["table", "charge_neutral"])
def test_masks_lead_to_the_end(table, mask):
    # With all 88 elements a neutral composition of 60 sites is a search of half a second a site.
    env = made(table, mask=mask, elements=["Na", "Mg", "Cl", "O", "Sr", "Ti"])
    # Of rock salt: without elements its two kinds of sites are one, and either may come first.
    _, info = env.reset(seed=1, options={"skeleton": 0})
    generator = np.random.default_rng(0)
    terminated = False
    while not terminated:
        allowed = np.flatnonzero(info["action_mask"])
        assert len(allowed)
        *_, terminated, _, info = env.step(int(generator.choice(allowed)))
    if mask == "table":  # some labelling of the one crystal that is known
        assert info["oracle_status"] == "ok"


def test_the_vector_environment_answers_as_single_ones(table):
    many = gym.make_vec(
        "CrystalFill-v0",
        num_envs=4,
        vectorization_mode="vector_entry_point",
        skeletons=table.skeletons,
        oracle=TableOracle(table),
        target_gap=2.0,
    )
    single = [made(table) for _ in range(4)]
    seen, _ = many.reset(seed=3)
    for i, env in enumerate(single):
        first = env.reset(seed=3 + i)[0]
        assert all(np.array_equal(seen[name][i], first[name]) for name in first)
    generator = np.random.default_rng(0)
    for _ in range(SITES):
        actions = generator.integers(N_ELEMENTS, size=4)
        seen, rewards, over, _, _ = many.step(actions)
        for i, env in enumerate(single):
            one, reward, end, _, _ = env.step(int(actions[i]))
            assert (reward, end) == (rewards[i], over[i])
            assert all(np.array_equal(seen[name][i], one[name]) for name in one)
    assert over.all()


def test_a_dataset_comes_back_and_replays(table, trajectories, empty_minari):
    write_dataset(DatasetCard("crystal-large-v0", "60 sites."), trajectories, table)
    again = load_trajectories("crystal-large-v0")
    assert np.array_equal(again.traversal, trajectories.traversal)
    env = minari.load_dataset("crystal-large-v0").recover_environment()
    (episode,) = (
        minari.load_dataset("crystal-large-v0")
        .filter_episodes(lambda e: e.id == 6)
        .iterate_episodes()
    )
    number, start = (int(episode.observations[n][0, 0]) for n in ("skeleton", "focus"))
    env.reset(options={"skeleton": number, "start_site": start})
    for step, action in enumerate(episode.actions):
        observation, reward, terminated, _, _ = env.step(action)
        assert np.array_equal(
            observation["element_tokens"], episode.observations["element_tokens"][step + 1]
        )
    assert terminated
    assert reward == pytest.approx(episode.rewards[-1])


def test_a_network_learns_and_acts(trajectories):
    torch = pytest.importorskip("torch")
    from crystal_gym.agents import CrystalBCConfig, GreedyPolicy, MEGNetEncoderFactory
    from crystal_gym.datasets import load_d3rlpy
    from crystal_gym.evaluation import Task, rollout

    torch.manual_seed(0)
    buffer = load_d3rlpy(trajectories, target_gap="hindsight", reorder=0.5)
    config = CrystalBCConfig(encoder_factory=MEGNetEncoderFactory("default"), learning_rate=3e-3)
    algorithm = config.create(device="cpu")
    algorithm.build_with_dataset(buffer)
    losses = [algorithm.update(buffer.sample_transition_batch(8))["loss"] for _ in range(5)]
    assert np.isfinite(losses).all()
    assert losses[-1] < losses[0]
    tokens = rollout(
        GreedyPolicy(algorithm), Task.of_trajectories(trajectories.subset(np.array([5]))), 2.0
    )
    assert tokens.shape == (1, SITES)
    assert ((tokens >= 1) & (tokens <= N_ELEMENTS)).all()
