"""Greedy policies around trained networks, and their files.

A saved policy is a folder of two files: ``config.json`` and ``weights.pt``, which is read with
``torch.load(weights_only=True)``. Neither can run code.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import d3rlpy
import numpy as np
import torch
import torch_geometric
from d3rlpy.base import LearnableConfigWithShape
from numpy.typing import NDArray
from torch import Tensor, nn

import crystal_gym
from crystal_gym.agents.acting import CHUNK, Algorithm, allowed_actions, as_rows, chooser_of
from crystal_gym.agents.model_files import (
    CONFIG,
    WEIGHTS,
    model_folder,
    one_line,
    read_weights,
    require_modest,
    write_model,
)
from crystal_gym.agents.transformer_policy import TransformerPolicy
from crystal_gym.elements import ELEMENTS, N_ELEMENTS
from crystal_gym.files import read_json, sha256_of

__all__ = [
    "GreedyPolicy",
    "load_policy",
    "load_saved_policy",
    "load_weights",
    "policy_folder",
    "save_policy",
]

BUNDLED_POLICY = Path(crystal_gym.__file__).parent / "data" / "policy"
"""Folder of the policy that comes with the package; its model card is beside it."""

_FORMAT = 1


class GreedyPolicy:
    """The best action of a trained network, among those allowed.

    Args:
        source: A d3rlpy algorithm that has been trained or built, or a network from rows
            ``(B, D)`` to values ``(B, 88)`` (or to a d3rlpy Q function's output or a categorical
            distribution). An algorithm with continuous actions gives points of
            :mod:`crystal_gym.element_embedding`, and the nearest element is chosen; d3rlpy's BCQ,
            BEAR and CRR pick from samples, drawn by torch's generator.
        metadata: What to remember about it, such as the data it was trained on.

    Raises:
        TypeError: If ``source`` is neither, or an algorithm that acts on the history of an
            episode (:class:`crystal_gym.agents.TransformerPolicy`).
        ValueError: If the algorithm has no network yet, or one for other actions.
    """

    def __init__(
        self, source: Algorithm | nn.Module, *, metadata: dict[str, Any] | None = None
    ) -> None:
        self.metadata = dict(metadata or {})
        self._chooser = chooser_of(source)
        config = getattr(source, "config", None)
        self._scaler = getattr(config, "observation_scaler", None)
        # Algorithms that pick among samples put that many copies of a row on the device.
        self._copies = getattr(config, "n_action_samples", 1)

    @property
    def stored(self) -> nn.Module:
        """The networks whose weights a saved policy holds."""
        network: nn.Module = self._chooser.stored
        return network

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self._chooser.parameters()).device

    def values(self, observations: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return Q values, or log-probabilities of a cloned behaviour.

        Args:
            observations: Compact or packed rows, ``(B, D)``.

        Returns:
            float32 ``(B, 88)``.

        Raises:
            TypeError: If the algorithm has continuous actions.
        """
        return self._over_chunks(observations, lambda x, _: self._chooser.values(x))

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
        allowed = allowed_actions(action_mask, len(observations))

        def choose(x: Tensor, rows: slice) -> Tensor:
            return self._chooser(x, allowed[rows].to(x.device))

        return self._over_chunks(observations, choose)

    def _over_chunks(
        self, observations: NDArray[np.float32], answer: Callable[[Tensor, slice], Tensor]
    ) -> NDArray[Any]:
        rows = as_rows(observations)
        size = max(1, CHUNK // self._copies)
        self._chooser.eval()
        parts = []
        with torch.inference_mode():
            for first in range(0, max(1, len(rows)), size):
                part = slice(first, first + size)
                x = torch.tensor(rows[part], device=self.device)
                if self._scaler is not None:
                    x = self._scaler.transform(x)
                parts.append(answer(x, part).cpu())
        return torch.cat(parts).numpy()


def save_policy(
    algo: Algorithm | TransformerPolicy,
    folder: Path | str,
    metadata: dict[str, Any] | None = None,
    *,
    weights: Mapping[str, Tensor] | None = None,
) -> None:
    """Write the acting networks of a trained algorithm to a folder, without pickles.

    Args:
        algo: A d3rlpy algorithm that has been trained or built; a transformer as the
            TransformerPolicy around it, whose target return is saved with it.
        folder: Where to write ``config.json`` and ``weights.pt``; made if need be. Each file is
            replaced whole or not at all, and the configuration holds the weights' checksum.
        metadata: Anything JSON can hold: data, seeds, scores.
        weights: State of the acting networks to store instead of their own, such as an average.

    Raises:
        TypeError: If ``algo`` is no such algorithm or ``metadata`` does not fit into JSON.
        ValueError: If it has no network yet.
    """
    config: dict[str, Any] = {}
    stored = algo.stored if isinstance(algo, TransformerPolicy) else chooser_of(algo).stored
    if isinstance(algo, TransformerPolicy):
        config["target_return"] = algo.target_return
        algo = algo.algorithm
    elif isinstance(algo, nn.Module):
        raise TypeError(
            f"{type(algo).__name__} is a bare network: expected a d3rlpy algorithm, whose settings "
            "say how to build it again; save its state_dict() with torch"
        )
    impl = algo.impl
    shape = LearnableConfigWithShape(impl.observation_shape, impl.action_size, algo.config)
    config |= {
        "format": _FORMAT,
        "type": algo.config.get_type(),
        "observation_width": impl.observation_shape[0],
        "elements": " ".join(ELEMENTS),
        "algorithm": json.loads(shape.serialize()),  # a dictionary may hold enums, JSON does not
        "versions": {
            "d3rlpy": d3rlpy.__version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "torch_geometric": torch_geometric.__version__,
        },
        "metadata": metadata or {},
    }
    write_model(Path(folder), config, stored.state_dict() if weights is None else weights)


def load_saved_policy(folder: Path | str, device: str = "cpu") -> GreedyPolicy | TransformerPolicy:
    """Read a policy that :func:`save_policy` wrote. Nothing in the files is run.

    Args:
        folder: The folder.
        device: ``"cpu"`` or ``"cuda:0"``.

    Returns:
        The policy on the device, with the metadata that it was saved with; a TransformerPolicy
        where a target return was stored.

    Raises:
        FileNotFoundError: If the folder or one of its files is missing.
        ValueError: If a file is damaged, of another version, or could run code.
    """
    folder = Path(folder)
    _require_folder(folder)
    config = _read_config(folder / CONFIG)
    weights = read_weights(folder / WEIGHTS)
    if sha256_of(folder / WEIGHTS) != config.get("weights_sha256"):
        raise ValueError(
            f"{folder / WEIGHTS} is not the file that {CONFIG} was written with: expected the "
            f"checksum {str(config.get('weights_sha256'))[:64]}; save the policy again"
        )
    _require_numbers(weights, folder / WEIGHTS)
    algorithm = _build(config, folder, device)
    policy: GreedyPolicy | TransformerPolicy
    try:
        if "target_return" in config:
            aim = config["target_return"]
            policy = TransformerPolicy(algorithm, aim, metadata=config["metadata"])
        else:
            policy = GreedyPolicy(algorithm, metadata=config["metadata"])
        policy.stored.load_state_dict(weights)
    except (AttributeError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(
            f"{folder / WEIGHTS} does not fit the network in {CONFIG}: expected the weights of "
            f"{str(config.get('type'))[:50]!r}; save the policy again ({one_line(error)})"
        ) from error
    return policy


def load_policy(
    path: Path | str | None = None, device: str = "cpu"
) -> GreedyPolicy | TransformerPolicy:
    """Return a trained policy, by default the one that comes with the package.

    Args:
        path: Folder of :func:`save_policy`, or of a training run; None for the bundled policy.
        device: ``"cpu"`` or ``"cuda:0"``.

    Returns:
        The policy on the device: a TransformerPolicy for a Decision Transformer or TACR.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If it is damaged, of another version, or could run code.

    Example:
        >>> from crystal_gym.agents import load_policy
        >>> policy = load_policy()  # doctest: +SKIP
        >>> policy.predict(observations)  # doctest: +SKIP
    """
    return load_saved_policy(BUNDLED_POLICY if path is None else policy_folder(path), device)


def policy_folder(path: Path | str) -> Path:
    """Return the folder of a saved policy: ``policy/`` in that of a training run, or itself."""
    return model_folder(path, "policy")


def load_weights(folder: Path | str) -> dict[str, Tensor]:
    """Return the weights of a saved policy, to start training from.

    Args:
        folder: Folder of :func:`save_policy`, or of a training run.

    Returns:
        Tensors on the CPU, by their names in the network that the policy acts by.

    Raises:
        FileNotFoundError: If the folder or one of its files is missing.
        ValueError: If a file is damaged, of another version, or could run code.
    """
    folder = policy_folder(folder)
    _require_folder(folder)
    _read_config(folder / CONFIG)
    weights = read_weights(folder / WEIGHTS)
    _require_numbers(weights, folder / WEIGHTS)
    return weights


def _require_numbers(weights: Mapping[str, Tensor], path: Path) -> None:
    """Refuse weights with which every answer would be nan."""
    broken = [name for name, tensor in weights.items() if not bool(tensor.isfinite().all())]
    if broken:
        raise ValueError(
            f"{path} holds a weight in {broken[0][:100]} that is no finite number: expected the "
            "weights of a trained policy; save or copy them again"
        )


def _require_folder(folder: Path) -> None:
    if folder.suffix == ".d3" or (folder.exists() and not folder.is_dir()):
        raise ValueError(
            f"{folder} is no folder of save_policy(), and a d3rlpy file holds pickles that can run "
            "any code when it is read: expected such a folder; if the file is your own, convert it "
            "with crystal_gym.agents.save_policy(d3rlpy.load_learnable(path), folder)"
        )
    for path in (folder, folder / CONFIG, folder / WEIGHTS):
        if not path.exists():
            raise FileNotFoundError(
                f"{path} does not exist: expected a folder of save_policy() with {CONFIG} and "
                f"{WEIGHTS}; check the path"
            )


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = read_json(path)
        found = config["format"]
        elements = str(config.get("elements", "")).split()
        if not isinstance(config.get("metadata"), dict):
            raise TypeError("its metadata are no object")
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} is not the configuration of a policy ({one_line(error)}): expected JSON "
            "written by save_policy(); save the policy again"
        ) from error
    if found != _FORMAT:
        raise ValueError(
            f"{path} has policy format {str(found)[:50]}, expected {_FORMAT}: load it with the "
            "version of crystal_gym that wrote it, or save the policy again"
        )
    if tuple(elements) != ELEMENTS:
        raise ValueError(
            f"{path} acts on a vocabulary of {len(elements)} elements: expected the {N_ELEMENTS} "
            "of crystal_gym.elements in their order; train the policy again"
        )
    return config


# What d3rlpy and torch raise on settings that they did not write.
_NO_SETTINGS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    MemoryError,
    NotImplementedError,
    RuntimeError,
    TypeError,
    ValueError,
)


def _build(config: dict[str, Any], folder: Path, device: str) -> Algorithm:
    try:
        require_modest(config["algorithm"], folder / WEIGHTS)
        shape = LearnableConfigWithShape.deserialize_from_dict(config["algorithm"])
        algorithm = shape.create(device)
    except _NO_SETTINGS as error:
        raise ValueError(
            f"{folder / CONFIG} names the algorithm {str(config.get('type'))[:50]!r} with settings "
            f"that this version does not know ({one_line(error)}): expected those of d3rlpy "
            f"{d3rlpy.__version__}; save the policy again"
        ) from error
    return algorithm
