"""Learning rates that d3rlpy does not bring along."""

from __future__ import annotations

import dataclasses
import math

from d3rlpy.optimizers.lr_schedulers import LRSchedulerFactory, register_lr_scheduler_factory
from d3rlpy.serializable_config import CONFIG_STORAGE
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

__all__ = ["WarmupCosineFactory"]


@dataclasses.dataclass()
class WarmupCosineFactory(LRSchedulerFactory):
    """A linear rise from 0, then half a cosine down to 2% at the last step.

    Args:
        warmup: Steps of the rise.
        steps: Steps in all.
    """

    warmup: int
    steps: int

    def create(self, optim: Optimizer) -> LRScheduler:
        """Return the schedule of an optimizer."""

        def factor(step: int) -> float:
            rise = min(1.0, (step + 1) / max(1, self.warmup))
            fall = 0.5 * (1.0 + math.cos(math.pi * min(1.0, step / self.steps)))
            return rise * (0.02 + 0.98 * fall)

        return LambdaLR(optim, factor)

    @staticmethod
    def get_type() -> str:
        """Return the name under which d3rlpy stores this schedule."""
        return "crystal_warmup_cosine"


if WarmupCosineFactory.get_type() not in CONFIG_STORAGE[LRSchedulerFactory].config_list:
    register_lr_scheduler_factory(WarmupCosineFactory)
