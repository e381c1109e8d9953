"""The two files of a saved model, a policy or a surrogate: neither can run code."""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from crystal_gym.files import DAMAGED_TENSORS, atomic_path, require_plain_zip, sha256_of

__all__ = [
    "CONFIG",
    "WEIGHTS",
    "load_tensors",
    "model_folder",
    "one_line",
    "read_weights",
    "require_modest",
    "write_model",
]

CONFIG, WEIGHTS = "config.json", "weights.pt"


def model_folder(path: Path | str, inside: str) -> Path:
    """Return the folder of a model: ``inside`` that of a training run, or itself."""
    inner = Path(path) / inside
    return inner if (inner / CONFIG).exists() else Path(path)


def write_model(folder: Path, config: Mapping[str, Any], weights: Mapping[str, Tensor]) -> None:
    """Write both files, each replaced whole or not at all.

    Args:
        folder: Made if need be.
        config: Anything JSON can hold; the weights' checksum is written with it.
        weights: By name.

    Raises:
        TypeError: If ``config`` does not fit into JSON; nothing is written then.
    """
    json.dumps(config)
    with atomic_path(folder / WEIGHTS) as path:
        torch.save({name: tensor.detach().cpu() for name, tensor in weights.items()}, path)
        checksum = sha256_of(path)
    text = json.dumps({**config, "weights_sha256": checksum}, indent=2)
    with atomic_path(folder / CONFIG) as path:
        path.write_text(text + "\n", encoding="utf-8")


def load_tensors(path: Path, device: str = "cpu") -> Any:
    """Return what ``torch.save`` wrote: containers, numbers and tensors, in a zip archive.

    torch also reads older files, which are bare pickles; those are refused before it sees them.

    Args:
        path: The file.
        device: Where its tensors go, ``"cpu"`` or ``"cuda:0"``.

    Returns:
        The object that was written, mostly a dictionary.

    Raises:
        pickle.UnpicklingError: If it holds anything else, which could run code.
        ValueError: If it is no zip archive, or expands to more than 8 GB.
        Exception: Any of ``DAMAGED_TENSORS`` (:mod:`crystal_gym.files`) if it is damaged.
    """
    require_plain_zip(path, _MOST_BYTES)
    return torch.load(path, map_location=device, weights_only=True)


_MOST_BYTES = 8_000_000_000

_LAYERS = ("members", "n_critics", "n_ensembles", "n_layers", "num_heads", "num_layers")
_NO_SIZES = ("batch_size", "_interval", "_steps", "_tokens")


def require_modest(settings: Mapping[str, Any], weights: Path) -> None:
    """Refuse settings of a network that would be larger than its weights, before it is built.

    Whatever a network is made of lies in its weights. So no size is above their number, no chain of
    layers has more of them, and there are no more layers than a file of that length can name.

    Args:
        settings: Of the network, as JSON has them.
        weights: The file of its weights.

    Raises:
        ValueError: If one is.
    """
    most = 10_000 + weights.stat().st_size  # in bytes, so at most one weight each
    waiting: list[tuple[str, Any]] = [("", settings)]
    while waiting:
        name, value = waiting.pop()
        size: float = 0
        if isinstance(value, dict):  # an optimizer's numbers make nothing larger
            waiting += [(k, v) for k, v in value.items() if k != "optim_factory"]
        elif isinstance(value, list):
            waiting += [(name, v) for v in value]
            widths = [v for v in value if isinstance(v, int)]
            size = sum(a * b for a, b in pairwise(widths))
        elif isinstance(value, (int, float)) and not name.endswith(_NO_SIZES):
            size = abs(value) * (1_000 if name in _LAYERS else 1)
        if not size <= most:
            raise ValueError(
                f"{name}={str(value)[:50]} makes a network larger than {weights.name}, which has "
                f"{most - 10_000:,} bytes"
            )


def read_weights(path: Path, written_by: str = "save_policy()") -> dict[str, Tensor]:
    """Return the tensors in a file; nothing in it is run.

    Args:
        path: The file.
        written_by: What writes such files.

    Returns:
        Tensors on the CPU, by name.

    Raises:
        ValueError: If it is damaged, or holds something else than tensors.
    """
    try:
        weights = load_tensors(path)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} holds something else than tensors, which could run code, and was not read: "
            f"expected weights written by {written_by}; get the file from its author again"
        ) from error
    except DAMAGED_TENSORS as error:
        raise ValueError(
            f"{path} is damaged or cut short ({one_line(error)}): expected weights written by "
            f"{written_by}; copy or save them again"
        ) from error
    if not isinstance(weights, dict) or not all(isinstance(v, Tensor) for v in weights.values()):
        raise ValueError(
            f"{path} holds a {type(weights).__name__} of other things than tensors: expected "
            f"weights written by {written_by}; save them again"
        )
    for name, tensor in weights.items():  # one number may stand for a billion of them
        strided = tensor.layout == torch.strided
        if not strided or tensor.nbytes > tensor.untyped_storage().nbytes():
            raise ValueError(
                f"{path} holds a tensor {str(name)[:100]!r} larger than its data: expected weights "
                f"written by {written_by}; get the file from its author again"
            )
    return weights


def one_line(error: BaseException) -> str:
    """Return the kind of an error and the first line of what it says."""
    said = str(error).strip().splitlines()
    return f"{type(error).__name__}: {said[0][:200] if said else ''}"
