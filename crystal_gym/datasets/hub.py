"""Publishing a dataset on the Hugging Face hub, through Minari's own ``hf://`` remote.

Minari finds a dataset there only under a group of its own: an id without one, ``crystal-mine-v0``,
can be uploaded, but neither listed nor downloaded (docs/upstream.md). So ``crystal-mine-v0`` goes
to the hub as ``crystal/mine-v0``, in the folder ``mine-v0`` of the repository
``NAMESPACE/crystal``. Whoever sets ``MINARI_REMOTE=hf://NAMESPACE`` loads it by that id.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import minari

from crystal_gym.datasets.cards import DatasetCard, card_text, group_card_text
from crystal_gym.datasets.minari_io import STORED_TARGET_EV, load_trajectories
from crystal_gym.datasets.trajectories import Trajectories
from crystal_gym.extras import require_extra
from crystal_gym.files import first_line, read_json
from crystal_gym.sets import dataset_dir

__all__ = ["published_name", "upload"]

# What a dataset consists of: nothing else that lies in its folder leaves this machine.
_FILES = (
    "main_data.hdf5",
    "metadata.json",
    "skeletons.npz",
    "table.npz",
    "trajectories.npz",
)


def upload(
    dataset_id: str, to: str, published_id: str | None = None, *, dry_run: bool = False
) -> Iterator[str]:
    """Upload a dataset with its card, yielding one line about each thing done.

    Args:
        dataset_id: Minari id on this machine.
        to: ``hf://NAMESPACE``: a user or an organisation of the hub.
        published_id: Id there, ``GROUP/NAME-vN``; by default :func:`published_name`.
        dry_run: Only say what would be uploaded; needs neither network nor token.

    Yields:
        Sentences for people.

    Raises:
        ImportError: If the extra ``hub`` is not installed.
        ValueError: If the dataset is not here, an id or address is not of the form that is needed,
            there is no token, or the dataset is on the hub already.
        PermissionError: If the hub refuses the token or the namespace.
        ConnectionError: If the hub does not answer.
    """
    namespace = _namespace(to)
    goal = published_name(dataset_id) if published_id is None else published_id
    _require_grouped(goal)
    data = load_trajectories(dataset_id)  # refuses what is not here, damaged, or would run code
    group, name = goal.split("/")
    with tempfile.TemporaryDirectory(prefix="crystal-gym-publish-") as temporary:
        staged = Path(temporary) / group / name
        _stage(dataset_id, data, goal, staged)
        files = sorted(path for path in staged.rglob("*") if path.is_file())
        size = sum(path.stat().st_size for path in files) / 1e6
        shown = ", ".join(str(path.relative_to(staged)) for path in files)
        what = f"{goal}, {size:,.1f} MB ({shown}), to hf://{namespace}/{group}, folder {name}"
        if dry_run:
            yield f"would upload {what}; nothing was sent"
            return
        require_extra("hub", "publishing a dataset")
        token = _token()
        yield f"uploading {what}"
        with _told_plainly(namespace), _minari_at(Path(temporary), to):
            _send(goal, group, namespace, token)
    yield (
        f"published; to load it: set MINARI_REMOTE={to} and `minari.load_dataset({goal!r}, "
        "download=True)`"
    )


def published_name(dataset_id: str) -> str:
    """Return the id of a dataset on the hub: ``crystal-mine-v0`` becomes ``crystal/mine-v0``."""
    if "/" in dataset_id:
        return dataset_id
    return f"crystal/{dataset_id.removeprefix('crystal-')}"


def _namespace(to: str) -> str:
    match = re.fullmatch(r"hf://([A-Za-z0-9][-.\w]*)/?", to)
    if match is None:
        raise ValueError(
            f"--to {to!r} is no address on the hub: expected hf:// and the name of a user or an "
            "organisation there, such as hf://my-group"
        )
    return match[1]


def _require_grouped(name: str) -> None:
    if not re.fullmatch(r"[-\w]+/[-\w]+-v\d+", name):
        raise ValueError(
            f"{name!r} is no id that Minari finds on the hub: expected GROUP/NAME-vN, such as "
            "crystal/mine-v0; --as names one"
        )


def _stage(dataset_id: str, episodes: Trajectories, goal: str, staged: Path) -> None:
    """Lay out what is uploaded: the dataset's files under its new id, and its card."""
    source = dataset_dir(dataset_id)
    data = staged / "data"
    data.mkdir(parents=True)
    for name in _FILES:
        if (source / name).exists() and name != "metadata.json":
            _link(source / name, data / name)
    metadata = read_json(source / "metadata.json")
    (data / "metadata.json").write_text(
        json.dumps(_renamed(metadata, dataset_id, goal)), encoding="utf-8"
    )
    card = source.parent / "README.md"
    if card.exists():
        text = card.read_text(encoding="utf-8")
    else:  # of a dataset that an earlier release built
        told = DatasetCard(dataset_id, str(metadata.get("description", "")))
        text = card_text(told, episodes, STORED_TARGET_EV)
    (staged / "README.md").write_text(text.replace(dataset_id, goal), encoding="utf-8")
    group = {"description": "Datasets of crystal_gym", "datasets": []}
    note = staged.parent / "namespace_metadata.json"
    note.write_text(json.dumps(group), encoding="utf-8")


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # another disk
        shutil.copyfile(source, target)


