"""`crystal_gym.files`: where things are kept, and whole-or-nothing writes."""

import os
import pickle
import stat
import zipfile

import numpy as np
import pytest

from crystal_gym.files import (
    atomic_path,
    cache_dir,
    open_npz,
    raw_data_dir,
    read_json,
    read_text,
    safe_name,
)


def test_a_finished_write_replaces_the_file(tmp_path):
    path = tmp_path / "new" / "file"
    with atomic_path(path) as temporary:
        temporary.write_text("whole")
        assert not path.exists()
    assert path.read_text() == "whole"
    assert os.listdir(path.parent) == ["file"]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failing_write_leaves_the_old_file_and_no_other(tmp_path, error):
    path = tmp_path / "file"
    path.write_text("old")

    def write():
        with atomic_path(path) as temporary:
            temporary.write_text("half")
            raise error

    with pytest.raises(type(error)):
        write()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]


def test_a_written_file_can_be_read_by_whom_the_umask_allows(tmp_path):
    before = os.umask(0o022)
    try:
        with atomic_path(tmp_path / "file") as temporary:
            temporary.write_text("x")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o644


def test_the_cache_is_where_the_variable_says(tmp_path, monkeypatch):
    monkeypatch.setenv("CRYSTAL_GYM_CACHE", str(tmp_path / "here"))
    assert cache_dir() == tmp_path / "here"


def test_source_files_are_where_their_variable_says_else_in_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CRYSTAL_GYM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("CRYSTAL_GYM_DATA", str(tmp_path / "data"))
    assert raw_data_dir() == tmp_path / "data"
    monkeypatch.delenv("CRYSTAL_GYM_DATA")
    assert raw_data_dir() == tmp_path / "cache" / "raw"


# -- what a user was given ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("mp-149", "mp-149"),
        ("../../etc/x", "etc_x"),
        ("a/b", "a_b"),
        ("a\x00b\nc", "a_b_c"),
        ("-rf", "rf"),
        ("CON", "CON_"),
        ("lpt1.cif", "lpt1.cif_"),
        ("..", "unnamed"),
        ("", "unnamed"),
        ("é" * 300, "unnamed"),
        ("a" * 300, "a" * 100),
        ("<script>", "script"),
    ],
)
def test_an_id_becomes_a_file_name_that_stays_in_its_folder(text, name):
    assert safe_name(text) == name


def test_a_folder_and_a_pipe_are_no_files(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path, kind in ((tmp_path, "a folder"), (tmp_path / "pipe", "no regular file")):
        with pytest.raises(ValueError, match=f"is {kind}: expected a file"):
            read_text(path, 10)


def test_text_is_read_up_to_its_limit(tmp_path):
    (tmp_path / "a").write_text("0123456789")
    assert read_text(tmp_path / "a", 10) == "0123456789"
    with pytest.raises(ValueError, match="a holds more than 9 bytes"):
        read_text(tmp_path / "a", 9)


@pytest.mark.parametrize("text", ["[" * 100_000, "{", "\xff", "NaNN", "1" * 10_000, ""])
def test_what_is_no_json_is_refused(tmp_path, text):
    (tmp_path / "a.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=".") as error:
        read_json(tmp_path / "a.json")
    assert "\n" not in str(error.value)


class Writes:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def with_objects(tmp_path):
    np.savez(tmp_path / "a.npz", a=np.array([Writes(tmp_path / "owned")], dtype=object))


def a_pickle(tmp_path):
    (tmp_path / "a.npz").write_bytes(pickle.dumps(Writes(tmp_path / "owned")))


def member_of(header, content=b"", name="a.npy"):
    def make(tmp_path):
        with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
            length = len(header).to_bytes(2, "little")
            archive.writestr(name, b"\x93NUMPY\x01\x00" + length + header + content)

    return make


def bomb(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(21):
            archive.writestr(f"{number}.npy", bytes(100_000_000))


def many_members(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        for number in range(10_001):
            archive.writestr(f"{number}.npy", b"")


HUGE = b"{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000,)}\n"
NEGATIVE = HUGE.replace(b"(1000000000000,)", b"(-1, -1)")


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (with_objects, "Python objects, which could run code"),
        (a_pickle, "no zip archive but perhaps a pickle, which could run code"),
        (member_of(HUGE), r"says that its shape is \(1000000000000,\)"),
        (member_of(NEGATIVE, bytes(8)), "negative"),
        (bomb, r"holds 21 arrays of 2,100,000,000 bytes"),
        (many_members, "holds 10,001 arrays"),
    ],
    ids=["objects", "pickle", "huge", "negative", "bomb", "many"],
)
def test_a_hostile_npz_is_refused_and_nothing_runs(tmp_path, make, expected):
    make(tmp_path)
    with pytest.raises(ValueError, match=expected), open_npz(tmp_path / "a.npz") as file:
        file["a"]
    assert not (tmp_path / "owned").exists()


def test_the_file_of_a_hostile_npz_would_run(tmp_path):
    with_objects(tmp_path)
    np.load(tmp_path / "a.npz", allow_pickle=True)["a"][0].close()
    assert (tmp_path / "owned").exists()
