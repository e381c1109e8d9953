"""`crystal_gym.elements`: the 88 elements."""

import numpy as np
import pytest
from pymatgen.core import Element

from crystal_gym.elements import (
    ATOMIC_NUMBERS,
    CLASS_NAMES,
    ELEMENT_CLASS,
    ELEMENTS,
    GROUP,
    PERIOD,
    element_mask,
    reduced_formula,
    symbol_to_token,
    tokens_to_symbols,
)

# DESIGN.md, section 2, word for word.
ACTION_ORDER = (
    "H He Li Be B C N O F Ne Na Mg Al Si P S Cl K Ca Sc Ti V Cr Mn Fe Co Ni Cu Zn Ga Ge As Se Br "
    "Kr Rb Sr Y Zr Nb Mo Tc Ru Rh Pd Ag Cd In Sn Sb Te I Xe Cs Ba La Ce Pr Nd Pm Sm Eu Gd Tb Dy "
    "Ho Er Tm Yb Lu Hf Ta W Re Os Ir Pt Au Hg Tl Pb Bi Ac Th Pa U Np Pu"
).split()


def test_actions_are_the_88_elements_of_the_design_in_its_order():
    assert list(ELEMENTS) == ACTION_ORDER
    assert len(ELEMENTS) == 88


def test_atomic_numbers_are_those_of_pymatgen():
    assert [Element(s).Z for s in ELEMENTS] == ATOMIC_NUMBERS.tolist()


def test_groups_and_periods_are_those_of_pymatgen():
    assert [Element(e).group for e in ELEMENTS] == GROUP.tolist()
    rows = [Element(e).row for e in ELEMENTS]  # pymatgen gives the f block rows 8 and 9
    assert [{8: 6, 9: 7}.get(row, row) for row in rows] == PERIOD.tolist()


def test_tokens_are_actions_plus_one():
    assert [symbol_to_token(s) for s in ELEMENTS] == list(range(1, 89))


def test_tokens_turn_back_into_symbols():
    assert tokens_to_symbols([0, 1, 88]) == [None, "H", "Pu"]


@pytest.mark.parametrize(
    ("symbol", "name"),
    [
        ("Na", "group 1"),
        ("Mg", "group 2"),
        ("Zn", "transition"),
        ("Al", "post-transition"),
        ("O", "nonmetals"),
        ("Cl", "halogens"),
        ("Xe", "noble"),
        ("La", "lanthanides"),
        ("U", "actinides"),
    ],
)
def test_each_of_the_nine_classes_holds_its_textbook_member(symbol, name):
    assert CLASS_NAMES[ELEMENT_CLASS[ELEMENTS.index(symbol)]] == name


@pytest.mark.parametrize("symbol", ["Ar", "Po", "At", "Rn", "Fr", "Ra", "Xx", "", "zn"])
def test_an_unsupported_element_is_refused_by_name(symbol):
    with pytest.raises(ValueError, match=f"element '{symbol}' is not supported"):
        symbol_to_token(symbol)


def test_a_misspelt_element_brings_a_suggestion():
    with pytest.raises(ValueError, match="Did you mean .*Zn"):
        symbol_to_token("zn")


def test_the_mask_allows_exactly_the_chosen_elements():
    mask = element_mask(["Zn", "S"])
    assert [ELEMENTS[a] for a in np.flatnonzero(mask)] == ["S", "Zn"]


def test_one_string_of_elements_is_refused():
    with pytest.raises(TypeError, match="is one string"):
        element_mask("ZnS")


def test_no_elements_are_refused():
    with pytest.raises(ValueError, match="elements is empty"):
        element_mask([])


@pytest.mark.parametrize(
    ("symbols", "formula"),
    [
        (["O", "Mg"], "MgO"),
        (["O", "Ti", "O"], "TiO2"),
        (["Si", "Si"], "Si"),
        (["C", "H"] * 2, "HC"),
    ],
)
def test_a_formula_is_reduced(symbols, formula):
    tokens = np.array([symbol_to_token(s) for s in symbols])
    assert reduced_formula(tokens) == formula


def test_empty_sites_show_in_a_formula():
    assert reduced_formula(np.array([symbol_to_token("Mg"), 0])) == "Mg□"
