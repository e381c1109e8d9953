"""Conservative Q-learning as in Algorithm 1 of the paper, for d3rlpy.

References:
    Govindarajan et al., *Learning conditional policies for crystal design using offline
    reinforcement learning*, Digital Discovery 2024, 3, 769, doi 10.1039/d4dd00024b.
    Kumar, Zhou, Tucker, Levine, *Conservative Q-Learning for Offline Reinforcement Learning*,
    NeurIPS 2020, arXiv:2006.04779.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from d3rlpy.algos.qlearning.base import QLearningAlgoBase
from d3rlpy.algos.qlearning.torch.dqn_impl import DQNImpl, DQNLoss, DQNModules
from d3rlpy.base import DeviceArg, LearnableConfig, register_learnable
from d3rlpy.constants import ActionSpace
from d3rlpy.models.builders import create_discrete_q_function
from d3rlpy.models.encoders import EncoderFactory, make_encoder_field
from d3rlpy.models.q_functions import MeanQFunctionFactory
from d3rlpy.optimizers.optimizers import AdamFactory, OptimizerFactory, make_optimizer_field
from d3rlpy.serializable_config import CONFIG_STORAGE
from d3rlpy.torch_utility import TorchMiniBatch, soft_sync
from torch import Tensor

from crystal_gym.agents.encoders import MEGNetEncoderFactory
from crystal_gym.agents.sites import site_values

__all__ = ["CrystalCQL", "CrystalCQLConfig", "CrystalCQLImpl", "CrystalCQLLoss"]


@dataclasses.dataclass()
class CrystalCQLConfig(LearnableConfig):
    r"""Settings of conservative Q-learning as in Algorithm 1 of the paper.

    .. math::

        L = \tfrac{1}{2}\,\mathbb{E}\!\left[\left(Q(s, a) - r - \gamma^n (1 - d)
            \max_{a'} \bar Q(s', a')\right)^2\right]
            + w\,\mathbb{E}\!\left[\ln\sum_{a'} e^{Q(s, a')} - Q(s, a)\right]

    Here :math:`\bar Q` is the target network, :math:`d` marks terminal steps, :math:`n` is the
    number of steps of a transition and :math:`w` the ``conservative_weight``. Unlike d3rlpy's
    ``DiscreteCQL`` the error is squared, the maximum is the target network's own, and the target
    follows at every step; one forward pass of each network serves an update. Where the encoder
    answers for every site at once (preset ``"default"``), half of the conservative term is over all
    empty sites of a state, each of which is the next one in some order of filling
    (:mod:`crystal_gym.agents.sites`).

    Args:
        batch_size: Transitions a step.
        gamma: Discount factor.
        learning_rate: Of the optimizer.
        optim_factory: Optimizer; by default Adam with gradients clipped to a norm of 5.
        encoder_factory: Network; by default :class:`MEGNetEncoderFactory`.
        conservative_weight: Weight ``w`` of the conservative term.
        tau: Share of the online network that enters the target network at every step.
        observation_scaler: Leave out: rows hold numbers of tables.
        action_scaler: Leave out: actions are discrete.
        reward_scaler: d3rlpy's reward preprocessing.
        compile_graph: Leave off: graphs differ in size from step to step.
    """

    batch_size: int = 1024
    learning_rate: float = 3e-4
    optim_factory: OptimizerFactory = dataclasses.field(
        default_factory=lambda: AdamFactory(clip_grad_norm=5.0),
        metadata=make_optimizer_field().metadata,
    )
    encoder_factory: EncoderFactory = dataclasses.field(
        default_factory=MEGNetEncoderFactory,
        metadata=make_encoder_field().metadata,
    )
    gamma: float = 0.99
    conservative_weight: float = 1.0
    tau: float = 0.005

    def create(self, device: DeviceArg = False, enable_ddp: bool = False) -> CrystalCQL:
        """Return the algorithm on a device, ``"cpu"`` or ``"cuda:0"``."""
        return CrystalCQL(self, device, enable_ddp)

    @staticmethod
    def get_type() -> str:
        """Return the name under which d3rlpy stores these settings."""
        return "crystal_cql"


@dataclasses.dataclass(frozen=True)
class CrystalCQLLoss(DQNLoss):
    """Scalars of one update.

    Attributes:
        loss: What is minimised.
        td_loss: Half the mean squared temporal difference.
        conservative_loss: Mean of logsumexp Q(s, .) - Q(s, a), without its weight.
        accuracy: Share of transitions whose action has the highest Q.
    """

    td_loss: Tensor
    conservative_loss: Tensor
    accuracy: Tensor


class CrystalCQLImpl(DQNImpl):
    """Tensor code of :class:`CrystalCQL`."""

    def __init__(self, *, conservative_weight: float, tau: float, **kwargs: Any) -> None:
        super().__init__(target_update_interval=1, **kwargs)
        self._conservative_weight = conservative_weight
        self._tau = tau

    def compute_target(self, batch: TorchMiniBatch) -> Tensor:
        """Return the target network's highest Q of the next states, ``(B, 1)``."""
        # After the last step there is no state: a row of zeros is a graph without sites, which
        # costs nothing, and its value is discarded.
        observations = batch.next_observations * (1.0 - batch.terminals)
        self._modules.targ_q_funcs.eval()  # no dropout in what is learned from
        with torch.no_grad():
            values = self._targ_q_func_forwarder.compute_expected_q(observations)
        return values.amax(1, keepdim=True)

    def compute_loss(self, batch: TorchMiniBatch, q_tpn: Tensor) -> CrystalCQLLoss:
        """Return the loss of Algorithm 1 from one forward pass."""
        sites = site_values(self._modules.q_funcs[0], batch)
        values, actions = sites.focus, batch.actions.long().view(-1, 1)
        taken = values.gather(1, actions)
        discount = torch.pow(self._gamma, batch.intervals)
        goal = batch.rewards + discount * (1.0 - batch.terminals) * q_tpn
        td_loss = 0.5 * (taken - goal).square().mean()
        conservative_loss = sites.cross_entropy(actions[:, 0])
        return CrystalCQLLoss(
            loss=td_loss + self._conservative_weight * conservative_loss,
            td_loss=td_loss,
            conservative_loss=conservative_loss,
            accuracy=(values.argmax(1, keepdim=True) == actions).float().mean(),
        )

    def update_target(self) -> None:
        """Move the target network towards the online one."""
        soft_sync(self._modules.targ_q_funcs, self._modules.q_funcs, self._tau)


class CrystalCQL(QLearningAlgoBase[CrystalCQLImpl, CrystalCQLConfig]):
    """Conservative Q-learning on crystals: see :class:`CrystalCQLConfig`."""

    def inner_create_impl(self, observation_shape: Any, action_size: int) -> None:
        """Build networks and optimizer."""
        config = self._config
        if config.compile_graph:
            raise ValueError(
                "compile_graph=True needs batches of one shape, and crystal graphs differ in size: "
                "expected compile_graph=False"
            )
        (online, online_forwarder), (target, target_forwarder) = (
            create_discrete_q_function(
                observation_shape,
                action_size,
                config.encoder_factory,
                MeanQFunctionFactory(),
                n_ensembles=1,
                device=self._device,
                enable_ddp=self._enable_ddp,
            )
            for _ in ("online", "target")
        )
        optimizer = config.optim_factory.create(
            online.named_modules(), lr=config.learning_rate, compiled=False
        )
        self._impl = CrystalCQLImpl(
            observation_shape=observation_shape,
            action_size=action_size,
            modules=DQNModules(q_funcs=online, targ_q_funcs=target, optim=optimizer),
            q_func_forwarder=online_forwarder,
            targ_q_func_forwarder=target_forwarder,
            gamma=config.gamma,
            compiled=False,
            device=self._device,
            conservative_weight=config.conservative_weight,
            tau=config.tau,
        )

    def get_action_type(self) -> ActionSpace:
        """Return that actions are discrete."""
        return ActionSpace.DISCRETE


if CrystalCQLConfig.get_type() not in CONFIG_STORAGE[LearnableConfig].config_list:
    register_learnable(CrystalCQLConfig)
