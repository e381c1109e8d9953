"""`crystal_gym.element_embedding`: elements as points, and back."""

import hashlib
import warnings

import numpy as np
import pytest
from pymatgen.core import Element

from crystal_gym.element_embedding import (
    EMBEDDING,
    EMBEDDING_COLUMNS,
    EMBEDDING_SIZE,
    _table,
    decode,
    embed,
)
from crystal_gym.elements import ELEMENTS, N_ELEMENTS, element_mask

ALL = np.arange(N_ELEMENTS)
ALLEN = {"He": 4.160, "Ne": 4.787}


def action(symbol):
    return ELEMENTS.index(symbol)


def distance(one, other):
    return float(np.linalg.norm(EMBEDDING[action(one)] - EMBEDDING[action(other)]))


def pymatgen_row(symbol):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns of the electronegativities it lacks
        element = Element(symbol)
        f_block = 57 <= element.Z <= 71 or 89 <= element.Z
        return (
            element.row,
            element.group,
            element.Z - (57 if element.Z < 80 else 89) if f_block else 0,
            ALLEN.get(symbol, element.X),
            float(element.atomic_radius or element.atomic_radius_calculated),
        )


@pytest.mark.parametrize("symbol", ELEMENTS)
def test_the_numbers_are_those_of_pymatgen(symbol):
    np.testing.assert_allclose(_table()[action(symbol)], pymatgen_row(symbol), rtol=1e-12)


def test_pymatgen_lacks_what_was_filled_in():
    lacking = [s for s in ELEMENTS if Element(s).atomic_radius is None]
    assert lacking == ["He", "Ne", "Kr", "Xe"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert [s for s in ELEMENTS if np.isnan(Element(s).X)] == list(ALLEN)


def test_points_fill_a_box_inside_that_of_tanh():
    assert EMBEDDING.shape == (N_ELEMENTS, EMBEDDING_SIZE) == (88, len(EMBEDDING_COLUMNS))
    assert EMBEDDING.dtype == np.float32
    np.testing.assert_allclose(EMBEDDING.min(0), -0.9, rtol=1e-6)
    np.testing.assert_allclose(EMBEDDING.max(0), 0.9, rtol=1e-6)


def test_no_two_elements_are_near():
    apart = np.linalg.norm(EMBEDDING[:, None] - EMBEDDING[None], axis=2) + 9 * np.eye(N_ELEMENTS)
    assert apart.min() > 0.1


def test_the_points_are_fixed():
    # Saved policies mean these points: whoever changes one gives them another file format.
    digits = np.round(EMBEDDING.astype(np.float64) * 1e5).astype("<i4")
    assert hashlib.sha256(digits.tobytes()).hexdigest()[:16] == "05f7ecc126efeadb"
    with pytest.raises(ValueError, match="read-only"):
        EMBEDDING[0, 0] = 0.0


@pytest.mark.parametrize(
    ("one", "like", "unlike"),
    [("Na", "K", "Cl"), ("Cl", "Br", "Fe"), ("La", "Ce", "Hf"), ("Fe", "Co", "Ca"),
     ("O", "S", "Li"), ("Xe", "Kr", "Cs"), ("Zr", "Hf", "Sr")],
)  # fmt: skip
def test_chemical_likeness_is_nearness(one, like, unlike):
    assert distance(one, like) < distance(one, unlike)


def test_every_element_comes_back():
    assert np.array_equal(decode(embed(ALL)), ALL)
    noise = np.random.default_rng(0).normal(size=(N_ELEMENTS, EMBEDDING_SIZE))
    noise *= 0.05 / np.linalg.norm(noise, axis=1, keepdims=True)
    assert np.array_equal(decode(embed(ALL) + noise), ALL)


@pytest.mark.parametrize("many", [False, True], ids=["one mask", "a mask a row"])
def test_decoding_takes_the_nearest_allowed_element(many):
    generator = np.random.default_rng(1)
    points = generator.uniform(-1.5, 1.5, (50, EMBEDDING_SIZE))
    mask = (generator.random((50, N_ELEMENTS) if many else N_ELEMENTS) < 0.1).astype(np.int8)
    found = decode(points, mask)
    assert found.dtype == np.int64
    for point, row, choice in zip(points, np.broadcast_to(mask, (50, 88)), found, strict=True):
        allowed = np.flatnonzero(row)
        gaps = [float(np.sum((point - EMBEDDING[a].astype(float)) ** 2)) for a in allowed]
        assert choice == allowed[int(np.argmin(gaps))]


def test_a_forbidden_element_becomes_one_like_it():
    mask = element_mask(["Na", "Br", "Fe"])
    assert ELEMENTS[decode(embed([action("Cl")]), mask)[0]] == "Br"
    assert decode(np.zeros((0, EMBEDDING_SIZE)), mask).shape == (0,)


@pytest.mark.parametrize(
    ("vectors", "mask", "message"),
    [
        (np.zeros(5), None, r"shape \(5,\): expected \(B, 5\)"),
        (np.zeros((2, 88)), None, r"shape \(2, 88\): expected \(B, 5\)"),
        (np.array([[0, 0, np.nan, 0, 0]]), None, "vector 0 is .*nan.*diverged"),
        (np.array([[0, 0, np.inf, 0, 0]]), None, "finite numbers"),
        (np.zeros((2, 5)), np.zeros(88), "allows no action in row 0"),
        (np.zeros((2, 5)), np.ones((3, 88)), r"action_mask has shape \(3, 88\)"),
    ],
)
def test_bad_vectors_and_masks_are_refused(vectors, mask, message):
    with pytest.raises(ValueError, match=message):
        decode(vectors, mask)


@pytest.mark.parametrize(
    ("actions", "message"),
    [([88], "action 88 is out of range"), ([-1], "action -1"), ([0.5], "expected integers"),
     (3, "expected integers")],
)  # fmt: skip
def test_what_is_no_action_is_refused(actions, message):
    with pytest.raises(ValueError, match=message):
        embed(actions)
