"""Trajectories as Minari datasets, and back.

The layout is Minari's own HDF5 format, so ``minari.load_dataset`` reads it as it is. Only the
writing differs: arrays are contiguous and the file uses the newest HDF5 structures, which makes
44,000 small episodes six times smaller and much faster to write than chunk by chunk.

Beside ``main_data.hdf5`` lie ``skeletons.npz`` and ``table.npz``, so that the environment of a
dataset travels with it.
"""

from __future__ import annotations

import copy
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import h5py
import minari
import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec
from minari.dataset.minari_storage import MinariStorage
from numpy.typing import NDArray
from tqdm import tqdm

import crystal_gym
from crystal_gym.datasets.relabel import terminal_rewards
from crystal_gym.datasets.trajectories import Trajectories
from crystal_gym.elements import N_ELEMENTS
from crystal_gym.envs.observations import make_form
from crystal_gym.oracles import PropertyTable
from crystal_gym.sets import dataset_dir

__all__ = ["STORED_TARGET_EV", "DatasetCard", "read_trajectories", "write_dataset"]

STORED_TARGET_EV = 3.0
"""Target for which rewards are stored; the loader recomputes them for any other."""


@dataclass(frozen=True)
class DatasetCard:
    """What a dataset says of itself.

    Attributes:
        dataset_id: Minari id such as ``crystal-mp20-v0``.
        skeletons: Name of its skeleton set, the environment's ``skeletons`` argument.
        description: One paragraph: what, from where, licence.
        algorithm_name: What made the episodes.
    """

    dataset_id: str
    skeletons: str
    description: str
    algorithm_name: str = "breadth-first reconstruction of labelled crystals"


def write_dataset(
    card: DatasetCard,
    trajectories: Trajectories,
    table: PropertyTable,
    *,
    progress: bool = False,
) -> Path:
    """Write a dataset; it appears whole, or not at all and what was there stays.

    Args:
        card: Its id and description.
        trajectories: The episodes.
        table: The property table that they were planned from.
        progress: Show a progress bar on standard error.

    Returns:
        The dataset's data folder.

    Raises:
        OSError: If it cannot be written (a full disk); nothing is left behind.
    """
    target = dataset_dir(card.dataset_id)
    target.parent.parent.mkdir(parents=True, exist_ok=True)
    for leftover in target.parent.parent.glob(f".{card.dataset_id}.building*"):
        shutil.rmtree(leftover, ignore_errors=True)  # of a build that was killed
    building = target.parent.parent / f".{card.dataset_id}.building"
    data = building / "data"
    data.mkdir(parents=True)
    try:
        table.skeletons.save(data / "skeletons.npz")
        table.save(data / "table.npz")
        _write_storage(card, trajectories, data, progress)
        _replace_folder(building, target.parent)
    except BaseException:
        shutil.rmtree(building, ignore_errors=True)
        raise
    return target


def _replace_folder(new: Path, target: Path) -> None:
    """Put ``new`` in the place of ``target``; two renames, so that no moment lacks both for long."""
    old = target.with_name(f".{target.name}.building-old")
    if target.exists():
        target.rename(old)
    new.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def _env_spec(card: DatasetCard) -> EnvSpec:
    spec = copy.deepcopy(gym.spec("CrystalFill-v0"))
    spec.kwargs = {
        "target_gap": STORED_TARGET_EV,
        "skeletons": card.skeletons,
        "observation": "compact",
    }
    return spec


def _write_storage(
    card: DatasetCard, trajectories: Trajectories, data: Path, progress: bool
) -> None:
    observation_space = make_form("compact", trajectories.skeletons, conditional=True).space
    storage = MinariStorage.new(
        data,
        observation_space=observation_space,
        action_space=spaces.Discrete(N_ELEMENTS),
        env_spec=_env_spec(card),
        data_format="hdf5",
    )
    rewards = terminal_rewards(
        "formation",
        trajectories.total_energy_ry,
        trajectories.formation_energy_ev_per_atom,
        trajectories.band_gap_ev,
        np.full(len(trajectories), STORED_TARGET_EV),
    )
    with h5py.File(data / "main_data.hdf5", "w", libver="latest") as file:
        for episode in tqdm(
            range(len(trajectories)), desc="episodes", unit="episode", disable=not progress
        ):
            group = file.create_group(f"episode_{episode}")
            _write_episode(group, trajectories, episode, float(rewards[episode]))
            # Minari's EpisodeData cannot be printed without infos: one empty group serves all.
            group["infos"] = file.require_group("episode_0/infos")
    storage.update_metadata(
        {
            "dataset_id": card.dataset_id,
            "total_episodes": len(trajectories),
            "total_steps": len(trajectories.actions),
            "dataset_size": storage.get_size(),
            "algorithm_name": card.algorithm_name,
            "author": {"crystal_gym developers"},
            "code_permalink": f"crystal-gym {crystal_gym.__version__}",
            "minari_version": minari.__version__,
            "description": card.description,
            "requirements": ["crystal-gym"],
        }
    )


