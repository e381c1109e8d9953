"""Optimizers that d3rlpy does not bring along."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import torch
from d3rlpy.optimizers.optimizers import OptimizerFactory, register_optimizer_factory
from d3rlpy.serializable_config import CONFIG_STORAGE
from torch import Tensor, nn
from torch.optim import AdamW, Muon, Optimizer

__all__ = ["MuonFactory"]


class _MuonAndAdamW(Optimizer):
    """Muon for the weights of dense layers, AdamW for all else, behind one interface."""

    def __init__(self, dense: list[Tensor], others: list[Tensor], lr: float, decay: float) -> None:
        self._parts: list[Optimizer] = []
        if dense:
            muon = Muon(dense, lr=lr, weight_decay=decay, adjust_lr_fn="match_rms_adamw")
            self._parts.append(muon)
        if others:
            self._parts.append(AdamW(others, lr=lr, weight_decay=decay))
        # The parts' own groups: a schedule that changes a rate here changes it there.
        super().__init__([g for part in self._parts for g in part.param_groups], {})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update the parameters from their gradients."""
        for part in self._parts:
            part.step()

    def state_dict(self) -> dict[str, Any]:
        """Return the state of both parts."""
        return {"parts": [part.state_dict() for part in self._parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Set the state of both parts."""
        for part, state in zip(self._parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self.param_groups = [g for part in self._parts for g in part.param_groups]


@dataclasses.dataclass()
class MuonFactory(OptimizerFactory):
    """Muon on the weights of dense layers between hidden features, AdamW on all others.

    References:
        Jordan, Jin, Boza, You, Cesista, Newhouse, Bernstein, *Muon: An optimizer for hidden layers
        in neural networks*, 2024, kellerjordan.github.io/posts/muon.
        Liu et al., *Muon is Scalable for LLM Training*, arXiv:2502.16982 (steps as large as
        AdamW's, so that one learning rate serves both).

    Args:
        weight_decay: Of both.
    """

    weight_decay: float = 0.05

    def create_optimizer(
        self, named_modules: Iterable[tuple[str, nn.Module]], lr: float
    ) -> Optimizer:
        """Return the optimizer of a network."""
        dense: dict[Tensor, None] = {}
        others: dict[Tensor, None] = {}
        for name, module in named_modules:
            hidden = isinstance(module, nn.Linear) and ".layers." in f".{name}."
            for key, parameter in module.named_parameters(recurse=False):
                (dense if hidden and key == "weight" else others)[parameter] = None
        return _MuonAndAdamW(list(dense), list(others), lr, self.weight_decay)

    @staticmethod
    def get_type() -> str:
        """Return the name under which d3rlpy stores these settings."""
        return "crystal_muon"


if MuonFactory.get_type() not in CONFIG_STORAGE[OptimizerFactory].config_list:
    register_optimizer_factory(MuonFactory)
