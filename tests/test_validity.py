import numpy as np
import pytest
from smact.screening import smact_validity

from crystal_gym.elements import ELEMENTS
from crystal_gym.validity import smact_valid


def by_smact(counts):
    formula = "".join(f"{symbol}{count}" for symbol, count in counts.items())
    return smact_validity(formula, oxidation_states_set="smact14")


@pytest.mark.parametrize(
    ("counts", "valid"),
    [
        ({"Mg": 1, "O": 1}, True),
        ({"Mg": 2, "O": 2}, True),
        ({"Na": 1, "F": 3}, False),
        ({"Si": 2}, True),
        ({"Fe": 1, "Al": 3}, True),
        ({"Sr": 1, "Ti": 1, "O": 3}, True),
        ({"He": 1, "O": 1}, False),
    ],
    ids=str,
)
def test_known_compositions(counts, valid):
    assert smact_valid(counts) is valid


def test_equals_smact_on_random_compositions():
    generator = np.random.default_rng(0)
    # SMACT 3 fails on elements without an electronegativity, which SMACT 4 calls invalid.
    usual = [e for e in ELEMENTS if e not in ("He", "Ne", "Pm")]
    verdicts = []
    for _ in range(1500):
        size = generator.integers(1, 5)
        chosen = generator.choice(len(usual), size=size, replace=False)
        counts = {usual[e]: int(generator.integers(1, 7)) for e in chosen}
        verdicts.append(smact_valid(counts))
        assert verdicts[-1] == by_smact(counts), counts
    assert 100 < sum(verdicts) < 1400  # the draw holds plenty of both


def test_many_elements_are_answered_as_by_smact():
    alkali_and_halogens = ["Li", "Na", "K", "Rb", "Cs", "Ag", "F", "Cl", "Br", "I"]
    for iodine in (1, 2, 3, 4):
        counts = dict.fromkeys(alkali_and_halogens, 1) | {"I": iodine}
        assert smact_valid(counts) == by_smact(counts)


def test_twenty_elements_need_no_exponential_time():
    # Ten alkaline and rare earths (+2 or +3) against ten halides at most: far too few anions.
    cations = ["Ca", "Sr", "Ba", "Sc", "Y", "La", "Nd", "Gd", "Ho", "Lu", "Er", "Tb", "Dy", "Tm"]
    assert not smact_valid(dict.fromkeys(cations, 3) | {"F": 1})
    assert smact_valid(dict.fromkeys(["Ca", "Sr", "Ba"], 1) | {"F": 6})


@pytest.mark.parametrize("counts", [{}, {"Mg": 0}], ids=["empty", "no atoms"])
def test_no_atoms_is_refused(counts):
    with pytest.raises(ValueError, match="is no composition"):
        smact_valid(counts)


def test_charge_assignments_are_neutral_and_usual():
    from crystal_gym.validity import are_common, charge_assignment

    assert are_common({"Ba": 2, "Ti": 4, "O": -2})
    assert not are_common({"Ca": 1, "Ta": 5, "O": -2})
    assert not are_common({"Cu": 0, "Al": 0})
    for counts, expected in (
        ({"Na": 1, "Cl": 1}, {"Na": 1, "Cl": -1}),
        ({"Ba": 1, "Ti": 1, "O": 3}, {"Ba": 2, "Ti": 4, "O": -2}),
        ({"Li": 1, "Fe": 1, "P": 1, "O": 4}, {"Li": 1, "Fe": 2, "P": 5, "O": -2}),
        ({"Cu": 3, "Al": 1}, {"Cu": 0, "Al": 0}),
        ({"Si": 8}, {"Si": 0}),
        ({"Na": 1, "Cl": 2}, None),
    ):
        assert charge_assignment(counts) == expected


def test_charge_assignments_against_every_combination():
    import itertools

    from crystal_gym.elements import ELEMENTS
    from crystal_gym.validity import (
        _oxidation_states,
        charge_assignment,
        electronegativity,
        is_metal,
        smact_valid,
    )

    generator = np.random.default_rng(1)
    seen = set()
    for _ in range(400):
        symbols = generator.choice(ELEMENTS, generator.integers(2, 5), replace=False).tolist()
        counts = {s: int(generator.integers(1, 5)) for s in symbols}
        found = charge_assignment(counts)
        assert (found is not None) == smact_valid(counts)
        if all(map(is_metal, symbols)):
            continue
        if any(electronegativity(s) is None for s in symbols):
            continue
        passing = []
        for states in itertools.product(*(_oxidation_states(s, "smact14") for s in symbols)):
            charged = list(zip(symbols, states, strict=True))
            cations = [electronegativity(s) for s, n in charged if n > 0]
            anions = [electronegativity(s) for s, n in charged if n < 0]
            ordered = not cations or not anions or max(cations) < min(anions)
            if ordered and sum(n * counts[s] for s, n in charged) == 0:
                passing.append(dict(charged))
        assert (found in passing) if passing else (found is None)
        seen.add(found is None)
    assert seen == {True, False}
