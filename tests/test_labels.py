"""`crystal_gym.datasets.labels`: published labels, and pickles without classes."""

import gzip
import os
import pickle

import numpy as np
import pytest

from crystal_gym.datasets.labels import Label, load_plain_pickle, read_labels

HEADER = "split,index,band_gap_ev,total_energy_ry,formation_energy_ev_per_atom\n"
ROWS = "train,7,1.5,-20.25,-0.5\nval,1,2.5,-30.5,-1.5\ntrain,3,0.0,-10.125,0.25\n"


def write_table(folder, text=HEADER + ROWS):
    (folder / "qe").mkdir(exist_ok=True)
    path = folder / "qe" / "labels.csv.gz"
    path.write_bytes(gzip.compress(text.encode()))
    return path


def write_release(folder, electronic, formation):
    release = folder / "qe" / "release"
    release.mkdir(parents=True)
    (release / "TE_bg_dict_nm.pkl").write_bytes(pickle.dumps(electronic))
    (release / "FE_dict_nm.pkl").write_bytes(pickle.dumps(formation))


# -- tables -------------------------------------------------------------------------------------


def test_labels_of_a_split_come_by_position(tmp_path):
    write_table(tmp_path)
    assert read_labels(tmp_path, "train") == [
        Label(3, 0.0, -10.125, 0.25),
        Label(7, 1.5, -20.25, -0.5),
    ]
    assert read_labels(tmp_path, "val") == [Label(1, 2.5, -30.5, -1.5)]


def test_the_published_pickles_serve_where_there_is_no_table(tmp_path):
    write_release(tmp_path, {7: (1.5, -20.25), 3: (0.0, -10.125)}, {3: 0.25, 7: -0.5})
    assert read_labels(tmp_path, "train") == [
        Label(3, 0.0, -10.125, 0.25),
        Label(7, 1.5, -20.25, -0.5),
    ]


def test_metals_have_a_gap_and_no_energy(tmp_path):
    write_table(tmp_path)
    release = tmp_path / "qe" / "release"
    release.mkdir()
    metals = {9: (0.0, -5e4), 7: (0.0, -1.0), 2: (0.0, -3.0)}  # 7 counts as a nonmetal as well
    (release / "TE_bg_dict_m.pkl").write_bytes(pickle.dumps(metals))
    labels = read_labels(tmp_path, "metals")
    assert [(x.position, x.band_gap_ev) for x in labels] == [(2, 0.0), (9, 0.0)]
    energies = [(x.total_energy_ry, x.formation_energy_ev_per_atom) for x in labels]
    assert np.isnan(energies).all()
    (release / "TE_bg_dict_m.pkl").write_bytes(pickle.dumps({2: 0.0}))
    with pytest.raises(ValueError, match=r"TE_bg_dict_m\.pkl is damaged"):
        read_labels(tmp_path, "metals")


def test_without_metals_the_error_says_where_they_are_from(tmp_path):
    write_table(tmp_path)
    with pytest.raises(FileNotFoundError, match="no public address; name a folder .*--from"):
        read_labels(tmp_path, "metals")


def test_without_labels_the_error_says_how_to_get_them(tmp_path):
    with pytest.raises(FileNotFoundError, match="no DFT labels for the val split .*data fetch"):
        read_labels(tmp_path, "val")


@pytest.mark.parametrize(
    "text",
    ["split,index\ntrain,1\n", HEADER + "train,1,none,-1,-1\n", HEADER + "train,1,2\n"],
    ids=["columns", "no number", "short row"],
)
def test_a_table_of_another_layout_is_refused(tmp_path, text):
    write_table(tmp_path, text)
    with pytest.raises(ValueError, match=r"labels\.csv\.gz is damaged .*expected columns split"):
        read_labels(tmp_path, "train")


@pytest.mark.parametrize("kind", ["truncated", "stream", "not gzip"])
def test_a_damaged_table_is_refused(tmp_path, kind):
    path = write_table(tmp_path)
    whole = bytearray(path.read_bytes())
    if kind == "stream":
        whole[10] = 0xFF
    path.write_bytes({"truncated": whole[:-20], "stream": whole, "not gzip": b"split\n"}[kind])
    with pytest.raises(ValueError, match=r"labels\.csv\.gz is damaged"):
        read_labels(tmp_path, "train")


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_a_label_that_is_no_number_is_refused(tmp_path, value):
    write_table(tmp_path, HEADER + f"train,1,{value},-1,-1\n")
    with pytest.raises(ValueError, match=r"labels\.csv\.gz is damaged"):
        read_labels(tmp_path, "train")


