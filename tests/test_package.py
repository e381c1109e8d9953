"""What the package says of itself agrees, and what checks it can fail."""

import importlib.util
import re
import tarfile
from pathlib import Path

import pytest

import crystal_gym

ROOT = Path(__file__).resolve().parents[1]
VERSION = re.escape(crystal_gym.__version__)


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("pyproject.toml", rf'^version = "{VERSION}"$'),
        ("CITATION.cff", rf"^version: {VERSION}$"),
        ("CHANGELOG.md", rf"^## \[{VERSION}\]"),
    ],
)
def test_every_file_names_the_same_version(path, line):
    assert re.search(line, (ROOT / path).read_text("utf-8"), re.MULTILINE)


def script(name):
    """Return a module of scripts/, which is no package."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_an_sdist_packed_again_depends_on_its_content_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    pack_again = script("build_dist")._pack_again
    written = []
    for number, names in enumerate((("a", "b"), ("b", "a"))):
        folder = tmp_path / str(number)
        folder.mkdir()
        with tarfile.open(folder / "raw.tar.gz", "w:gz") as archive:
            for name in names:  # in another order, and written at another time
                (folder / name).write_text(name)
                archive.add(folder / name, f"root/{name}")
        pack_again(folder / "raw.tar.gz", folder / "done.tar.gz")
        written.append((folder / "done.tar.gz").read_bytes())
    assert written[0] == written[1]
    with tarfile.open(tmp_path / "0" / "done.tar.gz") as archive:
        assert archive.extractfile("root/b").read() == b"b"
        assert {m.mtime for m in archive} == {1700000000}