def _renamed(metadata: dict[str, Any], old: str, new: str) -> dict[str, Any]:
    """Return metadata under another id; the environment reads the skeletons beside it."""
    changed = {**metadata, "dataset_id": new}
    for name in ("env_spec", "eval_env_spec"):
        if metadata.get(name):
            spec = json.loads(metadata[name])
            if spec["kwargs"].get("skeletons") == old:
                spec["kwargs"]["skeletons"] = new
            changed[name] = json.dumps(spec)
    return changed


def _token() -> str:
    from huggingface_hub import get_token

    token = get_token()
    if not token:
        raise ValueError(
            "there is no token for the hub: run `hf auth login`, or set HF_TOKEN to one that may "
            "write"
        )
    return str(token)


def _send(goal: str, group: str, namespace: str, token: str) -> None:
    """Upload the staged dataset through Minari, and the card of its group beside it."""
    from huggingface_hub import HfApi

    with warnings.catch_warnings(record=True) as told, contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("always")
        minari.upload_dataset(goal, token)
    if any("already in remote" in str(w.message) and goal in str(w.message) for w in told):
        raise ValueError(
            f"{goal} is in hf://{namespace} already, and a published version does not change: "
            "choose the next one with --as"
        )
    listed = minari.list_remote_datasets(prefix=group)
    text = group_card_text(group, {i: m.get("description", "") for i, m in listed.items()})
    HfApi(token=token).upload_file(
        path_or_fileobj=text.encode("utf-8"),
        path_in_repo="README.md",
        repo_id=f"{namespace}/{group}",
        repo_type="dataset",
    )


@contextlib.contextmanager
def _minari_at(folder: Path, remote: str) -> Iterator[None]:
    """Let Minari find its datasets in a folder and its remote at an address."""
    wanted = {"MINARI_DATASETS_PATH": str(folder), "MINARI_REMOTE": remote.rstrip("/")}
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextlib.contextmanager
def _told_plainly(namespace: str) -> Iterator[None]:
    """Turn the hub's errors into one sentence each."""
    from huggingface_hub.errors import HfHubHTTPError

    # The base class of the HTTP library that this release of the hub's client uses.
    never_answered = cast("type[Exception]", HfHubHTTPError.__bases__[0]), ConnectionError
    try:
        yield
    except HfHubHTTPError as error:
        response = getattr(error, "response", None)
        status = getattr(response, "status_code", None)
        if status == 401:
            raise PermissionError(
                "the hub does not accept the token: run `hf auth login` again, or set HF_TOKEN to "
                "one that may write"
            ) from error
        if status in (403, 404):
            raise PermissionError(
                f"the token may not write to {namespace!r} on the hub: expected your own user "
                "name, or an organisation in which you may write"
            ) from error
        raise ConnectionError(
            f"the hub answered with an error ({first_line(error)}): try again"
        ) from error
    except never_answered as error:
        raise ConnectionError(
            f"the hub does not answer ({type(error).__name__}): check the network and try again; "
            "the dataset here is as it was"
        ) from error