@pytest.mark.parametrize(
    ("electronic", "formation"),
    [({1: (1.0, -1.0)}, {2: -1.0}), ({1: 1.0}, {1: -1.0}), ([1, 2], {1: -1.0})],
    ids=["other rows", "no pair", "no dictionary"],
)
def test_pickles_that_do_not_fit_together_are_refused(tmp_path, electronic, formation):
    write_release(tmp_path, electronic, formation)
    with pytest.raises(ValueError, match="do not fit together"):
        read_labels(tmp_path, "train")


@pytest.mark.data
def test_the_table_and_the_published_pickles_agree(data_dir, train_labels, tmp_path):
    release = data_dir / "qe" / "release"
    if not release.is_dir():
        pytest.skip("qe/release is not there")
    (tmp_path / "qe").mkdir()
    (tmp_path / "qe" / "release").symlink_to(release)
    assert read_labels(tmp_path, "train") == train_labels


@pytest.mark.data
def test_labels_have_the_published_numbers(train_labels, val_labels):
    gaps = np.array([x.band_gap_ev for x in train_labels])
    assert (len(train_labels), len(val_labels)) == (8_813, 2_484)
    assert np.count_nonzero(gaps == 0) == 1_691
    assert gaps.min() == 0
    assert (round(float(np.median(gaps)), 2), round(float(gaps.mean()), 2)) == (1.32, 1.74)


# -- pickles ------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_containers_are_read(tmp_path, protocol):
    data = {1: (2.5, -3.0), "a": [None, True, {"b": 10**20}]}
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(data, protocol=protocol))
    assert load_plain_pickle(tmp_path / "x.pkl") == data


class _Runs:
    """Runs a command when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def code_by_reduce(marker):
    return pickle.dumps({1: _Runs(marker)})


def code_by_global(marker):
    return b"cposix\nsystem\n(S'touch " + str(marker).encode() + b"'\ntR."


def code_by_instance(marker):
    return b"(S'touch " + str(marker).encode() + b"'\niposix\nsystem\n."


@pytest.mark.parametrize("make", [code_by_reduce, code_by_global, code_by_instance])
def test_a_pickle_with_code_is_refused_and_nothing_runs(tmp_path, make):
    marker = tmp_path / "ran"
    (tmp_path / "x.pkl").write_bytes(make(marker))
    with pytest.raises(ValueError, match=r"x\.pkl is refused \(it asks for (posix|nt)\.system"):
        load_plain_pickle(tmp_path / "x.pkl")
    assert not marker.exists()


def test_the_codes_above_do_run_where_classes_are_admitted(tmp_path):
    for number, make in enumerate([code_by_reduce, code_by_global, code_by_instance]):
        pickle.loads(make(tmp_path / str(number)))  # noqa: S301  (our own bytes)
    assert sorted(os.listdir(tmp_path)) == ["0", "1", "2"]


def test_numpy_numbers_are_refused(tmp_path):
    (tmp_path / "x.pkl").write_bytes(pickle.dumps({1: np.float64(2.0)}))
    with pytest.raises(ValueError, match=r"asks for numpy"):
        load_plain_pickle(tmp_path / "x.pkl")


DAMAGED = {
    "empty": b"",
    "text": b"hello",
    "truncated": pickle.dumps({i: float(i) for i in range(100)})[:-50],
    "calls a number": b"I1\n(tR.",
    "unhashable key": b"(I1\nI2\nlI3\nd.",
    "sets an item of a number": b"I1\nI2\nI3\ns.",
    "absurd length": b"\x80\x04\x8d\xff\xff\xff\xff\xff\xff\xff\xff.",
}


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_pickle_is_refused_by_name(tmp_path, content):
    (tmp_path / "x.pkl").write_bytes(content)
    with pytest.raises(ValueError, match=r"x\.pkl is refused .*fetch the published file again"):
        load_plain_pickle(tmp_path / "x.pkl")
