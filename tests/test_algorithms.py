"""Every trainable algorithm of d3rlpy trains on crystals and fills one under a mask."""

from __future__ import annotations

import dataclasses

import gymnasium as gym
import numpy as np
import pytest

d3rlpy = pytest.importorskip("d3rlpy")
torch = pytest.importorskip("torch")
pytest.importorskip("torch_geometric")

from d3rlpy import algos  # noqa: E402
from d3rlpy.algos import TransformerInput  # noqa: E402
from d3rlpy.logging import NoopAdapterFactory  # noqa: E402

from crystal_gym.agents import (  # noqa: E402
    CrystalCQLConfig,
    GreedyPolicy,
    MEGNetEncoderFactory,
    TransformerPolicy,
    load_saved_policy,
    save_policy,
)
from crystal_gym.datasets import load_d3rlpy  # noqa: E402
from crystal_gym.element_embedding import decode, embed  # noqa: E402
from crystal_gym.elements import ELEMENTS, element_mask  # noqa: E402
from crystal_gym.envs import EmbeddedActions  # noqa: E402
from crystal_gym.evaluation import Task, rollout  # noqa: E402
from crystal_gym.oracles import TableOracle  # noqa: E402

DISCRETE = (
    "DQN DoubleDQN NFQ DiscreteBC DiscreteBCQ DiscreteCQL DiscreteSAC DiscreteDecisionTransformer"
).split()
CONTINUOUS = (
    "BC DDPG TD3 SAC BCQ BEAR CRR CQL CalQL AWAC PLAS PLASWithPerturbation TD3PlusBC IQL ReBRAC "
    "PRDC DecisionTransformer TACR"
).split()
TRANSFORMERS = {"DiscreteDecisionTransformer", "DecisionTransformer", "TACR"}
FEW = ["Mg", "Ti", "O", "S", "Xe"]
ALLOWED = element_mask(FEW)
TARGET_RETURN = 10.0
SMALL = {
    "batch_size": 4,
    "n_action_samples": 3,
    "context_size": 4,
    "num_heads": 1,
    "num_layers": 1,
    "update_actor_interval": 1,
    "warmup_steps": 1,  # of two: BEAR and PLAS train one part before the other
}
"""Settings that make a step quick, and let every network take part in it."""


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    d3rlpy.seed(0)
    yield
    torch.set_num_threads(before)


def create(name, **settings):
    config = getattr(algos, f"{name}Config")
    names = {field.name for field in dataclasses.fields(config)}
    chosen = {k: v for k, v in {**SMALL, **settings}.items() if k in names}
    encoders = {n: MEGNetEncoderFactory("paper") for n in names if n.endswith("encoder_factory")}
    return config(**chosen, **encoders).create(device="cpu")


def buffer_for(name, trajectories):
    actions = "embedding" if name in CONTINUOUS else "elements"
    return load_d3rlpy(trajectories, 3.0, actions=actions)


def built(name, trajectories, **settings):
    algorithm = create(name, **settings)
    algorithm.build_with_dataset(buffer_for(name, trajectories))
    return algorithm


def policy_of(algorithm):
    if type(algorithm).__name__ in TRANSFORMERS:
        return TransformerPolicy(algorithm, TARGET_RETURN)
    return GreedyPolicy(algorithm)


def parameters(algorithm):
    modules = vars(algorithm.impl.modules).items()
    return {
        f"{name}.{key}": value.detach().clone()
        for name, module in modules
        if isinstance(module, torch.nn.Module)
        for key, value in module.named_parameters()
    }


@pytest.fixture(scope="module")
def environment(trajectories, table):
    return gym.make(
        "CrystalFill-v0",
        target_gap=3.0,
        skeletons=trajectories.skeletons,
        oracle=TableOracle(table),
        observation="packed",
        elements=FEW,
    )


def fill(environment, choose, skeleton="perovskite"):
    """Play an episode; return the rows, the chosen actions and the last info."""
    observation, info = environment.reset(seed=0, options={"skeleton": skeleton})
    rows, actions, terminated = [], [], False
    while not terminated:
        rows.append(observation)
        actions.append(choose(observation, info["action_mask"]))
        observation, _, terminated, _, info = environment.step(actions[-1])
    return rows, actions, info


