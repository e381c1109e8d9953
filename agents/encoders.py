"""Graph networks as d3rlpy encoders."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from d3rlpy.models.encoders import EncoderFactory, register_encoder_factory
from d3rlpy.models.torch import Encoder, EncoderWithAction
from d3rlpy.serializable_config import CONFIG_STORAGE
from torch import Tensor, nn

from crystal_gym.agents.batch import rows_to_batch
from crystal_gym.agents.kernels import softplus2
from crystal_gym.agents.megnet import FOCUS_FORMS, MEGNet
from crystal_gym.agents.transformer import SiteTransformer

__all__ = ["PRESETS", "MEGNetEncoder", "MEGNetEncoderFactory", "MEGNetEncoderWithAction"]


def _default(focus: str) -> SiteTransformer:
    if focus != "node":
        raise ValueError(
            f"focus={focus!r} is not for preset='default', which reads its answer off the site in "
            "focus: expected 'node'; the published form needs preset='paper'"
        )
    return SiteTransformer()


PRESETS: dict[str, Callable[[str], MEGNet | SiteTransformer]] = {
    "default": _default,
    "paper": MEGNet,
}
"""Networks by the name that :class:`MEGNetEncoderFactory` takes, each built from ``focus``."""


class MEGNetEncoder(Encoder):
    """Compact or packed rows ``(B, D)`` to features ``(B, n_features)``."""

    def __init__(self, network: MEGNet | SiteTransformer) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """Return the features."""
        return self.network(rows_to_batch(x))


class MEGNetEncoderWithAction(EncoderWithAction):
    """Rows ``(B, D)`` and actions to features ``(B, n_features)``, by one more layer."""

    def __init__(
        self, network: MEGNet | SiteTransformer, action_size: int, discrete_action: bool
    ) -> None:
        super().__init__()
        self.rows = MEGNetEncoder(network)
        self.join = nn.Linear(network.n_features + action_size, network.n_features)
        self._one_hot_size = action_size if discrete_action else None

    def forward(self, x: Tensor, action: Tensor) -> Tensor:
        """Return the features; discrete actions are numbers ``(B,)`` or ``(B, 1)``."""
        if self._one_hot_size is not None:
            action = F.one_hot(action.view(-1).long(), self._one_hot_size).to(x.dtype)
        return softplus2(self.join(torch.cat([self.rows(x), action], 1)))


@dataclass()
class MEGNetEncoderFactory(EncoderFactory):
    """Build graph encoders for any d3rlpy algorithm on compact or packed rows.

    Args:
        preset: Architecture; ``"default"`` is :class:`crystal_gym.agents.SiteTransformer`, the
            stronger one, ``"paper"`` the published :class:`crystal_gym.agents.MEGNet`.
        focus: ``"node"`` marks the site to fill on its node, ``"index"`` gives its number to the
            state as published (see :class:`crystal_gym.agents.MEGNet`), for ``"paper"`` alone.

    Raises:
        ValueError: If there is no such preset or form of focus, or they do not go together.

    Example:
        >>> import d3rlpy
        >>> from crystal_gym.agents import MEGNetEncoderFactory
        >>> algo = d3rlpy.algos.DiscreteBCConfig(encoder_factory=MEGNetEncoderFactory()).create()
    """

    preset: str = "default"
    focus: str = "node"

    def __post_init__(self) -> None:
        for name, value, choices in (
            ("preset", self.preset, tuple(PRESETS)),
            ("focus", self.focus, FOCUS_FORMS),
        ):
            if value not in choices:
                raise ValueError(
                    f"{name}={value!r} is unknown: expected one of {', '.join(choices)}"
                )

    def create(self, observation_shape: tuple[int, ...]) -> MEGNetEncoder:
        """Return an encoder of rows; their width is free."""
        _require_rows(observation_shape)
        return MEGNetEncoder(PRESETS[self.preset](self.focus))

    def create_with_action(
        self, observation_shape: tuple[int, ...], action_size: int, discrete_action: bool = False
    ) -> MEGNetEncoderWithAction:
        """Return an encoder of rows and actions."""
        _require_rows(observation_shape)
        network = PRESETS[self.preset](self.focus)
        return MEGNetEncoderWithAction(network, action_size, discrete_action)

    @staticmethod
    def get_type() -> str:
        """Return the name under which d3rlpy stores this encoder."""
        return "crystal_megnet"


def _require_rows(observation_shape: tuple[int, ...]) -> None:
    if len(observation_shape) != 1:
        raise ValueError(
            f"observations of shape {tuple(observation_shape)} are no rows: expected (width,), "
            "as from observation='packed' or crystal_gym.datasets.load_d3rlpy"
        )


# Importing this module again, as notebooks do on reload, must not fail.
if MEGNetEncoderFactory.get_type() not in CONFIG_STORAGE[EncoderFactory].config_list:
    register_encoder_factory(MEGNetEncoderFactory)
