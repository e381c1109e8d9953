"""Behavioural cloning that learns from every empty site of a state, for d3rlpy."""

from __future__ import annotations

import dataclasses
from typing import Any

from d3rlpy.algos.qlearning.base import QLearningAlgoBase
from d3rlpy.algos.qlearning.torch.bc_impl import BCBaseImpl, BCBaseModules
from d3rlpy.base import DeviceArg, LearnableConfig, register_learnable
from d3rlpy.constants import ActionSpace
from d3rlpy.models.builders import create_discrete_q_function
from d3rlpy.models.encoders import EncoderFactory, make_encoder_field
from d3rlpy.models.q_functions import MeanQFunctionFactory
from d3rlpy.optimizers.optimizers import AdamFactory, OptimizerFactory, make_optimizer_field
from d3rlpy.serializable_config import CONFIG_STORAGE
from d3rlpy.torch_utility import TorchMiniBatch
from torch import Tensor, nn

from crystal_gym.agents.encoders import MEGNetEncoderFactory
from crystal_gym.agents.sites import site_values

__all__ = ["CrystalBC", "CrystalBCConfig", "CrystalBCImpl", "CrystalBCLoss"]


@dataclasses.dataclass()
class CrystalBCConfig(LearnableConfig):
    """Settings of behavioural cloning.

    The loss is the cross-entropy of the element that was put on the site in focus. Where the
    encoder answers for every site at once (preset ``"default"``), half of it is over all empty
    sites of the state (:mod:`crystal_gym.agents.sites`). With targets in the observations
    (``load_d3rlpy(..., target_gap="hindsight")``) this is goal-conditioned cloning.

    Args:
        batch_size: Transitions a step.
        gamma: Not used; d3rlpy expects it.
        learning_rate: Of the optimizer.
        optim_factory: Optimizer; by default Adam with gradients clipped to a norm of 5.
        encoder_factory: Network; by default :class:`MEGNetEncoderFactory`.
        observation_scaler: Leave out: rows hold numbers of tables.
        action_scaler: Leave out: actions are discrete.
        reward_scaler: Leave out: rewards are not used.
        compile_graph: Leave off: graphs differ in size from step to step.
    """

    batch_size: int = 1024
    gamma: float = 0.99
    learning_rate: float = 3e-4
    optim_factory: OptimizerFactory = dataclasses.field(
        default_factory=lambda: AdamFactory(clip_grad_norm=5.0),
        metadata=make_optimizer_field().metadata,
    )
    encoder_factory: EncoderFactory = dataclasses.field(
        default_factory=MEGNetEncoderFactory,
        metadata=make_encoder_field().metadata,
    )

    def create(self, device: DeviceArg = False, enable_ddp: bool = False) -> CrystalBC:
        """Return the algorithm on a device, ``"cpu"`` or ``"cuda:0"``."""
        return CrystalBC(self, device, enable_ddp)

    @staticmethod
    def get_type() -> str:
        """Return the name under which d3rlpy stores these settings."""
        return "crystal_bc"


@dataclasses.dataclass(frozen=True)
class CrystalBCLoss:
    """Scalars of one update.

    Attributes:
        loss: What is minimised.
        accuracy: Share of transitions whose action is the likeliest.
    """

    loss: Tensor
    accuracy: Tensor


@dataclasses.dataclass(frozen=True)
class CrystalBCModules(BCBaseModules):
    """The network (a list of one, as d3rlpy builds it) and its optimizer."""

    imitator: nn.ModuleList


class CrystalBCImpl(BCBaseImpl):
    """Tensor code of :class:`CrystalBC`."""

    _modules: CrystalBCModules

    def compute_imitator_grad(self, batch: TorchMiniBatch) -> Any:
        """Compute the loss and its gradient."""
        self._modules.optim.zero_grad()
        sites = site_values(self._modules.imitator[0], batch)
        actions = batch.actions.long().view(-1)
        loss = CrystalBCLoss(
            loss=sites.cross_entropy(actions),
            accuracy=(sites.focus.argmax(1) == actions).float().mean(),
        )
        loss.loss.backward()
        return loss

    def compute_loss(self, obs_t: Any, act_t: Tensor) -> Any:
        """Not used: the loss needs more of the batch than d3rlpy hands over here."""
        raise NotImplementedError("use compute_imitator_grad(batch)")

    def inner_predict_best_action(self, x: Any) -> Tensor:
        """Return the likeliest elements, ``(B,)``."""
        return self._modules.imitator[0](x).q_value.argmax(1)


class CrystalBC(QLearningAlgoBase[CrystalBCImpl, CrystalBCConfig]):
    """Behavioural cloning on crystals: see :class:`CrystalBCConfig`."""

    def inner_create_impl(self, observation_shape: Any, action_size: int) -> None:
        """Build network and optimizer."""
        config = self._config
        imitator, _ = create_discrete_q_function(
            observation_shape,
            action_size,
            config.encoder_factory,
            MeanQFunctionFactory(),
            device=self._device,
            enable_ddp=self._enable_ddp,
        )
        optimizer = config.optim_factory.create(
            imitator.named_modules(), lr=config.learning_rate, compiled=False
        )
        self._impl = CrystalBCImpl(
            observation_shape=observation_shape,
            action_size=action_size,
            modules=CrystalBCModules(optim=optimizer, imitator=imitator),
            compiled=False,
            device=self._device,
        )

    def get_action_type(self) -> ActionSpace:
        """Return that actions are discrete."""
        return ActionSpace.DISCRETE


if CrystalBCConfig.get_type() not in CONFIG_STORAGE[LearnableConfig].config_list:
    register_learnable(CrystalBCConfig)
