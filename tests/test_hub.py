"""Publishing on the Hugging Face hub, against a stand-in for its client."""

import json

import minari
import numpy as np
import pytest

pytest.importorskip("huggingface_hub", reason="the extra `hub` is not installed")

from hub_stand_in import Hub, refusal

from crystal_gym.cli import main
from crystal_gym.datasets import load_trajectories
from crystal_gym.datasets.hub import published_name, upload
from crystal_gym.datasets.minari_io import write_dataset

ID = "crystal-made-v0"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    from minari.storage.remotes import huggingface

    stand_in = Hub(tmp_path / "hub")
    monkeypatch.setattr(huggingface, "HfApi", stand_in.api)
    monkeypatch.setattr("huggingface_hub.HfApi", stand_in.api)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    return stand_in


@pytest.fixture
def dataset(empty_minari, card, trajectories, table):
    write_dataset(card(ID), trajectories, table)
    return ID


@pytest.mark.parametrize(
    ("local", "there"),
    [
        ("crystal-mine-v0", "crystal/mine-v0"),
        ("oxides-v2", "crystal/oxides-v2"),
        ("a/b-v1", "a/b-v1"),
    ],
)
def test_an_id_gets_a_group(local, there):
    assert published_name(local) == there


def test_a_published_dataset_comes_back_with_stock_minari(
    hub, dataset, tmp_path, monkeypatch, trajectories
):
    list(upload(dataset, "hf://acme"))
    elsewhere = tmp_path / "elsewhere"
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(elsewhere))
    monkeypatch.setenv("MINARI_REMOTE", "hf://acme")
    loaded = minari.load_dataset("crystal/made-v0", download=True)
    assert loaded.total_episodes == len(trajectories)
    again = load_trajectories("crystal/made-v0")
    np.testing.assert_array_equal(again.actions, trajectories.actions)
    env = loaded.recover_environment()  # reads the skeletons of its own folder
    _, info = env.reset(seed=0)
    assert info["action_mask"].any()


def test_what_is_uploaded_is_the_dataset_and_its_cards(hub, dataset, empty_minari):
    (empty_minari / dataset / "data" / "notes.txt").write_text("mine")
    list(upload(dataset, "hf://acme"))
    files = hub.files()
    assert "acme/crystal/made-v0/README.md" in files
    assert "acme/crystal/made-v0/data/main_data.hdf5" in files
    assert "acme/crystal/README.md" in files
    assert not [f for f in files if "notes" in f]
    assert "hf_secret" in hub.tokens
    group = json.loads((hub.folder / "acme/crystal/namespace_metadata.json").read_text())
    assert group["datasets"] == ["crystal/made-v0"]
    assert "made-v0/README.md" in (hub.folder / "acme/crystal/README.md").read_text()


def test_the_dataset_here_stays_as_it_was(hub, dataset, empty_minari):
    before = {p: p.read_bytes() for p in empty_minari.rglob("*") if p.is_file()}
    list(upload(dataset, "hf://acme"))
    assert {p: p.read_bytes() for p in empty_minari.rglob("*") if p.is_file()} == before


def test_a_second_dataset_joins_the_group(hub, dataset):
    list(upload(dataset, "hf://acme"))
    list(upload(dataset, "hf://acme", "crystal/again-v0"))
    text = (hub.folder / "acme/crystal/README.md").read_text()
    assert "crystal/made-v0" in text
    assert "crystal/again-v0" in text


def test_the_card_has_the_form_of_the_hub(dataset, empty_minari):
    from huggingface_hub import DatasetCard

    card = DatasetCard.load(empty_minari / dataset / "README.md")
    assert card.data.license == "unknown"
    assert card.data.pretty_name == dataset
    assert card.data.task_categories == ["reinforcement-learning"]
    for title in ("Data", "Licence", "Intended use", "Limits", "Metrics"):
        assert f"\n## {title}\n" in card.text


@pytest.mark.parametrize("name", ["policy", "surrogate"])
def test_the_card_of_a_model_has_the_form_of_the_hub(name):
    from huggingface_hub import ModelCard

    from crystal_gym.sets import bundled_dir

    card = ModelCard.load(bundled_dir(name) / "README.md")
    assert card.data.license == "mit"
    assert card.data.library_name == "crystal-gym"
    for title in ("Data", "Licence", "Intended use", "Limits", "Metrics"):
        assert f"\n## {title}\n" in card.text


def test_a_dry_run_sends_nothing_and_needs_no_token(hub, dataset, monkeypatch, capsys):
    monkeypatch.delenv("HF_TOKEN")
    assert main(["data", "publish", dataset, "--to", "hf://acme", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "would upload crystal/made-v0" in said
    assert "hf://acme/crystal, folder made-v0" in said
    assert not hub.folder.exists()
    assert not hub.tokens


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["crystal-none-v0", "--to", "hf://acme"], "is not on this machine"),
        ([ID, "--to", "acme"], "expected hf:// and the name of a user"),
        ([ID, "--to", "hf://acme", "--as", "mine-v0"], "expected GROUP/NAME-vN"),
        ([ID, "--to", "hf://other"], "may not write to 'other'"),
    ],
    ids=["no dataset", "no address", "no group", "refused namespace"],
)
def test_what_cannot_be_published_is_refused_in_one_sentence(hub, dataset, capsys, words, says):
    assert main(["data", "publish", *words]) == 1
    told = capsys.readouterr().err
    assert says in told
    assert told.count("\n") == 1


def test_without_a_token_nothing_is_sent(hub, dataset, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    assert main(["data", "publish", dataset, "--to", "hf://acme"]) == 1
    assert "no token for the hub: run `hf auth login`" in capsys.readouterr().err
    assert not hub.folder.exists()


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (ConnectionError("no route"), "the hub does not answer (ConnectionError)"),
        (refusal(401), "does not accept the token"),
        (refusal(500), "answered with an error (500 Client Error)"),
    ],
    ids=["network down", "wrong token", "hub broken"],
)
def test_an_error_of_the_hub_is_one_sentence(hub, dataset, monkeypatch, capsys, error, says):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr("hub_stand_in._Api.create_repo", fail)
    assert main(["data", "publish", dataset, "--to", "hf://acme"]) == 1
    told = capsys.readouterr().err
    assert says in told
    assert told.count("\n") == 1


def test_a_published_version_is_not_replaced(hub, dataset, capsys):
    assert main(["data", "publish", dataset, "--to", "hf://acme"]) == 0
    assert main(["data", "publish", dataset, "--to", "hf://acme"]) == 1
    assert "choose the next one with --as" in capsys.readouterr().err