def test_these_are_all_trainable_algorithms_of_d3rlpy():
    found = {
        name.removesuffix("Config")
        for name, value in vars(algos).items()
        if name.endswith("Config") and isinstance(value, type)
    }
    others = {"RandomPolicy", "DiscreteRandomPolicy", "Transformer"}  # nothing to train
    # Gato needs data of another form, tokens of many tasks.
    assert {n for n in found if "Gato" not in n} - others == {*DISCRETE, *CONTINUOUS}


@pytest.mark.parametrize("name", [*DISCRETE, *CONTINUOUS])
def test_an_algorithm_trains_and_fills_a_crystal_with_allowed_elements(
    name, trajectories, environment
):
    algorithm, buffer = create(name), buffer_for(name, trajectories)
    algorithm.build_with_dataset(buffer)
    before = parameters(algorithm)
    algorithm.fit(
        buffer,
        n_steps=2,
        n_steps_per_epoch=2,
        logger_adapter=NoopAdapterFactory(),
        show_progress=False,
    )
    after = parameters(algorithm)
    assert all(bool(value.isfinite().all()) for value in after.values())
    networks = {key.split(".")[0] for key in before if not key.startswith("targ_")}
    if name == "AWAC":
        networks.remove("log_temp")  # SAC's temperature, which AWAC holds and never uses
    for network in networks:
        own = [key for key in before if key.split(".")[0] == network]
        assert any(bool((after[key] != before[key]).any()) for key in own), network
    policy = policy_of(algorithm)
    _, actions, info = fill(environment, lambda row, mask: policy.predict(row[None], mask)[0])
    assert len(actions) == 5
    assert all(ALLOWED[action] for action in actions)
    assert info["formula"]


# -- what is chosen -----------------------------------------------------------------------------


def rows_of(trajectories, count=12):
    index = np.arange(count) % len(trajectories.actions)
    return load_d3rlpy(trajectories).transitions(index, np.full(count, 3.0)).observations


def test_without_a_mask_discrete_choices_are_those_of_d3rlpy(trajectories):
    rows = rows_of(trajectories)
    for name in DISCRETE:
        if name not in TRANSFORMERS:
            algorithm = built(name, trajectories)
            np.testing.assert_array_equal(
                GreedyPolicy(algorithm).predict(rows), algorithm.predict(rows)
            )


def test_discrete_bcq_chooses_the_best_of_the_likely_allowed_elements(trajectories):
    algorithm = built("DiscreteBCQ", trajectories, action_flexibility=0.97)
    rows = rows_of(trajectories)
    with torch.no_grad():
        x = torch.from_numpy(rows)
        logits = algorithm.impl.modules.imitator(x).logits.numpy()
    values = np.column_stack(
        [algorithm.predict_value(rows, np.full(len(rows), a)) for a in range(len(ELEMENTS))]
    )
    narrowed = 0
    mask = (np.random.default_rng(0).random((len(rows), 88)) < 0.3).astype(np.int8)
    for i, action in enumerate(GreedyPolicy(algorithm).predict(rows, mask)):
        allowed = np.flatnonzero(mask[i])
        odds = np.exp(logits[i, allowed] - logits[i, allowed].max())
        likely = allowed[odds >= 0.97]
        narrowed += len(likely) < len(allowed)
        assert action == likely[values[i, likely].argmax()]
    assert narrowed


@pytest.mark.parametrize("name", ["BC", "TD3", "PLAS"])
def test_continuous_choices_are_the_nearest_allowed_elements(name, trajectories):
    algorithm, rows = built(name, trajectories), rows_of(trajectories)
    points = algorithm.predict(rows)
    allowed = np.flatnonzero(ALLOWED)
    gaps = np.linalg.norm(points[:, None] - embed(allowed)[None], axis=2)
    found = GreedyPolicy(algorithm).predict(rows, ALLOWED)
    np.testing.assert_array_equal(found, allowed[gaps.argmin(1)])


