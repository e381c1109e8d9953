"""`crystal_gym.datasets.fetch`: downloads against a real server on the loopback, and copying."""

import gzip
import hashlib
import http.server
import os
import sys
import threading

import pytest
from made_crystals import cif_text, rocksalt, wurtzite

from crystal_gym.datasets.fetch import MP20_FILES, SourceFile, fetch, sha256_of

module = sys.modules["crystal_gym.datasets.fetch"]  # the package exports its function fetch

CSV = f'cif\n"{cif_text(rocksalt())}"\n"{cif_text(wurtzite())}"\n'.encode()
CSV_SHA256 = hashlib.sha256(CSV).hexdigest()
LABELS = gzip.compress(
    b"split,index,band_gap_ev,total_energy_ry,formation_energy_ev_per_atom\ntrain,0,1,-2,-3\n"
)


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves ``server.files``, from the middle where a Range asks for it."""

    def do_GET(self):
        settings = self.server.settings
        self.server.requests.append(self.headers.get("Range"))
        if self.path in settings.get("redirects", {}):
            self.send_response(302)
            self.send_header("Location", settings["redirects"][self.path])
            self.end_headers()
            return
        content = settings["files"].get(self.path)
        if content is None:
            self.send_error(404)
            return
        start, wanted = 0, self.headers.get("Range")
        if wanted and settings.get("ranges", True):
            start = int(wanted.removeprefix("bytes=").split("-")[0])
            if start >= len(content):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(content)}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_response(206)
        else:
            self.send_response(200)
        body = content[start:]
        if settings.get("length", True):
            self.send_header("Content-Length", settings.get("claimed", len(body)))
        self.end_headers()
        self.wfile.write(body[: settings.get("break_off", len(body))])

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch):
    """Return a local HTTP server, allowed for once; ``settings`` say how it behaves."""
    monkeypatch.setattr(module, "_SCHEMES", ("http", "https"))
    monkeypatch.setattr(module, "_PAUSES_S", ())
    instance = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    instance.settings = {"files": {"/train.csv": CSV}}
    instance.requests = []
    instance.url = f"http://127.0.0.1:{instance.server_port}"
    thread = threading.Thread(target=instance.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield instance
    instance.shutdown()
    thread.join()
    instance.server_close()


@pytest.fixture
def goal(tmp_path):
    return tmp_path / "raw" / "mp20" / "train.csv"


def source_file(server, sha256=CSV_SHA256, path="mp20/train.csv"):
    return SourceFile(path, f"{server.url}/train.csv", sha256)


def run(files, **kwargs):
    return list(fetch(files, **kwargs))


# -- downloads ----------------------------------------------------------------------------------


def test_a_file_is_downloaded_to_its_place(server, goal, tmp_path):
    (line,) = run([source_file(server)], target=tmp_path / "raw")
    assert goal.read_bytes() == CSV
    assert os.listdir(goal.parent) == ["train.csv"]
    assert "downloaded from http://127.0.0.1" in line


def test_a_sound_file_is_not_downloaded_again(server, goal, tmp_path):
    for _ in range(2):
        lines = run([source_file(server)], target=tmp_path / "raw")
    assert lines == ["mp20/train.csv: already there"]
    assert len(server.requests) == 1


def test_a_download_that_broke_off_goes_on_where_it_stopped(server, goal, tmp_path):
    server.settings["break_off"] = 300
    with pytest.raises(ConnectionError, match=f"broke off after 300 of {len(CSV):,} bytes"):
        run([source_file(server)], target=tmp_path / "raw")
    assert not goal.exists()
    del server.settings["break_off"]
    run([source_file(server)], target=tmp_path / "raw")
    assert goal.read_bytes() == CSV
    assert server.requests == [None, "bytes=300-"]


def test_a_server_without_ranges_sends_everything_again(server, goal, tmp_path):
    server.settings.update(break_off=300, ranges=False)
    with pytest.raises(ConnectionError, match="broke off"):
        run([source_file(server)], target=tmp_path / "raw")
    del server.settings["break_off"]
    run([source_file(server)], target=tmp_path / "raw")
    assert goal.read_bytes() == CSV


def test_a_download_that_broke_off_after_its_last_byte_is_finished(server, goal, tmp_path):
    partial = goal.with_name(".train.csv.download")
    partial.parent.mkdir(parents=True)
    partial.write_bytes(CSV)
    run([source_file(server)], target=tmp_path / "raw")
    assert goal.read_bytes() == CSV
    assert not partial.exists()


@pytest.mark.parametrize("kind", ["changed", "truncated"])
def test_a_tampered_download_is_refused_and_not_kept(server, goal, tmp_path, kind):
    wrong = CSV.replace(b"Na", b"Kr") if kind == "changed" else CSV[:-100]
    server.settings["files"]["/train.csv"] = wrong
    with pytest.raises(ValueError, match=r"is truncated or was changed: its SHA-256 is"):
        run([source_file(server)], target=tmp_path / "raw")
    assert os.listdir(goal.parent) == []


def test_after_a_tampered_download_the_next_one_starts_anew(server, goal, tmp_path):
    server.settings["files"]["/train.csv"] = CSV.replace(b"Na", b"Kr")
    with pytest.raises(ValueError, match="SHA-256"):
        run([source_file(server)], target=tmp_path / "raw")
    server.settings["files"]["/train.csv"] = CSV
    run([source_file(server)], target=tmp_path / "raw")
    assert goal.read_bytes() == CSV
    assert server.requests == [None, None]


def test_a_file_that_is_there_but_was_changed_is_not_taken_for_sound(server, goal, tmp_path):
    goal.parent.mkdir(parents=True)
    goal.write_bytes(CSV[:-100])
    try:
        run([source_file(server)], target=tmp_path / "raw")
    except ValueError as error:
        assert "train.csv" in str(error)  # noqa: PT017  (either answer is right)
    else:
        assert goal.read_bytes() == CSV


def test_without_a_known_hash_a_truncated_csv_is_refused(server, goal, tmp_path):
    server.settings["files"]["/train.csv"] = CSV[:-60]  # ends inside a quoted field
    with pytest.raises(ValueError, match="damaged"):
        run([source_file(server, None)], target=tmp_path / "raw")
    assert not goal.exists()


def test_without_a_known_hash_an_error_page_is_refused(server, goal, tmp_path):
    server.settings["files"]["/train.csv"] = b"<html>sign in first</html>"
    with pytest.raises(ValueError, match="has no column called cif"):
        run([source_file(server, None)], target=tmp_path / "raw")
    assert not goal.exists()


def test_a_missing_page_is_one_sentence(server, tmp_path):
    server.settings["files"].clear()
    with pytest.raises(ConnectionError, match=r"cannot be fetched \(.*404.*\): check the conn"):
        run([source_file(server)], target=tmp_path / "raw")


def test_an_address_that_does_not_answer_is_one_sentence(server, tmp_path):
    file = SourceFile("mp20/train.csv", "http://127.0.0.1:9/train.csv")  # the discard port
    with pytest.raises(ConnectionError, match=r"cannot be fetched .* with --from DIR"):
        run([file], target=tmp_path / "raw")


def test_a_huge_file_is_refused_before_it_is_read(server, goal, tmp_path):
    server.settings["claimed"] = 10**12
    with pytest.raises(ValueError, match="1,000,000,000,000 bytes or more: expected at most"):
        run([source_file(server)], target=tmp_path / "raw")
    assert not goal.exists()


def test_a_huge_file_that_does_not_say_so_is_refused_while_it_is_read(
    server, goal, tmp_path, monkeypatch
):
    server.settings["length"] = False
    monkeypatch.setattr(module, "_MAX_BYTES", len(CSV) - 1)
    with pytest.raises(ValueError, match="bytes or more: expected at most"):
        run([source_file(server)], target=tmp_path / "raw")
    assert os.listdir(goal.parent) == []


def test_a_connection_that_breaks_off_is_tried_again(server, goal, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_PAUSES_S", (0.0, 0.0))
    server.settings["break_off"] = 1 + len(CSV) // 3
    run([source_file(server)], target=tmp_path / "raw")
    assert goal.read_bytes() == CSV
    assert len(server.requests) == 3


def test_what_a_server_has_answered_is_not_asked_again(server, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_PAUSES_S", (0.0, 0.0))
    server.settings["files"].clear()
    with pytest.raises(ConnectionError, match="404"):
        run([source_file(server)], target=tmp_path / "raw")
    assert len(server.requests) == 1


@pytest.mark.parametrize("url", ["http://127.0.0.1/a.csv", "ftp://x/a.csv", "file:///etc/passwd"])
def test_only_https_is_fetched(tmp_path, url):
    with pytest.raises(ValueError, match="expected an address that begins with https://"):
        run([SourceFile("mp20/train.csv", url)], target=tmp_path / "raw")


@pytest.mark.parametrize("address", ["ftp://127.0.0.1/a", "file:///etc/passwd", "gopher://x"])
def test_a_redirect_to_something_else_is_not_followed(server, goal, tmp_path, address):
    server.settings["redirects"] = {"/train.csv": address}
    with pytest.raises((ValueError, ConnectionError), match=r"is not fetched: expect|not allowed"):
        run([source_file(server)], target=tmp_path / "raw")
    assert os.listdir(goal.parent) == []


def test_a_redirect_to_http_is_not_followed(server, tmp_path, monkeypatch):
    server.settings["redirects"] = {"/train.csv": f"{server.url}/other.csv"}
    server.settings["files"]["/other.csv"] = CSV
    run([source_file(server)], target=tmp_path / "raw")  # as long as http is allowed
    allowed = module._require_https

    def first_only(url):
        allowed(url)
        monkeypatch.setattr(module, "_SCHEMES", ("https",))

    monkeypatch.setattr(module, "_require_https", first_only)
    with pytest.raises(ValueError, match=r"other\.csv is not fetched: expected .* https://"):
        run([source_file(server)], target=tmp_path / "other")


def test_a_pickle_with_code_is_refused_and_its_code_does_not_run(server, tmp_path):
    marker = tmp_path / "ran"
    content = b"cos\nsystem\n(S'touch " + str(marker).encode() + b"'\ntR."
    server.settings["files"]["/train.csv"] = content
    file = source_file(server, None, "qe/release/x.pkl")
    with pytest.raises(ValueError, match=r"is refused .*(posix|os)\.system"):
        run([file], target=tmp_path / "raw")
    assert not marker.exists()
    assert not (tmp_path / "raw" / "qe" / "release" / "x.pkl").exists()


def test_a_file_without_an_address_is_left_out_with_a_reason(tmp_path):
    (line,) = run([SourceFile("qe/labels.csv.gz", None)], target=tmp_path / "raw")
    assert "no public address" in line


def test_a_full_disk_during_a_download_is_not_called_a_connection_problem(
    server, goal, tmp_path, monkeypatch
):
    import builtins

    real = builtins.open

    def full(file, mode="r", *args, **kwargs):
        if str(file).endswith(".download") and mode in ("ab", "wb"):
            raise OSError(28, "No space left on device")
        return real(file, mode, *args, **kwargs)

    monkeypatch.setattr(builtins, "open", full)
    with pytest.raises(OSError, match="No space left on device") as caught:
        run([source_file(server)], target=tmp_path / "raw")
    assert "check the connection" not in str(caught.value)


def test_files_go_to_the_cache_by_default(server, empty_cache):
    run([source_file(server)])
    assert (empty_cache / "raw" / "mp20" / "train.csv").read_bytes() == CSV


# -- copying ------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    """Return a source folder with all that is needed."""
    source = tmp_path / "source"
    (source / "mp20").mkdir(parents=True)
    (source / "qe").mkdir()
    (source / "mp20" / "train.csv").write_bytes(CSV)
    (source / "mp20" / "val.csv.gz").write_bytes(gzip.compress(CSV))
    (source / "qe" / "labels.csv.gz").write_bytes(LABELS)
    return source


def test_files_are_copied_plain_or_gzipped(folder, tmp_path):
    run(MP20_FILES, source=folder, target=tmp_path / "raw")
    assert (tmp_path / "raw" / "mp20" / "train.csv").read_bytes() == CSV
    copied = (tmp_path / "raw" / "mp20" / "val.csv.gz").read_bytes()
    assert gzip.decompress(copied) == CSV
    assert (tmp_path / "raw" / "qe" / "labels.csv.gz").read_bytes() == LABELS


def test_every_file_has_its_line(folder, tmp_path):
    lines = run(MP20_FILES, source=folder, target=tmp_path / "raw")
    assert len(lines) == len(MP20_FILES)
    assert sum("copied from" in line for line in lines) == 3
    assert sum("left out" in line for line in lines) == 3


def test_a_second_copy_leaves_files_alone(folder, tmp_path):
    run(MP20_FILES, source=folder, target=tmp_path / "raw")
    path = tmp_path / "raw" / "mp20" / "train.csv"
    before = path.stat().st_mtime_ns
    lines = run(MP20_FILES, source=folder, target=tmp_path / "raw")
    assert "mp20/train.csv: already there" in lines
    assert path.stat().st_mtime_ns == before


def test_a_missing_split_is_refused(folder, tmp_path):
    (folder / "mp20" / "train.csv").unlink()
    with pytest.raises(FileNotFoundError, match=r"train\.csv does not exist \(nor \.gz\)"):
        run(MP20_FILES, source=folder, target=tmp_path / "raw")


def test_a_missing_source_folder_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no such folder; expected one that holds"):
        run(MP20_FILES, source=tmp_path / "none", target=tmp_path / "raw")


@pytest.mark.parametrize("name", ["mp20/val.csv.gz", "qe/labels.csv.gz"])
def test_a_truncated_file_is_refused_and_the_old_one_kept(folder, tmp_path, name):
    run(MP20_FILES, source=folder, target=tmp_path / "raw")
    before = (tmp_path / "raw" / name).read_bytes()
    (folder / name).write_bytes(before[: len(before) // 2])
    with pytest.raises(ValueError, match="damaged|truncated"):
        run(MP20_FILES, source=folder, target=tmp_path / "raw")
    assert (tmp_path / "raw" / name).read_bytes() == before
    assert os.listdir((tmp_path / "raw" / name).parent).count(name.split("/")[1]) == 1
    assert not [p for p in (tmp_path / "raw" / name).parent.iterdir() if p.name.startswith(".")]


def test_a_tampered_label_pickle_is_refused(folder, tmp_path):
    (folder / "qe" / "release").mkdir()
    (folder / "qe" / "release" / "TE_bg_dict_nm.pkl").write_bytes(b"\x80\x04}.")
    with pytest.raises(ValueError, match="SHA-256"):
        run(MP20_FILES, source=folder, target=tmp_path / "raw")


def test_the_source_folder_may_be_the_target(folder):
    lines = run(MP20_FILES, source=folder, target=folder)
    assert sum("already there" in line for line in lines) == 3
    assert (folder / "mp20" / "train.csv").read_bytes() == CSV


def test_the_hash_is_that_of_hashlib(tmp_path):
    (tmp_path / "x").write_bytes(CSV)
    assert sha256_of(tmp_path / "x") == hashlib.sha256(CSV).hexdigest()


def test_addresses_are_https_and_pinned_where_the_content_is_known():
    assert all(f.url is None or f.url.startswith("https://") for f in MP20_FILES)
    assert all(f.sha256 for f in MP20_FILES if f.path.endswith(".pkl"))


@pytest.mark.data
def test_the_published_pickles_have_the_pinned_hashes(data_dir):
    for file in MP20_FILES:
        path = data_dir / file.path
        if file.sha256 and path.exists():
            assert sha256_of(path) == file.sha256, file.path
