"""Trajectories as Minari datasets, and back.

The layout is Minari's own HDF5 format, so ``minari.load_dataset`` reads it as it is. Only the
writing differs: arrays are contiguous and the file uses the newest HDF5 structures, which makes
44,000 small episodes six times smaller and much faster to write than chunk by chunk.

A card for people, ``README.md``, lies in the dataset's folder. Beside ``main_data.hdf5`` lie
``skeletons.npz`` and ``table.npz``, so that the environment of a dataset travels with it, and
``trajectories.npz``: the same episodes as columns, which load in a tenth of a second where
reading 43,182 HDF5 groups takes a minute. It names the checksum of the HDF5 file it was made with
and when that was last written to, and is left aside once it is another.
"""

from __future__ import annotations

import copy
import hashlib
import json
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import gymnasium as gym
import h5py
import minari
import numpy as np
from filelock import FileLock, Timeout
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec
from minari.dataset.minari_storage import MinariStorage
from numpy.typing import NDArray
from tqdm import tqdm

import crystal_gym
from crystal_gym.columns import (
    require_columns,
    require_range,
    require_range_of_runs,
    require_starts,
)
from crystal_gym.datasets.cards import DatasetCard, card_text
from crystal_gym.datasets.relabel import terminal_rewards
from crystal_gym.datasets.trajectories import Trajectories
from crystal_gym.elements import N_ELEMENTS, reduced_formula
from crystal_gym.envs.crystal_fill import TOLD_PROPERTIES
from crystal_gym.envs.observations import make_form
from crystal_gym.files import DAMAGED_NPZ, first_line, open_npz, read_json, save_npz, sha256_of
from crystal_gym.oracles import PropertyTable, Status
from crystal_gym.ragged import run_starts
from crystal_gym.sets import BUILDS, dataset_dir, is_dataset_id, load_skeleton_file
from crystal_gym.skeletons import Skeleton, SkeletonSet
from crystal_gym.suggestions import did_you_mean

__all__ = [
    "STORED_TARGET_EV",
    "BuildReport",
    "DatasetCard",
    "left_out",
    "load_trajectories",
    "lock_file",
    "open_dataset",
    "publish",
    "read_trajectories",
    "require_dataset",
    "require_dataset_id",
    "write_dataset",
]

STORED_TARGET_EV = 3.0
"""Target for which rewards are stored; the loader recomputes them for any other."""


@dataclass(frozen=True)
class BuildReport:
    """What a build made, and every crystal it had to leave out, with the reason.

    Attributes:
        dataset_id: Minari id.
        path: Its data folder.
        crystals: Labelled crystals in it.
        episodes: Episodes.
        transitions: Transitions.
        problems: Reason by the name of the crystal left out.
    """

    dataset_id: str
    path: Path
    crystals: int
    episodes: int
    transitions: int
    problems: dict[str, str]

    def __str__(self) -> str:
        text = (
            f"{self.dataset_id}: {self.crystals:,} crystals, {self.episodes:,} episodes, "
            f"{self.transitions:,} transitions in {self.path}"
        )
        return text + left_out(self.problems)


def left_out(problems: dict[str, str]) -> str:
    """Return a line on what was left out, empty where nothing was."""
    if not problems:
        return ""
    listed = [f"{name}: {reason}" for name, reason in islice(problems.items(), 5)]
    if len(problems) > len(listed):
        listed.append(f"and {len(problems) - len(listed):,} more")
    return f"\n  left out {len(problems):,}: {'; '.join(listed)}"


def require_dataset_id(dataset_id: str) -> None:
    """Refuse an id that Minari would not find again.

    Args:
        dataset_id: Such as ``crystal-mine-v0``.

    Raises:
        ValueError: If it is not of Minari's form.
    """
    if not is_dataset_id(dataset_id):
        raise ValueError(
            f"{dataset_id!r} is no id of a Minari dataset: expected a name with a version, such as "
            "crystal-mine-v0"
        )


