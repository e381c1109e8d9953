"""How each kind of d3rlpy algorithm chooses an element among those allowed.

Every class here is a network from rows ``(B, D)`` and the allowed actions, bool ``(B, 88)``, to
chosen actions, int64 ``(B,)``. ``stored`` is the part whose weights a saved policy holds.
"""

from __future__ import annotations

import math
from typing import Any, TypeAlias

import numpy as np
import torch
from d3rlpy.algos.qlearning.base import QLearningAlgoBase
from d3rlpy.algos.transformer.base import TransformerAlgoBase
from d3rlpy.constants import ActionSpace
from d3rlpy.torch_utility import unwrap_ddp_model
from numpy.typing import NDArray
from torch import Tensor, nn

from crystal_gym.element_embedding import EMBEDDING_SIZE, decode
from crystal_gym.elements import N_ELEMENTS, mask_rows
from crystal_gym.envs.observations import require_rows

__all__ = [
    "CHUNK",
    "HighestValue",
    "LikelyHighestValue",
    "NearestElement",
    "allowed_actions",
    "as_rows",
    "best",
    "chooser_of",
    "nearest",
    "require_built",
]

CHUNK = 2048
"""Rows on the device at once; keeps memory flat for any number of observations."""

Algorithm: TypeAlias = Any  # d3rlpy's algorithms, whose impl and config it leaves untyped


class HighestValue(nn.Module):
    """The element with the highest output of one network: a Q function or a policy's logits."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    @property
    def stored(self) -> nn.Module:
        """The network, without a prefix in its state dict."""
        return self.network

    def values(self, x: Tensor) -> Tensor:
        """Return one number an action, ``(B, 88)``."""
        return _as_values(self.network, x)

    def forward(self, x: Tensor, allowed: Tensor) -> Tensor:
        """Return the best allowed actions."""
        return best(self.values(x), allowed)


class LikelyHighestValue(nn.Module):
    """The rule of DiscreteBCQ: the highest Q value among the elements that the data would choose.

    An element is likely enough if its probability is at least ``flexibility`` times that of the
    likeliest. Where a mask forbids that one, the likeliest *allowed* element takes its place, so
    that there is always a choice.
    """

    def __init__(self, imitator: nn.Module, q_funcs: nn.Module, flexibility: float) -> None:
        super().__init__()
        self.imitator, self.q_funcs = imitator, q_funcs
        self._least = math.log(flexibility) if flexibility > 0 else -math.inf

    @property
    def stored(self) -> nn.Module:
        """Both networks."""
        return self

    def values(self, x: Tensor) -> Tensor:
        """Return the Q values, ``(B, 88)``, of likely and unlikely elements."""
        return _as_values(self.q_funcs, x)

    def forward(self, x: Tensor, allowed: Tensor) -> Tensor:
        """Return the best of the likely allowed actions."""
        logits = _as_values(self.imitator, x).masked_fill(~allowed, -torch.inf)
        likely = logits - logits.max(1, keepdim=True).values >= self._least
        return best(self.values(x), likely & allowed)


class NearestElement(nn.Module):
    """The element nearest to the action of an algorithm for continuous ones."""

    def __init__(self, algorithm: Algorithm) -> None:
        super().__init__()
        self._algorithm = algorithm
        # What each algorithm acts by differs (a decoder, critics that pick among samples); target
        # networks serve training alone.
        modules = vars(algorithm.impl.modules)
        self.networks = nn.ModuleDict(
            {
                name: unwrap_ddp_model(module)
                for name, module in modules.items()
                if isinstance(module, nn.Module) and not name.startswith("targ_")
            }
        )

    @property
    def stored(self) -> nn.Module:
        """All networks but the targets."""
        return self.networks

    def values(self, x: Tensor) -> Tensor:
        """Refuse: there is no number for every element."""
        raise TypeError(
            f"{type(self._algorithm).__name__} gives a point of the element embedding and no value "
            "for each element: use predict()"
        )

    def forward(self, x: Tensor, allowed: Tensor) -> Tensor:
        """Return the allowed actions nearest to the algorithm's."""
        points = self._algorithm.impl.predict_best_action(x)
        return nearest(points, allowed, self._algorithm.config.action_scaler)


def best(values: Tensor, allowed: Tensor) -> Tensor:
    """Return the actions of the highest values ``(B, 88)`` among the allowed ones."""
    return values.masked_fill(~allowed, -torch.inf).argmax(1)


def nearest(points: Tensor, allowed: Tensor, scaler: Any) -> Tensor:
    """Return the allowed actions nearest to an algorithm's scaled points ``(B, 5)``."""
    if scaler is not None:
        points = scaler.reverse_transform(points)
    mask = allowed.cpu().numpy().astype(np.int8)
    return torch.from_numpy(decode(points.cpu().numpy(), mask))


