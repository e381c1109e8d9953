"""`crystal_gym.files`: where things are kept, and whole-or-nothing writes."""

import contextlib
import os
import stat
import subprocess
import sys

import pytest

from crystal_gym.files import atomic_path, cache_dir, raw_data_dir


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