def test_an_action_scaler_is_undone_before_decoding(trajectories):
    scaler = d3rlpy.preprocessing.MinMaxActionScaler(minimum=[-0.3] * 5, maximum=[0.1] * 5)
    plain = built("BC", trajectories)
    scaled = built("BC", trajectories, action_scaler=scaler)
    scaled.impl.modules.imitator.load_state_dict(plain.impl.modules.imitator.state_dict())
    rows = rows_of(trajectories)
    points = scaled.predict(rows)
    assert np.abs(points).max() <= 0.3
    np.testing.assert_array_equal(GreedyPolicy(scaled).predict(rows), decode(points))


def test_a_continuous_algorithm_acts_through_the_wrapper(trajectories, environment):
    algorithm = built("SAC", trajectories)
    policy = GreedyPolicy(algorithm)
    wrapped = EmbeddedActions(environment)
    _, actions, info = fill(wrapped, lambda row, _: algorithm.predict(row[None])[0])
    assert actions[0].shape == (5,)
    _, chosen, same = fill(environment, lambda row, mask: policy.predict(row[None], mask)[0])
    assert info["formula"] == same["formula"]
    assert all(ALLOWED[a] for a in chosen)


def test_there_are_no_values_of_elements_without_a_q_function_of_them(trajectories):
    with pytest.raises(TypeError, match="SAC gives a point of the element embedding"):
        GreedyPolicy(built("SAC", trajectories)).values(rows_of(trajectories))


# -- transformers ---------------------------------------------------------------------------------


def sequence(algorithm, rows, actions):
    """Return an episode so far in d3rlpy's own form of input."""
    continuous = type(algorithm).__name__ in CONTINUOUS
    shown = embed(np.array(actions, int)) if continuous else np.array(actions, int)[:, None]
    pad = np.zeros((1, shown.shape[1]))
    return TransformerInput(
        observations=np.stack(rows),
        actions=np.concatenate([shown, pad]).astype(np.float32),
        rewards=np.zeros((len(rows), 1), np.float32),
        returns_to_go=np.full((len(rows), 1), TARGET_RETURN, np.float32),
        timesteps=np.arange(len(rows)) + 1,
    )


@pytest.mark.parametrize("name", sorted(TRANSFORMERS))
@pytest.mark.parametrize("context", [1, 3, 20])
def test_a_transformer_sees_the_history_as_d3rlpy_shows_it(
    name, context, trajectories, environment
):
    algorithm = built(name, trajectories, context_size=context)
    policy = TransformerPolicy(algorithm, TARGET_RETURN)
    rows, actions, _ = fill(environment, lambda row, mask: policy.predict(row[None], mask)[0])
    for step in range(len(rows)):
        output = algorithm.predict(sequence(algorithm, rows[: step + 1], actions[:step]))
        allowed = np.flatnonzero(ALLOWED)
        if name in CONTINUOUS:
            expected = allowed[np.linalg.norm(embed(allowed) - output, axis=1).argmin()]
        else:
            expected = allowed[output[allowed].argmax()]
        assert actions[step] == expected


def test_a_discrete_transformer_agrees_with_d3rlpys_own_wrapper(trajectories, environment):
    algorithm = built("DiscreteDecisionTransformer", trajectories)
    greedy = algos.GreedyTransformerActionSampler()
    stateful = algorithm.as_stateful_wrapper(TARGET_RETURN, greedy)
    policy = TransformerPolicy(algorithm, TARGET_RETURN)
    free = environment.unwrapped.element_mask.copy()
    environment.unwrapped.element_mask[:] = 1
    try:
        rows, actions, _ = fill(environment, lambda row, _: policy.predict(row[None])[0])
    finally:
        environment.unwrapped.element_mask[:] = free
    assert [stateful.predict(row, 0.0) for row in rows] == actions


def test_rollouts_take_transformers_side_by_side_and_one_by_one(trajectories):
    policy = TransformerPolicy(built("DiscreteDecisionTransformer", trajectories), TARGET_RETURN)
    task = Task.of_trajectories(trajectories)
    assert len(set(task.n_sites.tolist())) > 2
    together = rollout(policy, task, 3.0, action_mask=ALLOWED)
    assert np.isin(together[together > 0] - 1, np.flatnonzero(ALLOWED)).all()
    for size in (1, 7):
        alone = rollout(policy, task, 3.0, action_mask=ALLOWED, batch_size=size)
        assert (alone == together).all()


