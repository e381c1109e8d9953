"""`PwSettings` and its presets."""

import pytest

from crystal_gym.oracles.espresso import PRESETS, PwSettings, make_settings
from crystal_gym.oracles.references import published_references

# Databases hold results under these: a value that hashes to something else loses them all.
KEYS = {
    "labels": ("5e0d561f2bd437fb", "bed7ee1cc6b17760"),
    "fast": ("8d5c02573d134cf8", "bed7ee1cc6b17760"),
    "paper": ("b31e9463208c36af", "a1cc18deb4897967"),
}


@pytest.mark.parametrize(
    ("preset", "ecutrho", "n_bands"),
    [("labels", 240, 64), ("fast", 240, None), ("paper", 245, 256)],
)
def test_a_preset_is_the_published_settings_but_for_what_it_says(preset, ecutrho, n_bands):
    settings = make_settings(preset)
    assert settings == PwSettings(
        ecutwfc_ry=30, ecutrho_ry=ecutrho, conv_thr_ry=1e-6, k_mesh=(3, 3, 3), n_bands=n_bands
    )


def test_all_presets_are_tested_here():
    assert set(PRESETS) == set(KEYS)


@pytest.mark.parametrize("preset", KEYS)
def test_keys_stay_what_databases_hold(preset):
    settings = make_settings(preset)
    assert (settings.key, settings.energy_key) == KEYS[preset]


def test_the_published_references_belong_to_the_labels():
    assert published_references().settings == make_settings("labels").energy_key


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"n_bands": 90}, id="bands"),
        pytest.param({"magnetizations": (1, 3)}, id="magnetizations"),
    ],
)
def test_what_energies_do_not_depend_on_changes_the_key_alone(change):
    changed, labels = make_settings("labels", **change), make_settings("labels")
    assert changed.energy_key == labels.energy_key
    assert changed.key != labels.key


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"ecutwfc_ry": 31.0}, id="ecutwfc"),
        pytest.param({"ecutrho_ry": 245.0}, id="ecutrho"),
        pytest.param({"conv_thr_ry": 1e-7}, id="threshold"),
        pytest.param({"mixing_beta": 0.3}, id="mixing"),
        pytest.param({"electron_maxstep": 200}, id="steps"),
        pytest.param({"k_mesh": (4, 4, 4)}, id="mesh"),
        pytest.param({"k_offset": (1, 1, 1)}, id="offset"),
        pytest.param({"smearing_ry": 0.02}, id="smearing"),
    ],
)
def test_what_energies_depend_on_changes_the_energy_key(change):
    assert make_settings("labels", **change).energy_key != make_settings("labels").energy_key


@pytest.mark.parametrize(
    ("one", "other"),
    [
        pytest.param({"ecutwfc_ry": 40}, {"ecutwfc_ry": 40.0}, id="whole cutoff"),
        pytest.param({"mixing_beta": 1}, {"mixing_beta": 1.0}, id="whole mixing"),
        pytest.param({"k_mesh": [2, 2, 2]}, {"k_mesh": (2, 2, 2)}, id="list"),
    ],
)
def test_one_value_has_one_key_however_it_is_written(one, other):
    assert make_settings("labels", **one).key == make_settings("labels", **other).key


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("ecutwfc", "ecutwfc_ry"),
        ("ecutrho", "ecutrho_ry"),
        ("kmesh", "k_mesh"),
        ("mixing", "mixing_beta"),
        ("nbands", "n_bands"),
        ("magnetization", "magnetizations"),
    ],
)
def test_a_misspelt_setting_is_refused_with_the_closest_name(name, meant):
    with pytest.raises(
        ValueError, match=rf"no pw.x setting called '{name}' \(did you mean '{meant}'\?\)"
    ):
        make_settings("labels", **{name: 1})


def test_a_setting_like_no_other_is_refused_with_all_names():
    with pytest.raises(ValueError, match="called 'vdw': expected one of ecutwfc_ry, .*smearing_ry"):
        make_settings("labels", vdw="d3")


def test_an_unknown_preset_is_refused():
    with pytest.raises(ValueError, match="preset 'quick' is unknown: expected one of labels, fast"):
        make_settings("quick")


def test_settings_that_are_neither_name_nor_record_are_refused():
    with pytest.raises(TypeError, match="no PwSettings and no preset's name"):
        make_settings({"ecutwfc_ry": 30})


def test_a_record_may_stand_for_a_preset():
    mine = PwSettings(ecutwfc_ry=20, ecutrho_ry=160)
    assert make_settings(mine, n_bands=10) == PwSettings(ecutwfc_ry=20, ecutrho_ry=160, n_bands=10)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("ecutwfc_ry", 0, "a number above 0"),
        ("ecutwfc_ry", float("nan"), "a number above 0"),
        ("ecutwfc_ry", float("inf"), "a number above 0"),
        ("ecutwfc_ry", "30", "a number above 0"),
        ("ecutwfc_ry", True, "a number above 0"),
        ("ecutwfc_ry", 100.0, None),  # the density's must be four times that
        ("ecutrho_ry", 100.0, r"at least 4 \* 30"),
        ("conv_thr_ry", -1e-6, "a number above 0"),
        ("mixing_beta", 1.5, "0 to 1"),
        ("electron_maxstep", 0, "a whole number above 0"),
        ("electron_maxstep", 10.0, "a whole number above 0"),
        ("k_mesh", 3, "whole numbers in a tuple"),
        ("k_mesh", (3, 3), "three whole numbers above 0"),
        ("k_mesh", (3, 3, 0), "three whole numbers above 0"),
        ("k_mesh", (3, 3, 1.5), "whole numbers in a tuple"),
        ("k_offset", (0, 0, 2), "three of 0 and 1"),
        ("n_bands", 0, "a whole number above 0, or None"),
        ("n_bands", 8.0, "a whole number above 0, or None"),
        ("magnetizations", (), "odd numbers above 0"),
        ("magnetizations", (1, 2), "odd numbers above 0"),
        ("magnetizations", (-1,), "odd numbers above 0"),
        ("magnetizations", 1, "whole numbers in a tuple"),
        ("smearing_ry", 0, "None, or a width"),
        ("smearing_ry", "cold", "None, or a width"),
        ("smearing_ry", float("nan"), "None, or a width"),
    ],
)
def test_a_value_that_cannot_be_is_refused(name, value, expected):
    expected = "ecutrho_ry=240.0 is not usable" if expected is None else f"{name}=.*{expected}"
    with pytest.raises(ValueError, match=expected):
        make_settings("labels", **{name: value})


def test_settings_say_what_they_are():
    assert str(make_settings("labels")) == "30/240 Ry, 3x3x3, 64 bands"
    assert str(make_settings("fast")) == "30/240 Ry, 3x3x3, occupied + 20% bands"