def publish(
    card: DatasetCard,
    trajectories: Trajectories,
    table: PropertyTable,
    problems: dict[str, str],
    *,
    progress: bool = False,
) -> BuildReport:
    """Write a dataset as :func:`write_dataset` does, and return what a build made.

    Args:
        card: Of the dataset.
        trajectories: Its episodes.
        table: Its crystals.
        problems: Reason by the name of each crystal that did not reach the table.
        progress: Show a progress bar on standard error.

    Returns:
        What was made, and what was left out of the table or of the episodes.
    """
    path = write_dataset(card, trajectories, table, progress=progress)
    return BuildReport(
        card.dataset_id,
        path,
        len(trajectories.crystals),
        len(trajectories),
        len(trajectories.actions),
        problems | _without_result(table),
    )


def _without_result(table: PropertyTable) -> dict[str, str]:
    """Return the crystals whose calculation failed, of which no episode is made, and how."""
    problems = {}
    for entry in np.flatnonzero(table.status != Status.OK.value).tolist():
        skeleton = table.skeletons[int(table.skeleton[entry])].name
        formula = reduced_formula(table.entry_tokens(entry))
        problems[f"{formula} on {skeleton} (entry {entry})"] = str(table.status[entry])
    return problems


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
        ValueError: If another process is writing it.
    """
    target = dataset_dir(card.dataset_id)
    root = target.parent.parent
    try:
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(lock_file(target), blocking=False):
            _write_in_place_of(target.parent, card, trajectories, table, progress)
    except Timeout as error:
        raise ValueError(
            f"{target} is being written by another process: expected one build of a dataset at a "
            "time; wait until it is done"
        ) from error
    except OSError as error:
        raise OSError(
            f"{target} cannot be written ({first_line(error)}): make room, or set "
            "MINARI_DATASETS_PATH to another folder; a dataset that was there is unchanged"
        ) from error
    return target


def lock_file(target: Path) -> Path:
    """Name the lock of a folder: not among the datasets, where people would wonder at it."""
    name = hashlib.sha256(str(target.absolute()).encode()).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"crystal-gym-{name}.lock"


def _write_in_place_of(
    target: Path,
    card: DatasetCard,
    trajectories: Trajectories,
    table: PropertyTable,
    progress: bool,
) -> None:
    """Write a dataset beside ``target`` and then put it there; the caller holds the lock."""
    aside, building = _aside(target), target.with_name(f".{target.name}.building")
    if aside.exists() and not target.exists():
        aside.rename(target)  # a build was killed between its two renames
    for leftover in (aside, building):
        shutil.rmtree(leftover, ignore_errors=True)  # of a build that was killed
    data = building / "data"
    data.mkdir(parents=True)
    try:
        table.save_with_skeletons(data)
        _write_storage(card, trajectories, data, progress)
        _save_columns(trajectories, data)
        text = card_text(card, trajectories, STORED_TARGET_EV)
        (building / "README.md").write_text(text, encoding="utf-8")
        _replace_folder(building, target)
    except BaseException:
        shutil.rmtree(building, ignore_errors=True)
        raise


def _replace_folder(new: Path, target: Path) -> None:
    """Put ``new`` in the place of ``target``, by renaming only."""
    old = _aside(target)
    if target.exists():
        target.rename(old)
    try:
        new.rename(target)
    except BaseException:
        if old.exists():
            old.rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _aside(target: Path) -> Path:
    return target.with_name(f".{target.name}.building-old")


def _env_spec(card: DatasetCard) -> EnvSpec:
    spec = copy.deepcopy(gym.spec("CrystalFill-v0"))
    spec.kwargs = {
        "target_gap": STORED_TARGET_EV,
        "skeletons": card.dataset_id,  # its own folder's, whatever a name may mean one day
        "observation": "compact",
    }
    if card.mask is not None:
        spec.kwargs["mask"] = card.mask
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
    with h5py.File(data / _EPISODES, "w", libver="latest") as file:
        writer = _EpisodeWriter(file, trajectories)
        for episode in tqdm(
            range(len(trajectories)), desc="episodes", unit="episode", disable=not progress
        ):
            writer.write(episode, float(rewards[episode]))
    storage.update_metadata(
        {
            "dataset_id": card.dataset_id,
            "total_episodes": len(trajectories),
            "total_steps": len(trajectories.actions),
            "dataset_size": storage.get_size(),
            "algorithm_name": card.algorithm_name,
            "author": {"crystal_gym developers"},
            "minari_version": minari.__version__,
            "description": card.description,
            "requirements": [f"crystal-gym>={crystal_gym.__version__}"],
        }
    )


class _EpisodeWriter:
    """Writes episodes as small as HDF5 can hold them.

    Three things make 43,182 episodes 2.6 times smaller than plain h5py calls do: arrays lie inside
    their object headers (they are far below the 64 kB that fit), attributes stay in the group's
    header however many there are, and arrays that many episodes share (all that follow from the
    length alone, the skeleton's number) are stored once and linked.
    """

    def __init__(self, file: h5py.File, trajectories: Trajectories) -> None:
        self._file = file
        self._data = trajectories
        self._shared: dict[Any, h5py.Dataset] = {}
        self._number = -1  # of the skeleton of the last episode
        self._group_settings = h5py.h5p.create(h5py.h5p.GROUP_CREATE)
        self._group_settings.set_attr_phase_change(64, 32)
        self._group_settings.set_obj_track_times(False)  # the same data give the same bytes
        self._array_settings = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        self._array_settings.set_layout(h5py.h5d.COMPACT)
        self._array_settings.set_obj_track_times(False)

    def write(self, episode: int, reward: float) -> None:
        """Write one episode; ``reward`` is its terminal reward."""
        data = self._data
        steps = slice(int(data.step_ptr[episode]), int(data.step_ptr[episode + 1]))
        length = steps.stop - steps.start
        order = data.traversal[steps]
        number = int(data.skeleton[episode])
        if number != self._number:  # its episodes are neighbours; handles take memory
            self._shared.pop(("skeleton", self._number), None)
            self._number = number
        skeleton = data.skeletons[number]
        tokens = np.zeros((length + 1, data.skeletons.max_sites), dtype=np.int8)
        placed = np.argsort(order) < np.arange(length + 1)[:, None]
        tokens[:, :length] = np.where(placed, data.final_tokens(episode), 0)
        last = np.arange(length) == length - 1
        group = self._group(self._file.id, f"episode_{episode}")
        seen = self._group(group, "observations")
        self._array(seen, "element_tokens", tokens)
        self._array(seen, "focus", np.append(order, length).astype(np.int16)[:, None])
        self._link(seen, "skeleton", np.full((length + 1, 1), number, dtype=np.int32), number)
        target = np.full((length + 1, 1), STORED_TARGET_EV, dtype=np.float32)
        self._link(seen, "target_gap", target, length)
        self._array(group, "actions", data.actions[steps].astype(np.int64))
        self._array(group, "rewards", np.where(last, reward, 0.0))
        self._link(group, "terminations", last, length)
        self._link(group, "truncations", np.zeros(length, dtype=bool), length)
        if episode:  # Minari's EpisodeData cannot be printed without infos: one serves all
            group.links.create_hard(b"infos", self._file.id, b"episode_0/infos")
        else:
            self._group(group, "infos")
        h5py.Group(group).attrs["options/material_id"] = skeleton.name
        for name, value in self._metadata(episode, skeleton, order).items():
            self._attribute(group, name, np.asarray(value))

    def _metadata(
        self, episode: int, skeleton: Skeleton, order: NDArray[np.int16]
    ) -> dict[str, Any]:
        data = self._data
        return {
            "id": episode,
            "total_steps": len(order),
            "options/band_gap_ev": data.band_gap_ev[episode],
            "options/formation_energy_ev_per_atom": data.formation_energy_ev_per_atom[episode],
            "options/total_energy_ry": data.total_energy_ry[episode],
            "options/traversal": order,
            "options/lattice": skeleton.lattice,
            "options/frac_coords": skeleton.frac_coords,
            "options/space_group_number": skeleton.space_group_number,
            "options/edge_index": _smallest(skeleton.edge_index),
            "options/edge_image": _smallest(skeleton.edge_image),
            "options/edge_length": skeleton.edge_length,
        }

    def _group(self, parent: Any, name: str) -> Any:
        return h5py.h5g.create(parent, name.encode(), gcpl=self._group_settings)

    def _array(self, parent: Any, name: str, array: NDArray[Any]) -> None:
        kind = _kind(array.dtype)
        settings = self._array_settings
        dataset = h5py.h5d.create(parent, name.encode(), kind, _space(array.shape), settings)
        dataset.write(h5py.h5s.ALL, h5py.h5s.ALL, np.ascontiguousarray(array))

    def _attribute(self, group: Any, name: str, value: NDArray[Any]) -> None:
        # h5py's attrs writes under a temporary name and renames: three times the work.
        kind = _kind(value.dtype)
        attribute = h5py.h5a.create(group, name.encode(), kind, _space(value.shape))
        attribute.write(np.ascontiguousarray(value))

    def _link(self, parent: Any, name: str, array: NDArray[Any], key: int) -> None:
        """Store an array that ``name`` and ``key`` determine once, and link to it."""
        home = self._shared.get((name, key))
        if home is None:
            self._array(parent, name, array)
            self._shared[name, key] = h5py.h5d.open(parent, name.encode())
        else:
            h5py.h5o.link(home, parent, name.encode())


@cache
def _kind(dtype: np.dtype[Any]) -> Any:
    return h5py.h5t.py_create(dtype, logical=True)


@cache
def _space(shape: tuple[int, ...]) -> Any:
    return h5py.h5s.create_simple(shape) if shape else h5py.h5s.create(h5py.h5s.SCALAR)


def _smallest(integers: NDArray[np.int16]) -> NDArray[Any]:
    """Return int8 where that holds the values."""
    fits = integers.size == 0 or np.abs(integers).max() <= np.iinfo(np.int8).max
    return integers.astype(np.int8) if fits else integers


def require_dataset(dataset_id: str) -> Path:
    """Return the folder of a dataset that is on this machine.

    Args:
        dataset_id: Minari id.

    Returns:
        The folder of its data, which has metadata.

    Raises:
        ValueError: If it is not there; the message says how to make it, or what it may be called.
    """
    folder = dataset_dir(dataset_id)
    if (folder / "metadata.json").exists():
        return folder
    if dataset_id in BUILDS:
        raise ValueError(
            f"dataset {dataset_id!r} is not on this machine yet: run `crystal-gym data build "
            f"{BUILDS[dataset_id]}`"
        )
    local = sorted(minari.list_local_datasets())
    raise ValueError(
        f"dataset {dataset_id!r} is not on this machine{did_you_mean(dataset_id, local)}: there "
        f"are {', '.join(local) or 'none'}; `crystal-gym data build --help` says how to make one"
    )


def open_dataset(dataset_id: str) -> minari.MinariDataset:
    """Open a local dataset, after a look at what it asks for.

    Metadata name the environment as ``module:function`` with arguments, and Minari calls it where
    a space is missing: a dataset from elsewhere could call anything, so only ours is let through.

    Args:
        dataset_id: Minari id on this machine.

    Returns:
        The dataset, none of its code run.

    Raises:
        ValueError: If it is not there, damaged, not HDF5, or names another environment.
    """
    folder = require_dataset(dataset_id)
    metadata = read_json(folder / "metadata.json")
    try:
        _require_harmless(metadata)
        return minari.load_dataset(dataset_id)
    except _NO_DATASET as error:
        reason = next(iter(str(error).splitlines()), "")[:200] or type(error).__name__
        raise ValueError(
            f"dataset {dataset_id!r} in {folder} cannot be used ({reason}): expected one that "
            "`crystal-gym data build` or `data export` wrote"
        ) from error


# What Minari and Gymnasium raise on metadata that neither wrote.
_NO_DATASET = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    gym.error.Error,
)


def _require_harmless(metadata: Any) -> None:
    """Refuse metadata that would run other code than ours, or that no dataset has.

    Raises:
        ValueError: If they do.
        LookupError: If something is missing.
        TypeError: If something is of another kind.
    """
    if metadata["data_format"] != "hdf5":
        raise ValueError(f"its format is {metadata['data_format']!r}, not 'hdf5'")
    for name in ("observation_space", "action_space"):
        if not isinstance(metadata[name], str):
            raise TypeError(f"its {name} is no text")
    for name in ("total_episodes", "total_steps"):
        if type(metadata[name]) is not int or not 0 <= metadata[name] <= _MOST_STEPS:
            raise ValueError(f"its {name} is {metadata[name]!r}, not up to {_MOST_STEPS:,}")
    ours = gym.spec("CrystalFill-v0")
    for name in ("env_spec", "eval_env_spec"):
        if metadata.get(name) is None:
            continue
        spec = json.loads(metadata[name])
        if spec["entry_point"] != ours.entry_point or spec.get("additional_wrappers"):
            raise ValueError(
                f"its environment is {str(spec['entry_point'])[:100]!r}, not {ours.entry_point!r}"
            )


def load_trajectories(
    dataset: str | minari.MinariDataset | Trajectories, *, progress: bool = False
) -> Trajectories:
    """Return the episodes of a dataset in columns, by its id or as an object.

    Args:
        dataset: Minari id, dataset, or episodes, which are returned as they are.
        progress: Show a progress bar on standard error.

    Returns:
        All episodes, in their order.

    Raises:
        ValueError: If the dataset is not there or does not hold compact observations.
    """
    if isinstance(dataset, str):
        dataset = open_dataset(dataset)
    if isinstance(dataset, Trajectories):
        return dataset
    return read_trajectories(dataset, progress=progress)


def read_trajectories(dataset: minari.MinariDataset, progress: bool = False) -> Trajectories:
    """Read the episodes of a dataset of compact observations.

    Args:
        dataset: A Minari dataset of ``CrystalFill-v0`` with ``observation="compact"``.
        progress: Show a progress bar on standard error.

    Returns:
        All episodes, in their order.

    Raises:
        ValueError: If its observations are of another form, or an episode lacks its properties.
    """
    space = dataset.observation_space
    if not isinstance(space, spaces.Dict) or "skeleton" not in space.spaces:
        raise ValueError(
            f"dataset {dataset.id} does not hold compact observations ({space}): expected a "
            "dataset of CrystalFill-v0 made with observation='compact'"
        )
    folder = Path(dataset.storage.data_path)
    skeletons = _skeletons_of(dataset, folder)
    columns = _load_columns(folder, skeletons)
    beyond = int(np.max(dataset.episode_indices, initial=-1))
    if columns is not None and beyond < len(columns):
        return columns.subset(dataset.episode_indices)
    return _read_episodes(dataset, folder, skeletons, progress)


def _skeletons_of(dataset: minari.MinariDataset, folder: Path) -> SkeletonSet:
    # Those the episodes were written with: a named set may since have become another one.
    if (folder / "skeletons.npz").exists():
        return load_skeleton_file(folder / "skeletons.npz")
    _require_harmless(read_json(folder / "metadata.json"))
    env = dataset.recover_environment()
    skeletons: SkeletonSet = env.unwrapped.skeletons
    env.close()
    return skeletons


def _save_columns(trajectories: Trajectories, folder: Path) -> None:
    save_npz(
        folder / _COLUMNS,
        hdf5_sha256=sha256_of(folder / _EPISODES),
        hdf5_changed_ns=(folder / _EPISODES).stat().st_mtime_ns,
        table_id=trajectories.skeletons.table_id,
        **trajectories.columns(),
    )


def _load_columns(folder: Path, skeletons: SkeletonSet) -> Trajectories | None:
    """Return the columns if they were made of this very HDF5 file and skeleton set."""
    if not (folder / _COLUMNS).exists():
        return None
    try:
        with open_npz(folder / _COLUMNS) as file:
            if int(file["table_id"]) != skeletons.table_id:
                return None
            if not _is_same_file(folder / _EPISODES, file):
                return None
            names = [f.name for f in fields(Trajectories) if f.name != "skeletons"]
            columns = {name: file[name] for name in names}
        _require_sound(columns, skeletons)
        return Trajectories(skeletons=skeletons, **columns)
    except DAMAGED_NPZ:
        return None  # a damaged copy costs time: the episodes are read one by one


def _is_same_file(path: Path, noted: Mapping[str, NDArray[Any]]) -> bool:
    """Return whether the HDF5 file is the noted one; if nothing wrote to it since, unread."""
    if "hdf5_changed_ns" in noted and int(noted["hdf5_changed_ns"]) == path.stat().st_mtime_ns:
        return True
    return str(noted["hdf5_sha256"]) == sha256_of(path)


def _require_sound(columns: Mapping[str, NDArray[Any]], skeletons: SkeletonSet) -> None:
    """Refuse columns of episodes that do not fit together or to their skeletons.

    Raises:
        ValueError: If they do not.
    """
    episodes, steps = columns["skeleton"].size, columns["actions"].size
    require_columns(
        columns,
        {
            "skeleton": ("i", (episodes,)),
            "step_ptr": ("i", (episodes + 1,)),
            "traversal": ("i", (steps,)),
            "actions": ("i", (steps,)),
            **{name: ("f", (episodes,)) for name in TOLD_PROPERTIES},
        },
    )
    require_starts("step_ptr", columns["step_ptr"], steps)
    require_range("skeleton", columns["skeleton"], 0, len(skeletons))
    n_sites = skeletons.n_sites[columns["skeleton"]]
    if np.any(np.diff(columns["step_ptr"]) != n_sites):
        raise ValueError("an episode has another number of steps than its skeleton has sites")
    require_range_of_runs("traversal", columns["traversal"], columns["step_ptr"], n_sites)
    require_range("actions", columns["actions"], 0, N_ELEMENTS)


def _read_episodes(
    dataset: minari.MinariDataset, folder: Path, skeletons: SkeletonSet, progress: bool
) -> Trajectories:
    numbers, orders, actions, properties = [], [], [], []
    episode = -1
    try:
        with h5py.File(folder / _EPISODES, "r") as file:
            for episode in tqdm(
                dataset.episode_indices, desc="reading", unit="episode", disable=not progress
            ):
                group = _group(file, f"episode_{episode}")
                properties.append(
                    [float(group.attrs[f"options/{name}"]) for name in TOLD_PROPERTIES]
                )
                seen = _group(group, "observations")
                numbers.append(_array(seen, "skeleton")[0, 0])
                orders.append(_array(seen, "focus")[:-1, 0])
                actions.append(_array(group, "actions"))
        columns = {
            "skeleton": np.array(numbers, dtype=np.int64),
            "step_ptr": run_starts([len(a) for a in actions]),
            "traversal": np.concatenate(orders).astype(np.int16),
            "actions": np.concatenate(actions).astype(np.int16),
            **dict(zip(TOLD_PROPERTIES, np.array(properties, dtype=np.float64).T, strict=True)),
        }
        _require_sound(columns, skeletons)
    except (LookupError, OSError, RuntimeError, TypeError, ValueError) as error:
        said = str(error.args[0] if error.args else "").splitlines()
        reason = said[0][:200] if said else type(error).__name__
        raise ValueError(
            f"episode {episode} of {dataset.id} cannot be read ({reason}): expected the arrays of "
            "one filling and the properties of the finished crystal; build the dataset again"
        ) from error
    return Trajectories(skeletons=skeletons, **columns)


def _group(parent: h5py.Group, name: str) -> h5py.Group:
    """Return a group of the same file: a link may lead to any other."""
    if isinstance(parent.get(name, getlink=True), h5py.ExternalLink):
        raise ValueError(f"{name} lies in another file")
    found = parent[name]
    if not isinstance(found, h5py.Group):
        raise TypeError(f"{name} is no group")
    return found


def _array(parent: h5py.Group, name: str) -> NDArray[Any]:
    """Return an array of one episode, as large as one may be and stored in the same file."""
    if isinstance(parent.get(name, getlink=True), h5py.ExternalLink):
        raise ValueError(f"{name} lies in another file")
    found = parent[name]
    if not isinstance(found, h5py.Dataset) or found.external or found.is_virtual:
        raise TypeError(f"{name} is no array in this file")
    if found.size is None or found.size > _LARGEST_ARRAY or found.dtype.kind not in "iu":
        raise ValueError(f"{name} is {found.dtype} of shape {found.shape}")
    array: NDArray[Any] = found[()]
    return array


_COLUMNS = "trajectories.npz"
_EPISODES = "main_data.hdf5"
_LARGEST_ARRAY = 100_000
"""Numbers in one array of an episode: its length, for those that are read."""
_MOST_STEPS = 100_000_000