def chooser_of(source: Algorithm | nn.Module) -> Any:
    """Return how a trained d3rlpy algorithm, or a network, chooses an element.

    Args:
        source: A d3rlpy algorithm, trained or built, or a network with an output for each of the
            88 elements.

    Returns:
        A module that takes inputs ``x`` and allowed actions, bool ``(B, 88)``, and returns actions,
        int64 ``(B,)``; its ``stored`` holds the weights to save.

    Raises:
        TypeError: If it is neither, or needs the history of an episode.
        ValueError: If it has no network yet, or one for other actions.
    """
    if isinstance(source, nn.Module):
        return HighestValue(source)
    if isinstance(source, TransformerAlgoBase):
        raise TypeError(
            f"{type(source).__name__} acts on the history of an episode: expected an algorithm "
            "that acts on one observation; use TransformerPolicy(algorithm, target_return)"
        )
    if not isinstance(source, QLearningAlgoBase):
        raise TypeError(
            f"{type(source).__name__} is no policy: expected a d3rlpy algorithm or a torch network"
        )
    require_built(source)
    if source.get_action_type() == ActionSpace.CONTINUOUS:
        return NearestElement(source)
    modules = source.impl.modules
    network = {
        name: unwrap_ddp_model(getattr(modules, name))
        for name in ("policy", "q_funcs", "imitator")
        if hasattr(modules, name)
    }
    if {"imitator", "q_funcs"} <= network.keys():
        flexibility = source.config.action_flexibility
        return LikelyHighestValue(network["imitator"], network["q_funcs"], flexibility)
    return HighestValue(next(iter(network.values())))  # an actor acts, its critics only teach it


def require_built(algorithm: Algorithm) -> None:
    """Refuse an algorithm that has no network, or one for other actions.

    Args:
        algorithm: Of d3rlpy, for the 88 elements or for points of the element embedding.

    Raises:
        ValueError: Saying which.
    """
    name = type(algorithm).__name__
    if algorithm.impl is None:
        raise ValueError(
            f"{name} has no network yet: train it with fit(), or call build_with_dataset() or "
            "create_impl() first"
        )
    found = algorithm.impl.action_size
    if algorithm.get_action_type() == ActionSpace.CONTINUOUS:
        if found != EMBEDDING_SIZE:
            raise ValueError(
                f"{name} was built for actions of {found} numbers: expected the {EMBEDDING_SIZE} "
                "of the element embedding; train it on load_d3rlpy(..., actions='embedding')"
            )
    elif found != N_ELEMENTS:
        raise ValueError(
            f"{name} was built for {found} actions: expected the {N_ELEMENTS} elements; train it "
            "on load_d3rlpy(...)"
        )


def allowed_actions(action_mask: NDArray[np.int8] | None, n_rows: int) -> Tensor:
    """Return a mask as a tensor with a row for every observation.

    Args:
        action_mask: 1 where an action is allowed, ``(n_rows, 88)`` or ``(88,)`` for all rows; None
            allows every action.
        n_rows: Observations to choose for.

    Returns:
        bool ``(n_rows, 88)``, on the CPU.

    Raises:
        ValueError: If its shape does not fit or it allows nothing in a row.
    """
    mask = np.ones(N_ELEMENTS, np.int8) if action_mask is None else action_mask
    return torch.from_numpy(mask_rows(mask, n_rows).copy())


def as_rows(observations: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return observations as contiguous float32 rows.

    Args:
        observations: Compact or packed rows, ``(B, D)``.

    Returns:
        ``(B, D)``; the same array where it is such rows already.

    Raises:
        ValueError: If they are no rows ``(B, D)``, stand for no state, or belong to a skeleton set
            that is not in memory.
    """
    rows = np.ascontiguousarray(observations, dtype=np.float32)
    if rows.ndim != 2:
        raise ValueError(
            f"observations have shape {rows.shape}: expected rows (B, D); add the first axis "
            "to a single one with observation[None]"
        )
    require_rows(rows)
    return rows


def _as_values(network: nn.Module, x: Tensor) -> Tensor:
    """Return one number an action, ``(B, 88)``, averaged over an ensemble's members."""
    if isinstance(network, nn.ModuleList):
        return torch.stack([_as_values(member, x) for member in network]).mean(0)
    try:
        output = network(x)
    except ValueError as error:  # torch's distributions say so over many lines
        raise ValueError(
            f"{type(network).__name__} gives no finite values: expected weights of a trained "
            "policy and rows of crystals"
        ) from error
    for name in ("q_value", "logits"):
        output = getattr(output, name, output)
    if not isinstance(output, Tensor) or output.shape != (len(x), N_ELEMENTS):
        raise TypeError(
            f"{type(network).__name__} returns {getattr(output, 'shape', type(output))}: expected "
            f"one value for each of the {N_ELEMENTS} elements"
        )
    return output
