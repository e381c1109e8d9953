"""`crystal_gym.rewards`: eqns (7), (15) and (16) against plain `math`."""

import csv
import math

import numpy as np
import pytest
from made_crystals import eqn_7, eqn_16, species_in

from crystal_gym.elements import ELEMENTS
from crystal_gym.oracles import Properties
from crystal_gym.oracles.references import RY_TO_EV, formation_energy, reference_energies
from crystal_gym.rewards import (
    REWARDS,
    EnergyReward,
    FormationReward,
    TotalEnergyReward,
    make_reward,
)

CASES = [(-312.5, -1.75, 2.2), (-55.1, 0.37, 0.0), (-0.4, -6.1, 7.9)]
TARGETS = [0.0, 1.12, 3.0, None]


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("case", CASES)
def test_the_default_reward_is_eqn_7(case, target):
    total, formation, gap = case
    reward = REWARDS["formation"](Properties(total, formation, gap), target)
    assert reward == pytest.approx(eqn_7(formation, gap, target), rel=0, abs=1e-12)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("case", CASES)
def test_the_total_energy_reward_is_eqn_16(case, target):
    total, formation, gap = case
    reward = REWARDS["total_energy"](Properties(total, formation, gap), target)
    assert reward == pytest.approx(eqn_16(total, gap, target), rel=0, abs=1e-12)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("case", CASES)
def test_the_energy_reward_ignores_the_target(case, target):
    total, formation, gap = case
    reward = REWARDS["energy"](Properties(total, formation, gap), target)
    assert reward == pytest.approx(math.exp(-formation / 5), rel=0, abs=1e-12)


def test_the_default_reward_by_hand():
    # exp(0) + 10 exp(0): formation energy 0 and the gap on its target
    assert FormationReward()(Properties(-1.0, 0.0, 3.0), 3.0) == 11.0


def test_weights_and_widths_enter_where_the_equations_have_them():
    properties = Properties(-100.0, -2.0, 1.0)
    formation = FormationReward(a1=2.0, a2=3.0, b1=4.0, b2=5.0)(properties, 2.0)
    assert formation == pytest.approx(2 * math.exp(0.5) + 3 * math.exp(-0.2), abs=1e-12)
    total = TotalEnergyReward(a1=2.0, a2=3.0, b=5.0)(properties, 2.0)
    assert total == pytest.approx(2 * 2.0 + 3 * math.exp(-0.2), abs=1e-12)
    energy = EnergyReward(a1=2.0, b1=4.0)(properties, 2.0)
    assert energy == pytest.approx(2 * math.exp(0.5), abs=1e-12)


@pytest.mark.parametrize("name", REWARDS)
def test_rewards_of_many_equal_those_of_one(name):
    columns = np.array(CASES).T
    targets = np.array([0.5, 1.5, 2.5])
    many = REWARDS[name].values(*columns, targets)
    one = [REWARDS[name](Properties(*c), t) for c, t in zip(CASES, targets.tolist(), strict=True)]
    np.testing.assert_allclose(many, one, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "properties"),
    [
        ("formation", Properties(-1.0, None, 1.0)),
        ("formation", Properties(-1.0, -1.0, None)),
        ("total_energy", Properties(None, -1.0, 1.0)),
        ("total_energy", Properties(-1.0, -1.0, None)),
        ("energy", Properties(-1.0, None, 1.0)),
    ],
)
def test_a_missing_property_gives_no_reward(name, properties):
    assert REWARDS[name](properties, 3.0) is None


def test_without_a_target_the_gap_is_not_needed():
    assert REWARDS["formation"](Properties(-1.0, -1.0, None), None) == math.exp(0.2)


@pytest.mark.parametrize("total", [0.0, 18.0])
def test_a_total_energy_that_is_not_negative_gives_no_reward(total):
    assert REWARDS["total_energy"](Properties(total, -1.0, 1.0), 3.0) is None


def test_a_callable_is_its_own_reward():
    def mine(properties, target_gap):
        return 1.0

    assert make_reward(mine) is mine


def test_an_unknown_reward_is_refused_by_name():
    with pytest.raises(ValueError, match=r"reward='best' is unknown: expected one of formation"):
        make_reward("best")


def test_what_is_no_reward_is_refused():
    with pytest.raises(TypeError, match="reward=3 is not callable"):
        make_reward(3)


# -- formation energy ---------------------------------------------------------------------------


def test_formation_energy_is_eqn_15_by_hand():
    references = {"A": -2.0, "B": -3.0}
    energy = formation_energy(-9.0, ["A", "B", "B"], references)
    assert energy == pytest.approx((-9.0 + 8.0) / 3 * 13.6057039763, abs=1e-12)


def test_a_rydberg_is_the_one_of_the_labels():
    assert RY_TO_EV == 13.6057039763


def test_all_88_elements_have_a_reference_energy():
    assert list(reference_energies()) == list(ELEMENTS)
    assert all(math.isfinite(e) and e < 0 for e in reference_energies().values())


def test_an_element_without_reference_is_refused_by_name():
    with pytest.raises(ValueError, match="no reference energy for Ar, Xx"):
        formation_energy(-1.0, ["Xx", "Na", "Ar"])


def test_a_cell_without_sites_has_no_formation_energy():
    with pytest.raises(ValueError, match="a cell without sites"):
        formation_energy(-1.0, [])


@pytest.mark.data
def test_reference_energies_are_those_solved_from_the_labels(data_dir):
    with open(data_dir / "qe" / "reference_energies.csv", newline="") as file:
        expected = {
            row["element"]: float(row["total_energy_ry_per_atom"]) for row in csv.DictReader(file)
        }
    assert reference_energies() == pytest.approx(expected, rel=0, abs=1e-7)


@pytest.mark.data
@pytest.mark.parametrize("split", ["train", "val"])
def test_eqn_15_gives_the_published_formation_energy_of_every_label(split, request):
    rows = request.getfixturevalue(f"{split}_rows")
    labels = request.getfixturevalue(f"{split}_labels")
    assert len(labels) == {"train": 8_813, "val": 2_484}[split]
    computed = [
        formation_energy(x.total_energy_ry, species_in(rows[x.position].cif)) for x in labels
    ]
    published = [x.formation_energy_ev_per_atom for x in labels]
    np.testing.assert_allclose(computed, published, rtol=0, atol=1e-6)


@pytest.mark.data
@pytest.mark.parametrize("target", TARGETS)
def test_rewards_of_all_real_labels_are_eqns_7_and_16(train_labels, target):
    for label in train_labels:
        properties = Properties(
            label.total_energy_ry, label.formation_energy_ev_per_atom, label.band_gap_ev
        )
        one = REWARDS["formation"](properties, target)
        other = REWARDS["total_energy"](properties, target)
        assert one == pytest.approx(
            eqn_7(label.formation_energy_ev_per_atom, label.band_gap_ev, target), rel=0, abs=1e-9
        )
        assert other == pytest.approx(
            eqn_16(label.total_energy_ry, label.band_gap_ev, target), rel=0, abs=1e-9
        )
