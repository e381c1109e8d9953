"""From a stored dataset to a policy that has learned something."""

import numpy as np
import pytest

d3rlpy = pytest.importorskip("d3rlpy")
torch = pytest.importorskip("torch")

from crystal_gym.agents import (  # noqa: E402
    CrystalCQLConfig,
    GreedyPolicy,
    MEGNetEncoderFactory,
    load_saved_policy,
    save_policy,
)
from crystal_gym.datasets import build_mini, load_d3rlpy  # noqa: E402
from crystal_gym.evaluation import MajorityPolicy, Task, rollout, score  # noqa: E402
from crystal_gym.evaluation.metrics import compositions  # noqa: E402

SETTINGS = {
    "batch_size": 32,
    "learning_rate": 3e-3,
    "encoder_factory": MEGNetEncoderFactory(preset="paper"),
}


@pytest.fixture(autouse=True)
def one_thread():
    """Small networks gain nothing from more, and lose minutes where another program is busy."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def dataset_id():
    return build_mini().dataset_id


@pytest.mark.parametrize(
    ("config", "target_gap"),
    [
        (d3rlpy.algos.DiscreteBCConfig(beta=0.0, **SETTINGS), "hindsight"),
        (CrystalCQLConfig(conservative_weight=5.0, **SETTINGS), None),
        (CrystalCQLConfig(conservative_weight=5.0, **SETTINGS), [1.12, 2.0, 3.0, 4.0]),
    ],
    ids=["BC", "u-CQL", "c-CQL"],
)
def test_training_beats_the_majority_element_on_its_own_crystals(
    config, target_gap, dataset_id, tmp_path
):
    d3rlpy.seed(0)
    few = load_d3rlpy(dataset_id).trajectories
    few = few.subset(np.linspace(0, len(few) - 1, 16).astype(int))
    buffer = load_d3rlpy(few, target_gap=target_gap, seed=0)
    algorithm = config.create(device="cpu")
    algorithm.build_with_dataset(buffer)
    for _ in range(400):
        algorithm.update(buffer.sample_transition_batch(32))
    task = Task.of_trajectories(buffer.trajectories)
    known = compositions(task.reference)
    target = None if target_gap is None else 3.0
    majority = MajorityPolicy(buffer.trajectories)
    baseline = score(rollout(majority, task, target), task, known)
    policy = GreedyPolicy(algorithm)
    tokens = rollout(policy, task, target)
    learned = score(tokens, task, known)
    assert learned.accuracy > baseline.accuracy + 0.05
    assert learned.similarity > baseline.similarity
    save_policy(algorithm, tmp_path / "policy")
    again = rollout(load_saved_policy(tmp_path / "policy"), task, target)
    assert (again == tokens).all()
