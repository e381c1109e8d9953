"""Several processes that train one network, as ``torchrun`` starts them."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from d3rlpy.torch_utility import wrap_model_by_ddp
from torch import nn

__all__ = ["ALONE", "Processes", "averages_gradients", "is_first", "joined_processes"]


@dataclass(frozen=True)
class Processes:
    """This process and those that train with it.

    All draw the same batches and each takes its share; gradients are averaged by
    DistributedDataParallel. So the weights, and all that follows from them, are the same
    everywhere, and what is written or said is for the first process alone.

    Attributes:
        rank: Number of this one.
        count: Of all.
    """

    rank: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the one that writes and speaks."""
        return self.rank == 0

    @property
    def several(self) -> bool:
        """Whether there are others."""
        return self.count > 1

    @property
    def share(self) -> slice:
        """Rows of a batch that are this process's."""
        return slice(self.rank, None, self.count)

    def any(self, condition: bool) -> bool:
        """Return whether a condition holds in any process; all have to ask at the same time."""
        return bool(self._reduced(float(condition), "MAX")) if self.several else condition

    def mean(self, values: Mapping[str, float]) -> dict[str, float]:
        """Return the means over the processes; all have to ask at the same time."""
        if not self.several:
            return dict(values)
        total = self._reduced(list(values.values()), "SUM") / self.count
        return dict(zip(values, total.tolist(), strict=True))

    def from_first(self, value: Any) -> Any:
        """Return what the first process gives; all have to ask at the same time."""
        if not self.several:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0)
        return values[0]

    def _reduced(self, values: Any, how: str) -> torch.Tensor:
        on_cuda = dist.get_backend() == "nccl"
        tensor = torch.tensor(values, dtype=torch.float64, device="cuda" if on_cuda else "cpu")
        dist.all_reduce(tensor, getattr(dist.ReduceOp, how))
        return tensor


ALONE = Processes()
"""One process, without others."""


def is_first() -> bool:
    """Return whether this process is alone, or the first of those that ``torchrun`` started."""
    return int(os.environ.get("RANK", "0")) == 0


@contextmanager
def joined_processes(device: str) -> Iterator[tuple[Processes, str]]:
    """Join the processes that ``torchrun`` started, if it did, and part from them at the end.

    Args:
        device: ``cpu``, or ``cuda`` with or without a number.

    Yields:
        The processes, and the device of this one: a GPU of its own where there is one for each.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield ALONE, device
        return
    backend = "gloo"
    if device.startswith("cuda"):
        device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
        torch.cuda.set_device(device)
        backend = "nccl"
    dist.init_process_group(backend)
    try:
        yield Processes(dist.get_rank(), dist.get_world_size()), device
    finally:
        # Freeing the group waits for gloo's threads and holds Python's lock; a thread that is still
        # freeing a tensor waits for that: seen once, a process that never ended. Let them finish.
        time.sleep(0.2)
        dist.destroy_process_group()


def averages_gradients(network: nn.Module, processes: Processes) -> nn.Module:
    """Return a network whose gradients are the means over all processes."""
    return wrap_model_by_ddp(network) if processes.several else network
