"""Shared fixtures. Every test works in folders of its own, never in the user's."""

import csv
import gzip
import io
import os
import re
from pathlib import Path

import minari
import numpy as np
import pytest
from made_crystals import STRUCTURES, made_table

from crystal_gym.cdvae import read_cdvae_csv
from crystal_gym.datasets.labels import read_labels
from crystal_gym.datasets.minari_io import DatasetCard, write_dataset
from crystal_gym.datasets.trajectories import plan_trajectories
from crystal_gym.skeletons import build_skeletons
from crystal_gym.structures import cell_from_structure, parse_cif

MADE_ID = "crystal-made-v0"


@pytest.fixture(scope="session", autouse=True)
def isolated_folders(tmp_path_factory):
    """Point the cache and Minari's datasets to temporary folders."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CRYSTAL_GYM_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("MINARI_DATASETS_PATH", str(tmp_path_factory.mktemp("minari")))
        yield


@pytest.fixture
def empty_minari(tmp_path, monkeypatch):
    """Give one test an empty folder of Minari datasets."""
    folder = tmp_path / "minari"
    folder.mkdir()
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(folder))
    return folder


@pytest.fixture
def empty_cache(tmp_path, monkeypatch):
    """Give one test an empty cache folder."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("CRYSTAL_GYM_CACHE", str(folder))
    return folder


@pytest.fixture(scope="session")
def made_cells():
    return [cell_from_structure(structure, name) for name, structure in STRUCTURES.items()]


@pytest.fixture(scope="session")
def made_set(made_cells):
    skeletons, problems = build_skeletons(made_cells, workers=1)
    assert not problems
    return skeletons


@pytest.fixture(scope="session")
def table(made_set):
    return made_table(made_set)


@pytest.fixture(scope="session")
def trajectories(table):
    return plan_trajectories(table)


def card_of(dataset_id):
    return DatasetCard(dataset_id, "Crystals that the tests make.")


@pytest.fixture
def card():
    return card_of


@pytest.fixture(scope="session")
def made_dataset(isolated_folders, table, trajectories):
    """Return the made crystals as a Minari dataset, read with stock Minari."""
    write_dataset(card_of(MADE_ID), trajectories, table)
    return minari.load_dataset(MADE_ID)


@pytest.fixture(scope="session")
def data_dir():
    """Return the folder with MP-20 and its labels, or skip."""
    roots = [Path(__file__).resolve().parents[2] / "shared" / "data"]
    if os.environ.get("CRYSTAL_GYM_DATA"):
        roots.insert(0, Path(os.environ["CRYSTAL_GYM_DATA"]))
    for root in roots:
        if (root / "mp20" / "train.csv.gz").is_file() and (root / "qe" / "labels.csv.gz").is_file():
            return root
    pytest.skip("the MP-20 files are neither in CRYSTAL_GYM_DATA nor in ../shared/data")


@pytest.fixture(scope="session")
def train_rows(data_dir):
    """Return all rows of the training split by position."""
    rows, problems = read_cdvae_csv(data_dir / "mp20" / "train.csv.gz")
    assert not problems
    return {row.position: row for row in rows}


@pytest.fixture(scope="session")
def train_labels(data_dir):
    return read_labels(data_dir, "train")


@pytest.fixture(scope="session")
def val_labels(data_dir):
    return read_labels(data_dir, "val")


@pytest.fixture(scope="session")
def val_rows(data_dir):
    """Return all rows of the validation split by position."""
    rows, _ = read_cdvae_csv(data_dir / "mp20" / "val.csv.gz")
    return {row.position: row for row in rows}


@pytest.fixture(scope="session")
def real_structures(train_rows, train_labels):
    """Return 100 labelled crystals of at most 12 sites as pymatgen structures."""
    drawn = np.random.default_rng(20).permutation(len(train_labels))
    found = []
    for number in drawn:
        text = train_rows[train_labels[number].position].cif
        if len(re.findall(r"^ +[A-Z][a-z]? +[A-Z][a-z]?\d+ ", text, re.MULTILINE)) <= 12:
            found.append(parse_cif(text))
        if len(found) == 100:
            return found
    raise AssertionError("fewer than 100 small crystals")


def write_source_folder(folder, rows, labels):
    """Write a source folder as ``data build`` reads it.

    ``rows`` are dictionaries with ``cif``; ``labels`` are ``(split, position, gap, total,
    formation)``.
    """
    (folder / "mp20").mkdir(parents=True)
    (folder / "qe").mkdir()
    for split in ("train", "val"):
        with open(folder / "mp20" / f"{split}.csv", "w", newline="") as file:
            writer = csv.DictWriter(file, ["", "material_id", "cif"])
            writer.writeheader()
            writer.writerows({"": i, **row} for i, row in enumerate(rows))
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(
        ["split", "index", "band_gap_ev", "total_energy_ry", "formation_energy_ev_per_atom"]
    )
    writer.writerows(labels)
    (folder / "qe" / "labels.csv.gz").write_bytes(gzip.compress(text.getvalue().encode()))
    return folder


@pytest.fixture
def source_folder(tmp_path):
    """Return a function that makes a source folder from rows and labels."""
    return lambda rows, labels: write_source_folder(tmp_path / "source", rows, labels)