def _write_episode(
    group: h5py.Group, trajectories: Trajectories, episode: int, reward: float
) -> None:
    steps = slice(int(trajectories.step_ptr[episode]), int(trajectories.step_ptr[episode + 1]))
    length = steps.stop - steps.start
    order = trajectories.traversal[steps]
    number = int(trajectories.skeleton[episode])
    skeleton = trajectories.skeletons[number]
    tokens = np.zeros((length + 1, trajectories.skeletons.max_sites), dtype=np.int8)
    tokens[:length] = trajectories.tokens[steps]
    tokens[length, :length] = trajectories.final_tokens(episode)
    ends = np.zeros(length, dtype=bool)
    stored: dict[str, NDArray[Any]] = {
        "observations/skeleton": np.full((length + 1, 1), number, dtype=np.int32),
        "observations/element_tokens": tokens,
        "observations/focus": np.append(order, length).astype(np.int16)[:, None],
        "observations/target_gap": np.full((length + 1, 1), STORED_TARGET_EV, dtype=np.float32),
        "actions": trajectories.actions[steps].astype(np.int64),
        "rewards": np.where(np.arange(length) == length - 1, reward, 0.0),
        "terminations": np.arange(length) == length - 1,
        "truncations": ends,
    }
    for name, array in stored.items():
        group.create_dataset(name, data=array)
    attributes: dict[str, Any] = {
        "id": episode,
        "total_steps": length,
        "options/material_id": skeleton.name,
        "options/band_gap_ev": trajectories.band_gap_ev[episode],
        "options/formation_energy_ev_per_atom": trajectories.formation_energy_ev_per_atom[episode],
        "options/total_energy_ry": trajectories.total_energy_ry[episode],
        "options/traversal": order,
        "options/lattice": skeleton.lattice,
        "options/frac_coords": skeleton.frac_coords,
        "options/space_group_number": skeleton.space_group_number,
        "options/edge_index": skeleton.edge_index,
        "options/edge_image": skeleton.edge_image.astype(np.int8),
        "options/edge_length": skeleton.edge_length,
    }
    for name, value in attributes.items():
        group.attrs[name] = value


def read_trajectories(dataset: minari.MinariDataset, progress: bool = False) -> Trajectories:
    """Read the episodes of a dataset of compact observations.

    Args:
        dataset: A Minari dataset of ``CrystalFill-v0`` with ``observation="compact"``.
        progress: Show a progress bar on standard error.

    Raises:
        ValueError: If its observations are of another form, or an episode lacks its properties.
    """
    space = dataset.observation_space
    if not isinstance(space, spaces.Dict) or "skeleton" not in space.spaces:
        raise ValueError(
            f"dataset {dataset.id} does not hold compact observations ({space}): expected a "
            "dataset of CrystalFill-v0 made with observation='compact'"
        )
    env = dataset.recover_environment()
    skeletons = env.unwrapped.skeletons  # type: ignore[attr-defined]
    env.close()
    numbers, orders, actions, properties = [], [], [], []
    path = Path(dataset.storage.data_path) / "main_data.hdf5"
    with h5py.File(path, "r") as file:
        for episode in tqdm(
            dataset.episode_indices, desc="reading", unit="episode", disable=not progress
        ):
            group = file[f"episode_{episode}"]
            try:
                properties.append([group.attrs[f"options/{name}"] for name in _PROPERTIES])
            except KeyError as error:
                raise ValueError(
                    f"episode {episode} of {dataset.id} has no {error.args[0]}: expected the "
                    "properties of the finished crystal in its metadata; build the dataset again"
                ) from error
            numbers.append(group["observations/skeleton"][0, 0])
            orders.append(group["observations/focus"][:-1, 0])
            actions.append(group["actions"][()])
    columns = np.array(properties, dtype=np.float64).T
    return Trajectories(
        skeletons=skeletons,
        skeleton=np.array(numbers, dtype=np.int64),
        step_ptr=np.concatenate([[0], np.cumsum([len(a) for a in actions])]),
        traversal=np.concatenate(orders).astype(np.int16),
        actions=np.concatenate(actions).astype(np.int16),
        **dict(zip(_PROPERTIES, columns, strict=True)),
    )


_PROPERTIES = ("total_energy_ry", "formation_energy_ev_per_atom", "band_gap_ev")
