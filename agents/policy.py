"""Greedy policies around trained networks, and their files.

A saved policy is a folder of two files: ``config.json`` and ``weights.pt``, which is read with
``torch.load(weights_only=True)``. Neither can run code.
"""

from __future__ import annotations

import hashlib
import json
import pickle
import platform
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import d3rlpy
import numpy as np
import torch
import torch_geometric
from d3rlpy.algos.qlearning.base import QLearningAlgoBase, QLearningAlgoImplBase
from d3rlpy.base import LearnableConfigWithShape
from d3rlpy.torch_utility import unwrap_ddp_model
from numpy.typing import NDArray
from torch import Tensor, nn

import crystal_gym
from crystal_gym.elements import ELEMENTS, N_ELEMENTS
from crystal_gym.files import atomic_path

__all__ = [
    "GreedyPolicy",
    "acting_network",
    "load_policy",
    "load_saved_policy",
    "load_weights",
    "save_policy",
]

BUNDLED_POLICY = Path(crystal_gym.__file__).parent / "data" / "policy"
"""Folder of the policy that comes with the package; its model card is beside it."""

_FORMAT = 1
_CONFIG, _WEIGHTS = "config.json", "weights.pt"
_CHUNK = 2048
"""Rows on the device at once; keeps memory flat for any number of observations."""

_Algorithm: TypeAlias = Any  # QLearningAlgoBase, whose impl and config d3rlpy leaves untyped


