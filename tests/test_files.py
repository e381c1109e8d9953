"""`crystal_gym.files`: where things are kept, and whole-or-nothing writes."""

import contextlib
import os
import pickle
import stat
import struct
import subprocess
import sys
import zipfile

import numpy as np
import pytest

from crystal_gym import files
from crystal_gym.files import (
    DAMAGED_NPZ,
    Pieces,
    atomic_path,
    cache_dir,
    open_npz,
    raw_data_dir,
    read_json,
    read_text,
    room_for,
    safe_name,
    save_npz,
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


_WRITER = """
import sys
from crystal_gym.files import atomic_path
with atomic_path(sys.argv[1]) as temporary:
    temporary.write_text("theirs")
    print("writing", flush=True)
    sys.stdin.readline()
"""


@contextlib.contextmanager
def another_writer(path):
    command = [sys.executable, "-c", _WRITER, str(path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, text=True, **pipes) as process:
        assert process.stdout.readline() == "writing\n"
        yield process


@pytest.mark.skipif(sys.platform == "win32", reason="there are no such locks")
def test_what_a_killed_writer_left_is_removed_and_a_living_ones_is_not(tmp_path):
    path = tmp_path / "file [1]"  # brackets mean something in patterns
    with another_writer(path) as process:
        process.kill()
    assert len(os.listdir(tmp_path)) == 1
    with another_writer(path) as process:
        with atomic_path(path) as temporary:
            temporary.write_text("ours")
            assert len(os.listdir(tmp_path)) == 2  # theirs and ours; the killed one's is gone
        assert path.read_text() == "ours"
        process.communicate("go on\n")
        assert process.returncode == 0
    assert path.read_text() == "theirs"
    assert os.listdir(tmp_path) == [path.name]


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


# -- arrays -------------------------------------------------------------------------------------

ARRAYS = {
    "numbers": np.arange(7, dtype=np.int16),
    "matrix": np.arange(12.0).reshape(3, 4),
    "long": np.arange(5_000.0),
    "words": np.array(["alpha", "b"]),
    "one": np.int64(3),
    "none": np.zeros((0, 3), dtype=np.float32),
    "fortran": np.asfortranarray(np.arange(6).reshape(2, 3)),
}


@pytest.fixture(params=[0, 10**9], ids=["large", "small"])
def saved(request, tmp_path, monkeypatch):
    """Return a file of arrays: as one that is large enough to be mapped, and as a small one."""
    monkeypatch.setattr(files, "_MAPPED_FROM", request.param)
    path = tmp_path / "arrays.npz"
    save_npz(path, **ARRAYS)
    return path


def is_mapped(array):
    while isinstance(array, np.ndarray) and not isinstance(array, np.memmap):
        array = array.base
    return isinstance(array, np.memmap)


@pytest.mark.parametrize("name", ARRAYS)
def test_saved_arrays_come_back(saved, name):
    with open_npz(saved) as arrays:
        found = arrays[name]
    np.testing.assert_array_equal(found, ARRAYS[name])
    assert found.dtype == np.asarray(ARRAYS[name]).dtype
    assert found.flags.aligned


def test_numpy_reads_saved_arrays(saved):
    with np.load(saved) as arrays:
        assert set(arrays) == set(ARRAYS)
        np.testing.assert_array_equal(arrays["matrix"], ARRAYS["matrix"])


def test_arrays_of_a_large_file_are_mapped(saved):
    large = zipfile.ZipFile(saved).infolist()[0].compress_type == zipfile.ZIP_STORED
    with open_npz(saved) as arrays:
        assert is_mapped(arrays["matrix"]) == large


def test_a_mapped_array_outlives_its_file(saved):
    with open_npz(saved) as arrays:
        found = arrays["numbers"]
    save_npz(saved, numbers=np.zeros(7, dtype=np.int16))
    np.testing.assert_array_equal(found, ARRAYS["numbers"])


def test_writing_to_a_mapped_array_leaves_the_file_as_it_is(saved):
    before = saved.read_bytes()
    with open_npz(saved) as arrays:
        arrays["numbers"][0] = 99
    assert saved.read_bytes() == before


def test_a_flipped_byte_is_noticed(saved):
    content = bytearray(saved.read_bytes())
    info = next(i for i in zipfile.ZipFile(saved).infolist() if i.filename == "long.npy")
    start = info.header_offset + zipfile.sizeFileHeader
    start += sum(struct.unpack("<HH", content[start - 4 : start]))
    content[start + info.compress_size * 3 // 4] ^= 1  # beyond the array's header
    saved.write_bytes(bytes(content))
    with pytest.raises(DAMAGED_NPZ), open_npz(saved) as arrays:
        np.asarray(arrays["long"])


def test_a_name_that_is_not_in_it_is_a_key_error(saved):
    with open_npz(saved) as arrays, pytest.raises(KeyError, match="no array 'other'"):
        arrays["other"]


def test_the_same_arrays_give_the_same_bytes(saved):
    first = saved.read_bytes()
    save_npz(saved, **ARRAYS)
    assert saved.read_bytes() == first


def test_pieces_are_laid_end_to_end(saved):
    parts = [np.arange(4.0).reshape(1, 4), np.arange(4.0, 12.0).reshape(2, 4)]
    save_npz(saved, matrix=Pieces((3, 4), np.dtype(np.float64), lambda: parts))
    with open_npz(saved) as arrays:
        np.testing.assert_array_equal(arrays["matrix"], ARRAYS["matrix"])


@pytest.mark.parametrize("large", [True, False])
def test_room_for_a_large_array_is_in_a_file_without_a_name(tmp_path, monkeypatch, large):
    monkeypatch.setattr(files, "_MAPPED_FROM", 100 if large else 1000)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    room = room_for((50,), np.int64)
    room[:] = np.arange(50)
    assert room.sum() == 1225
    assert is_mapped(room) == large
    assert not os.listdir(tmp_path)


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


@pytest.mark.parametrize("content", [b"\xff{}", b'{"a": 1', b"", b"{'a': 1}"])
def test_damaged_json_is_named(tmp_path, content):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.json is damaged or no JSON \(.*\): expected"):
        read_json(tmp_path / "a.json")


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
