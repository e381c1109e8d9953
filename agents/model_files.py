"""The two files of a saved model, a policy or a surrogate: neither can run code."""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from crystal_gym.files import atomic_path, sha256_of

__all__ = ["CONFIG", "WEIGHTS", "model_folder", "one_line", "read_weights", "write_model"]

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


def read_weights(path: Path, written_by: str = "save_policy()") -> dict[str, Tensor]:
    """Return the tensors in a file; nothing in it is run.

    Args:
        path: The file.
        written_by: What writes such files.

    Raises:
        ValueError: If it is damaged, or holds something else than tensors.
    """
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} holds something else than tensors, which could run code, and was not read: "
            f"expected weights written by {written_by}; get the file from its author again"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise ValueError(
            f"{path} is damaged or cut short ({one_line(error)}): expected weights written by "
            f"{written_by}; copy or save them again"
        ) from error
    if not isinstance(weights, dict) or not all(isinstance(v, Tensor) for v in weights.values()):
        raise ValueError(
            f"{path} holds a {type(weights).__name__} of other things than tensors: expected "
            f"weights written by {written_by}; save them again"
        )
    return weights


def one_line(error: BaseException) -> str:
    """Return the kind of an error and the first line of what it says."""
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"