def test_a_step_may_be_asked_for_twice_and_an_episode_left(trajectories, environment):
    policy = TransformerPolicy(built("DecisionTransformer", trajectories), TARGET_RETURN)

    def twice(row, mask):
        first, second = policy.predict(row[None], mask), policy.predict(row[None], mask)
        assert first == second
        return first[0]

    _, actions, _ = fill(environment, twice)
    _, again, _ = fill(environment, lambda row, mask: policy.predict(row[None], mask)[0])
    assert again == actions


def test_rows_that_continue_no_episode_are_refused(trajectories, environment):
    policy = TransformerPolicy(built("DecisionTransformer", trajectories), TARGET_RETURN)
    rows, _, _ = fill(environment, lambda row, mask: policy.predict(row[None], mask)[0])
    with pytest.raises(ValueError, match="2 rows continue 1 episodes"):
        policy.predict(np.stack([rows[1], rows[1]]))
    other = rows[2].copy()
    other[6] += 1.0  # another cell
    with pytest.raises(ValueError, match="row 0, with 2 filled sites, does not continue"):
        policy.predict(other[None])
    policy.reset()
    with pytest.raises(ValueError, match="1 rows continue 0 episodes"):
        policy.predict(rows[1][None])


def test_each_kind_of_algorithm_has_its_policy(trajectories):
    transformer, other = built("TACR", trajectories), built("DQN", trajectories)
    with pytest.raises(TypeError, match=r"history.*TransformerPolicy\(algorithm, target_return\)"):
        GreedyPolicy(transformer)
    with pytest.raises(TypeError, match="DQN needs no history.*GreedyPolicy"):
        TransformerPolicy(other, 1.0)
    with pytest.raises(ValueError, match="target_return=nan is not finite"):
        TransformerPolicy(transformer, float("nan"))
    with pytest.raises(ValueError, match="no network yet"):
        TransformerPolicy(create("TACR"), 1.0)
    with pytest.raises(TypeError, match="history"):
        save_policy(transformer, "nowhere")
    wrong = create("SAC")
    wrong.create_impl((25,), 3)
    with pytest.raises(ValueError, match=r"actions of 3 numbers.*actions='embedding'"):
        GreedyPolicy(wrong)


# -- files --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["DiscreteBCQ", "BEAR", "BCQ", "CRR", "PLASWithPerturbation", "IQL"]
)
def test_a_saved_policy_acts_the_same(name, trajectories, tmp_path):
    algorithm, rows = built(name, trajectories), rows_of(trajectories)
    save_policy(algorithm, tmp_path / "policy", metadata={"seed": 0})
    again = load_saved_policy(tmp_path / "policy")
    assert again.metadata == {"seed": 0}
    chosen = []
    for policy in (GreedyPolicy(algorithm), again):
        torch.manual_seed(3)  # some pick among samples
        chosen.append(policy.predict(rows, ALLOWED))
    np.testing.assert_array_equal(*chosen)


@pytest.mark.parametrize("name", sorted(TRANSFORMERS))
def test_a_saved_transformer_acts_the_same(name, trajectories, tmp_path):
    policy = TransformerPolicy(built(name, trajectories), TARGET_RETURN)
    save_policy(policy, tmp_path / "policy")
    again = load_saved_policy(tmp_path / "policy")
    assert isinstance(again, TransformerPolicy)
    assert again.target_return == TARGET_RETURN
    task = Task.of_trajectories(trajectories)
    np.testing.assert_array_equal(rollout(again, task, 3.0), rollout(policy, task, 3.0))


def test_a_bare_network_is_not_saved(tmp_path):
    with pytest.raises(TypeError, match="bare network.*state_dict"):
        save_policy(torch.nn.Linear(25, 88), tmp_path / "policy")


def test_crystal_cql_is_an_algorithm_like_the_others(trajectories):
    algorithm = CrystalCQLConfig().create("cpu")
    algorithm.build_with_dataset(load_d3rlpy(trajectories))
    assert set(GreedyPolicy(algorithm).predict(rows_of(trajectories), ALLOWED)) <= set(
        np.flatnonzero(ALLOWED).tolist()
    )
