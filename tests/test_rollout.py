"""`crystal_gym.evaluation.rollout`: filling many skeletons with a policy."""

import gymnasium as gym
import numpy as np
import pytest
from made_crystals import NAMES

from crystal_gym.envs.observations import COMPACT_HEADER, compact_rows
from crystal_gym.evaluation import RandomPolicy, Task, evaluate, rollout
from crystal_gym.evaluation.metrics import accuracy, exact_match

TOKENS = len(COMPACT_HEADER)


class Scripted:
    """Puts the reference element on every site in focus, and writes down what it is asked."""

    def __init__(self, skeletons):
        self.skeletons, self.rows, self.masks = skeletons, [], []

    def predict(self, observations, action_mask=None):
        self.rows.extend(observations.copy())
        self.masks.append(action_mask)
        return np.array([self.skeletons[int(r[1])].reference[int(r[2])] - 1 for r in observations])


@pytest.fixture(scope="module")
def task(trajectories):
    return Task.of_trajectories(trajectories)


@pytest.mark.parametrize("batch_size", [1, 7, 1024])
def test_a_scripted_policy_rebuilds_the_references(made_set, task, batch_size):
    tokens = rollout(Scripted(made_set), task, 3.0, batch_size=batch_size)
    np.testing.assert_array_equal(tokens, task.reference)
    assert accuracy(tokens, task.reference) == exact_match(tokens, task) == 1.0


def test_sites_are_visited_in_the_order_of_the_traversal(made_set):
    task = Task.of_skeletons(made_set)
    policy = Scripted(made_set)
    rollout(policy, task, 3.0)
    visited = {number: [] for number in range(len(made_set))}
    for row in policy.rows:
        visited[int(row[1])].append(int(row[2]))
    for row, number in enumerate(task.skeleton.tolist()):
        order = task.traversal[row][task.traversal[row] >= 0].tolist()
        assert visited[number] == order


def test_every_site_is_asked_for_once(made_set, task):
    policy = Scripted(made_set)
    rollout(policy, task, 3.0)
    assert len(policy.rows) == task.n_sites.sum()


def test_rows_show_the_sites_filled_so_far(made_set):
    task = Task.of_skeletons(made_set)
    policy = Scripted(made_set)
    rollout(policy, task, 3.0)
    seen = {number: 0 for number in range(len(made_set))}
    for row in policy.rows:
        number = int(row[1])
        assert np.count_nonzero(row[TOKENS:]) == seen[number]
        assert row[TOKENS + int(row[2])] == 0
        seen[number] += 1


def test_the_observations_are_those_of_the_environment(made_set):
    name = "layered"
    number = NAMES.index(name)
    task = Task.of_skeletons(made_set, [number])
    policy = Scripted(made_set)
    rollout(policy, task, 1.12)
    env = gym.make("CrystalFill-v0", target_gap=1.12, skeletons=made_set, observation="compact")
    options = {"skeleton": number, "start_site": int(task.traversal[0, 0])}
    observation, _ = env.reset(seed=0, options=options)
    for row in policy.rows:
        tokens = observation["element_tokens"][None]
        expected = compact_rows(
            made_set, observation["skeleton"], tokens, observation["focus"], 1.12
        )[0]
        np.testing.assert_array_equal(row, expected)
        action = made_set[number].reference[int(row[2])] - 1
        observation, *_ = env.step(int(action))


def test_each_filling_may_have_its_own_target(made_set):
    task = Task.of_skeletons(made_set)
    targets = np.linspace(0, 3, len(task))
    policy = Scripted(made_set)
    rollout(policy, task, targets)
    for row in policy.rows:
        assert row[4] == np.float32(targets[int(row[1])])
        assert row[3] == 1


def test_without_a_target_rows_are_unconditional(made_set):
    policy = Scripted(made_set)
    rollout(policy, Task.of_skeletons(made_set), None)
    assert not np.array(policy.rows)[:, 3:5].any()


def test_the_mask_reaches_the_policy(made_set):
    mask = np.zeros(88, dtype=np.int8)
    mask[[3, 7]] = 1
    tokens = rollout(RandomPolicy(0), Task.of_skeletons(made_set), 3.0, action_mask=mask)
    assert set(tokens[tokens > 0].tolist()) == {4, 8}


def test_sites_beyond_a_skeleton_stay_empty(made_set):
    task = Task.of_skeletons(made_set)
    tokens = rollout(RandomPolicy(0), task, 3.0)
    np.testing.assert_array_equal(tokens > 0, task.reference > 0)


def test_a_task_of_trajectories_has_their_orders(trajectories, task):
    for k in range(len(trajectories)):
        steps = slice(*trajectories.step_ptr[k : k + 2])
        order = trajectories.traversal[steps]
        np.testing.assert_array_equal(task.traversal[k, : len(order)], order)
        assert (task.traversal[k, len(order) :] == -1).all()


def test_a_task_of_skeletons_visits_every_site_once(made_set):
    task = Task.of_skeletons(made_set, [5, 2])
    assert task.skeleton.tolist() == [5, 2]
    for row, number in enumerate((5, 2)):
        n_sites = made_set[number].n_sites
        assert sorted(task.traversal[row, :n_sites].tolist()) == list(range(n_sites))


def test_evaluate_scores_every_policy(made_set):
    task = Task.of_skeletons(made_set)
    scores = evaluate({"true": Scripted(made_set), "random": RandomPolicy(0)}, task, set(), 3.0)
    assert scores["true"].accuracy == scores["true"].exact_match == 1.0
    assert scores["random"].accuracy < 0.5
