"""Which crystals are learned from and which judge: the published split, and one by composition.

In the published split of MP-20 the same formula, or the same elements in other proportions, may be
on both sides, so that part of what a policy is praised for is memory. The split by composition puts
every chemical system, that is every set of elements, on one side only.
"""

from __future__ import annotations

import minari
import numpy as np

from crystal_gym.datasets.minari_io import load_trajectories, require_dataset
from crystal_gym.datasets.trajectories import Trajectories

__all__ = ["SPLITS", "composition_split", "judging_dataset", "load_split"]

SPLITS = ("published", "composition")


def composition_split(
    trajectories: Trajectories, *, share: float = 0.2, seed: int = 0
) -> tuple[Trajectories, Trajectories]:
    """Split episodes so that no chemical system is on both sides.

    Chemical systems are drawn one after the other until their crystals are as near to the share
    as they come.

    Args:
        trajectories: The episodes; those that end in one crystal stay together.
        share: Of the crystals, that are to be held out, above 0 and below 1.
        seed: Of the draw.

    Returns:
        The episodes to learn from, and those held out.

    Raises:
        ValueError: If the share is none, or there is but one chemical system.
    """
    if not 0 < share < 1:
        raise ValueError(f"share={share} is no share of the crystals: expected 0 to 1, such as 0.2")
    group = _chemical_systems(trajectories)
    sizes = np.bincount(group[trajectories.crystals], minlength=group.max() + 1)
    if len(sizes) < 2:
        raise ValueError("all crystals are of one chemical system: expected two or more to split")
    order = np.random.default_rng(seed).permutation(len(sizes))
    reached = np.cumsum(sizes[order])
    count = 1 + int(np.argmin(np.abs(reached[:-1] - share * sizes.sum())))
    held_out = np.isin(group, order[:count])
    return (
        trajectories.subset(np.flatnonzero(~held_out)),
        trajectories.subset(np.flatnonzero(held_out)),
    )


def _chemical_systems(trajectories: Trajectories) -> np.ndarray:
    """Return the number of every episode's set of elements, ``(K,)``, in a fixed order."""
    finished = trajectories.finished
    present = np.zeros((len(finished), 1 + int(finished.max())), dtype=np.bool_)
    np.put_along_axis(present, finished.astype(np.int64), True, axis=1)
    _, group = np.unique(present[:, 1:], axis=0, return_inverse=True)
    return np.asarray(group).reshape(-1)


def judging_dataset(dataset: str, validation: str | None = None, split: str = "published") -> str:
    """Return the Minari id whose crystals judge; see :func:`load_split`."""
    if split not in SPLITS:
        raise ValueError(f"split={split!r} is unknown: expected {' or '.join(SPLITS)}")
    if validation is not None:
        if split == "composition":
            raise ValueError(
                f"validation={validation!r} does not go with split='composition', which holds out "
                "crystals of the dataset itself: leave one of the two out"
            )
        require_dataset(validation)
        return validation
    name, _, number = dataset.rpartition("-")
    beside = f"{name}-val-{number}"
    return beside if split == "published" and beside in minari.list_local_datasets() else dataset


def load_split(
    dataset: str, validation: str | None = None, split: str = "published"
) -> tuple[Trajectories, Trajectories]:
    """Return the episodes of a dataset that are learned from, and those that judge.

    Args:
        dataset: Minari id.
        validation: Minari id of the crystals that judge; by default the dataset's own ``-val``
            split where it is built, else every tenth skeleton is held out.
        split: ``published`` (this), or ``composition``: a fifth of the dataset's own crystals is
            held out by :func:`composition_split` with seed 0.

    Returns:
        To learn from, and to judge by.

    Raises:
        ValueError: If a dataset is not on this machine or has too few crystals to hold some out,
            there is no such split, or one by composition is asked for beside a validation set.
    """
    judging = judging_dataset(dataset, validation, split)
    training = load_trajectories(dataset)
    if judging != dataset:
        return training, load_trajectories(judging)
    if split == "composition":
        return composition_split(training)
    held_out = training.skeleton % 10 == 9
    if not held_out.any():
        raise ValueError(
            f"dataset {dataset!r} has {len(np.unique(training.skeleton))} skeletons, too few to "
            "hold every tenth out: expected 10 or more, or a validation set"
        )
    return training.subset(np.flatnonzero(~held_out)), training.subset(np.flatnonzero(held_out))
