"""TorchRL: the environment as its GymEnv, and a DQN made of its parts whose actions are masked.

Prints the mean reward of 100 greedy episodes before and after: from about 1 to about 10, of 11 at
best. Half a minute; a few hundred frames teach next to nothing. TorchRL refuses gymnasium 1.0, so
without the extra `agents`, which needs that: pip install crystal-gym torchrl 'gymnasium==1.2.3'

python examples/torchrl_dqn.py [FRAMES]
"""

import sys

import torch
from tensordict.nn import TensorDictModule, TensorDictSequential
from torch import nn
from torch.nn import functional
from torchrl.collectors import Collector
from torchrl.data import Binary, LazyTensorStorage, ReplayBuffer
from torchrl.envs import ActionMask, Compose, DTypeCastTransform, EnvBase, GymEnv, TransformedEnv
from torchrl.envs.gym_like import default_info_dict_reader
from torchrl.envs.utils import check_env_specs
from torchrl.modules import EGreedyModule, QValueActor
from torchrl.objectives import DQNLoss, SoftUpdate

import crystal_gym  # noqa: F401  (registers CrystalFill-v0)

STATE = {"skeleton": 12, "element_tokens": 89, "focus": 5}  # entries, and values of each
TASK = {"target_gap": 3.0, "skeletons": "tabular", "observation": "compact"}


def make() -> EnvBase:
    """Return the environment; the mask of ``info`` becomes an entry of its tensordicts."""
    env = GymEnv("CrystalFill-v0", categorical_action_encoding=True, **TASK)
    mask = default_info_dict_reader(["action_mask"], spec=[Binary(88, dtype=torch.int8)])
    to_bool = DTypeCastTransform(torch.int8, torch.bool, in_keys=["action_mask"])
    return TransformedEnv(env.set_info_dict_reader(mask), Compose(to_bool, ActionMask()))


def one_hot(*state: torch.Tensor) -> torch.Tensor:
    """Return a state as one row of zeros and ones."""
    columns = zip(state, STATE.values(), strict=True)
    return torch.cat([functional.one_hot(x.long(), n).flatten(-2) for x, n in columns], -1).float()


def mean_reward(env: EnvBase, policy: QValueActor) -> float:
    """Return that of 100 episodes."""
    with torch.no_grad():
        return sum(float(env.rollout(9, policy)["next", "reward"].sum()) for _ in range(100)) / 100


def main(frames: int = 4000) -> None:
    """Train, and print the mean reward before and after."""
    torch.manual_seed(0)
    check_env_specs(env := make())
    layers = nn.Sequential(nn.LazyLinear(256), nn.ReLU(), nn.Linear(256, 88))
    row = TensorDictModule(one_hot, list(STATE), ["row"])
    values = TensorDictSequential(row, TensorDictModule(layers, ["row"], ["action_value"]))
    actor = QValueActor(values, spec=env.action_spec, action_mask_key="action_mask")
    explore = EGreedyModule(env.action_spec, 1.0, 0.05, frames // 2, action_mask_key="action_mask")
    print(f"untrained:           mean reward {mean_reward(env, actor):.2f}")
    loss = DQNLoss(actor, action_space=env.action_spec)
    loss.make_value_estimator(gamma=1.0)
    optimizer, follow = torch.optim.Adam(loss.parameters(), lr=1e-3), SoftUpdate(loss, tau=0.02)
    memory = ReplayBuffer(storage=LazyTensorStorage(frames), batch_size=128)
    counts = {"frames_per_batch": 10, "total_frames": frames}
    explorer = TensorDictSequential(actor, explore)
    for batch in Collector(make, explorer, **counts, auto_register_policy_transforms=True):
        memory.extend(batch)
        explore.step(10)
        for _ in range(10):
            optimizer.zero_grad()
            loss(memory.sample())["loss"].backward()
            optimizer.step()
            follow.step()
    print(f"after {frames:6,} frames: mean reward {mean_reward(env, actor):.2f}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