class GreedyPolicy:
    """The best action of a trained network, among those allowed.

    Args:
        source: A d3rlpy algorithm for discrete actions that has been trained or built, or a
            network from rows ``(B, D)`` to values ``(B, 88)`` (or to a d3rlpy Q function's output
            or a categorical distribution).
        metadata: What to remember about it, such as the data it was trained on.

    Raises:
        TypeError: If ``source`` is neither.
        ValueError: If the algorithm has no network yet.
    """

    def __init__(
        self, source: _Algorithm | nn.Module, *, metadata: dict[str, Any] | None = None
    ) -> None:
        self.metadata = dict(metadata or {})
        self._scaler = None
        if isinstance(source, nn.Module):
            self._network: nn.Module = source
        else:
            self._network = acting_network(_built(source))
            self._scaler = source.config.observation_scaler

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self._network.parameters()).device

    def values(self, observations: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return Q values, or log-probabilities of a cloned behaviour.

        Args:
            observations: Compact or packed rows, ``(B, D)``.

        Returns:
            float32 ``(B, 88)``.
        """
        return self._over_chunks(observations, lambda values, _: values)

    def predict(
        self, observations: NDArray[np.float32], action_mask: NDArray[np.int8] | None = None
    ) -> NDArray[np.int64]:
        """Return greedy actions.

        Args:
            observations: Compact or packed rows, ``(B, D)``.
            action_mask: 1 where an action is allowed, ``(B, 88)`` or ``(88,)`` for all; None
                allows every action.

        Returns:
            int64 ``(B,)``.

        Raises:
            ValueError: If shapes do not fit or a mask allows nothing.
        """
        forbidden = None
        if action_mask is not None:
            forbidden = _forbidden(action_mask, len(observations))

        def best(values: Tensor, rows: slice) -> Tensor:
            if forbidden is not None:
                values.masked_fill_(forbidden[rows].to(values.device), -torch.inf)
            return values.argmax(1)

        return self._over_chunks(observations, best)

    def _over_chunks(
        self, observations: NDArray[np.float32], finish: Callable[[Tensor, slice], Tensor]
    ) -> NDArray[Any]:
        rows = np.ascontiguousarray(observations, dtype=np.float32)
        if rows.ndim != 2:
            raise ValueError(
                f"observations have shape {rows.shape}: expected rows (B, D); add the first axis "
                "to a single one with observation[None]"
            )
        self._network.eval()
        parts = []
        with torch.inference_mode():
            for first in range(0, max(1, len(rows)), _CHUNK):
                part = slice(first, first + _CHUNK)
                x = torch.tensor(rows[part], device=self.device)
                if self._scaler is not None:
                    x = self._scaler.transform(x)
                parts.append(finish(_as_values(self._network, x), part).cpu())
        return torch.cat(parts).numpy()


def _forbidden(action_mask: NDArray[np.int8], n_rows: int) -> Tensor:
    mask = np.asarray(action_mask)
    if mask.shape not in {(N_ELEMENTS,), (n_rows, N_ELEMENTS)}:
        raise ValueError(
            f"action_mask has shape {mask.shape}: expected ({N_ELEMENTS},) or "
            f"({n_rows}, {N_ELEMENTS}) for {n_rows} observations"
        )
    mask = np.broadcast_to(mask, (n_rows, N_ELEMENTS))
    empty = np.flatnonzero(~mask.any(axis=1))
    if empty.size:
        raise ValueError(
            f"action_mask allows no action in row {empty[0]}: expected at least one 1 a row; "
            "leave finished episodes out"
        )
    return torch.from_numpy(mask == 0)


def _built(algorithm: Any) -> QLearningAlgoImplBase:
    if not isinstance(algorithm, QLearningAlgoBase):
        raise TypeError(
            f"{type(algorithm).__name__} is no policy: expected a d3rlpy Q-learning or imitation "
            "algorithm, or a torch network"
        )
    if algorithm.impl is None:
        raise ValueError(
            f"{type(algorithm).__name__} has no network yet: train it with fit(), or call "
            "build_with_dataset() or create_impl() first"
        )
    if algorithm.impl.action_size != N_ELEMENTS:
        raise ValueError(
            f"{type(algorithm).__name__} was built for {algorithm.impl.action_size} actions: "
            f"expected the {N_ELEMENTS} elements"
        )
    return algorithm.impl


def acting_network(impl: QLearningAlgoImplBase) -> nn.Module:
    """Return the network of a d3rlpy algorithm whose highest output is the greedy action."""
    names = {name for name in ("policy", "q_funcs", "imitator") if hasattr(impl.modules, name)}
    if len(names - {"policy"}) != 1:  # DiscreteBCQ chooses by two networks together
        raise TypeError(
            f"{type(impl).__name__} does not act on the output of one network: expected d3rlpy's "
            "DQN, DiscreteBC, DiscreteCQL, DiscreteSAC and the like, or CrystalCQL"
        )
    network = getattr(impl.modules, "policy" if "policy" in names else names.pop())
    return unwrap_ddp_model(network)


def _as_values(network: nn.Module, x: Tensor) -> Tensor:
    """Return one number an action, ``(B, 88)``, averaged over an ensemble's members."""
    if isinstance(network, nn.ModuleList):
        return torch.stack([_as_values(member, x) for member in network]).mean(0)
    output = network(x)
    for name in ("q_value", "logits"):
        output = getattr(output, name, output)
    if not isinstance(output, Tensor) or output.shape != (len(x), N_ELEMENTS):
        raise TypeError(
            f"{type(network).__name__} returns {getattr(output, 'shape', type(output))}: expected "
            f"one value for each of the {N_ELEMENTS} elements"
        )
    return output


def save_policy(
    algo: _Algorithm,
    folder: Path | str,
    metadata: dict[str, Any] | None = None,
    *,
    weights: Mapping[str, Tensor] | None = None,
) -> None:
    """Write the acting network of a trained algorithm to a folder, without pickles.

    Args:
        algo: A d3rlpy algorithm for discrete actions that has been trained or built.
        folder: Where to write ``config.json`` and ``weights.pt``; made if need be. Each file is
            replaced whole or not at all, and the configuration holds the weights' checksum.
        metadata: Anything JSON can hold: data, seeds, scores.
        weights: State of the acting network to store instead of its own, such as an average.

    Raises:
        TypeError: If ``algo`` is no such algorithm or ``metadata`` does not fit into JSON.
        ValueError: If it has no network yet.
    """
    impl = _built(algo)
    shape = LearnableConfigWithShape(impl.observation_shape, impl.action_size, algo.config)
    config = {
        "format": _FORMAT,
        "type": algo.config.get_type(),
        "observation_width": impl.observation_shape[0],
        "elements": " ".join(ELEMENTS),
        "algorithm": shape.serialize_to_dict(),
        "versions": {
            "d3rlpy": d3rlpy.__version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "torch_geometric": torch_geometric.__version__,
        },
        "metadata": metadata or {},
    }
    json.dumps(config)  # fail before anything is written
    folder = Path(folder)
    weights = acting_network(impl).state_dict() if weights is None else weights
    weights = {k: v.detach().cpu() for k, v in weights.items()}
    with atomic_path(folder / _WEIGHTS) as path:
        torch.save(weights, path)
        config["weights_sha256"] = _sha256(path)
    with atomic_path(folder / _CONFIG) as path:
        path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def load_saved_policy(folder: Path | str, device: str = "cpu") -> GreedyPolicy:
    """Read a policy that :func:`save_policy` wrote. Nothing in the files is run.

    Args:
        folder: The folder.
        device: ``"cpu"`` or ``"cuda:0"``.

    Raises:
        FileNotFoundError: If the folder or one of its files is missing.
        ValueError: If a file is damaged, of another version, or could run code.
    """
    folder = Path(folder)
    _require_folder(folder)
    config = _read_config(folder / _CONFIG)
    weights = _read_weights(folder / _WEIGHTS)
    if _sha256(folder / _WEIGHTS) != config.get("weights_sha256"):
        raise ValueError(
            f"{folder / _WEIGHTS} is not the file that {_CONFIG} was written with: expected the "
            f"checksum {config.get('weights_sha256')}; save the policy again"
        )
    algorithm = _build(config, folder, device)
    try:
        acting_network(algorithm.impl).load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(
            f"{folder / _WEIGHTS} does not fit the network in {_CONFIG}: expected the weights of "
            f"{config['type']!r}; save the policy again ({_one_line(error)})"
        ) from error
    return GreedyPolicy(algorithm, metadata=config["metadata"])


def load_policy(path: Path | str | None = None, device: str = "cpu") -> GreedyPolicy:
    """Return a trained policy, by default the one that comes with the package.

    Args:
        path: Folder of :func:`save_policy`, or of a training run.
        device: ``"cpu"`` or ``"cuda:0"``.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If it is damaged, of another version, or could run code.

    Example:
        >>> from crystal_gym.agents import load_policy
        >>> policy = load_policy()  # doctest: +SKIP
        >>> policy.predict(observations)  # doctest: +SKIP
    """
    folder = BUNDLED_POLICY if path is None else Path(path)
    if (folder / "policy" / _CONFIG).exists():
        folder = folder / "policy"
    return load_saved_policy(folder, device)


def load_weights(folder: Path | str) -> dict[str, Tensor]:
    """Return the weights of a saved policy, to start training from.

    Raises:
        FileNotFoundError: If the folder or one of its files is missing.
        ValueError: If a file is damaged, of another version, or could run code.
    """
    folder = Path(folder)
    if (folder / "policy" / _CONFIG).exists():
        folder = folder / "policy"
    _require_folder(folder)
    _read_config(folder / _CONFIG)
    return _read_weights(folder / _WEIGHTS)


def _require_folder(folder: Path) -> None:
    if folder.suffix == ".d3":
        raise ValueError(
            f"{folder} is a d3rlpy file, a pickle that can run any code when it is read: expected "
            "a folder of save_policy(); if it is your own, convert it with "
            "save_policy(d3rlpy.load_learnable(path), folder)"
        )
    if folder.is_file():
        raise ValueError(f"{folder} is a file: expected the folder that save_policy() wrote")
    for path in (folder, folder / _CONFIG, folder / _WEIGHTS):
        if not path.exists():
            raise FileNotFoundError(
                f"{path} does not exist: expected a folder of save_policy() with {_CONFIG} and "
                f"{_WEIGHTS}; check the path"
            )


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        found = config["format"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is not the configuration of a policy ({_one_line(error)}): expected JSON "
            "written by save_policy(); save the policy again"
        ) from error
    if found != _FORMAT:
        raise ValueError(
            f"{path} has policy format {found!r}, expected {_FORMAT}: load it with the version of "
            "crystal_gym that wrote it, or save the policy again"
        )
    elements = str(config.get("elements", "")).split()
    if tuple(elements) != ELEMENTS:
        raise ValueError(
            f"{path} acts on a vocabulary of {len(elements)} elements: expected the {N_ELEMENTS} "
            "of crystal_gym.elements in their order; train the policy again"
        )
    return config


def _read_weights(path: Path) -> dict[str, Tensor]:
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} holds something else than tensors, which could run code, and was not read: "
            "expected weights written by save_policy(); get the file from its author again"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise ValueError(
            f"{path} is damaged or cut short ({_one_line(error)}): expected weights written by "
            "save_policy(); copy or save them again"
        ) from error
    if not isinstance(weights, dict) or not all(isinstance(v, Tensor) for v in weights.values()):
        raise ValueError(
            f"{path} holds a {type(weights).__name__} of other things than tensors: expected "
            "weights written by save_policy(); save the policy again"
        )
    return weights


def _build(config: dict[str, Any], folder: Path, device: str) -> _Algorithm:
    try:
        shape = LearnableConfigWithShape.deserialize_from_dict(config["algorithm"])
        algorithm = shape.create(device)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{folder / _CONFIG} names the algorithm {config.get('type')!r} with settings that "
            f"this version does not know ({_one_line(error)}): expected those of d3rlpy "
            f"{d3rlpy.__version__}; save the policy again"
        ) from error
    _built(algorithm)
    return algorithm


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"
