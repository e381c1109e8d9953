"""Weights that were damaged on their way."""

import zipfile

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from crystal_gym.agents.model_files import read_weights  # noqa: E402


@pytest.mark.filterwarnings("ignore::UserWarning")  # torch guesses at other versions
def test_no_damage_of_the_weights_is_more_than_a_sentence(tmp_path):
    path = tmp_path / "weights.pt"
    torch.save({"layer.weight": torch.zeros(3, 4), "layer.bias": torch.ones(5)}, path)
    content = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        name = next(n for n in archive.namelist() if n.endswith("data.pkl"))
        described = archive.read(name)
    start, dice, causes = content.index(described), np.random.default_rng(0), {}
    for _ in range(3_000):
        damaged = bytearray(content)
        for place in start + dice.integers(len(described), size=2):
            damaged[place] = dice.integers(256)
        path.write_bytes(damaged)
        try:
            read_weights(path)
        except ValueError as error:
            causes[type(error.__cause__)] = str(error)
    assert {IndexError, KeyError, TypeError, UnicodeDecodeError} <= set(causes)
    assert all(str(path) in said and "\n" not in said for said in causes.values())
