"""A stand-in for the Hugging Face hub: folders on this disk behind ``huggingface_hub.HfApi``."""

import shutil
from pathlib import Path
from types import SimpleNamespace

from huggingface_hub.errors import EntryNotFoundError


class Hub:
    """What is on the hub, and who may write; :meth:`api` replaces ``HfApi``."""

    def __init__(self, folder, writers=("acme",)):
        self.folder = Path(folder)
        self.writers = writers
        self.tokens = []

    def files(self):
        return sorted(
            str(p.relative_to(self.folder)) for p in self.folder.rglob("*") if p.is_file()
        )

    def api(self, token=None):
        self.tokens.append(token)
        return _Api(self)


class _Api:
    def __init__(self, hub):
        self._hub = hub

    def _path(self, repo_id, *parts):
        return self._hub.folder.joinpath(*repo_id.split("/"), *parts)

    def create_repo(self, repo_id, repo_type, exist_ok):
        assert repo_type == "dataset"
        if repo_id.split("/")[0] not in self._hub.writers:
            raise refusal(403)
        self._path(repo_id).mkdir(parents=True, exist_ok=exist_ok)

    def upload_folder(self, repo_id, folder_path, path_in_repo, repo_type):
        shutil.copytree(folder_path, self._path(repo_id, path_in_repo), dirs_exist_ok=True)

    def upload_file(self, path_or_fileobj, path_in_repo, repo_id, repo_type):
        target = self._path(repo_id, path_in_repo)
        if not isinstance(path_or_fileobj, bytes):
            path_or_fileobj = Path(path_or_fileobj).read_bytes()
        target.write_bytes(path_or_fileobj)

    def hf_hub_download(self, repo_id, filename, repo_type, local_dir=None, force_download=False):
        source = self._path(repo_id, filename)
        if not source.exists():
            raise EntryNotFoundError(f"{filename} is not in {repo_id}")
        kept = Path(local_dir or self._hub.folder.parent / "downloaded") / filename
        kept.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, kept)
        return str(kept)

    def snapshot_download(self, repo_id, allow_patterns, repo_type, local_dir):
        for path in self._path(repo_id).rglob("*"):
            inside = path.relative_to(self._path(repo_id))
            if (path.is_file() and inside.match(allow_patterns)) or _under(inside, allow_patterns):
                if path.is_file():
                    (Path(local_dir) / inside).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(path, Path(local_dir) / inside)

    def list_datasets(self, author, dataset_name=None):
        folder = self._hub.folder / author
        names = sorted(p.name for p in folder.iterdir()) if folder.exists() else []
        for name in names:
            if dataset_name is None or dataset_name in name:
                yield SimpleNamespace(id=f"{author}/{name}")


def _under(inside, pattern):
    return str(inside).startswith(pattern.rstrip("*"))


def refusal(status):
    """Return the error that the client raises for an HTTP status."""
    from huggingface_hub.errors import HfHubHTTPError

    error = HfHubHTTPError.__new__(HfHubHTTPError)
    Exception.__init__(error, f"{status} Client Error")
    error.response = SimpleNamespace(status_code=status)
    return error
