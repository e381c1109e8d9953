"""The conformance kit: ours keep every promise, and each promise is seen to be broken."""

import itertools
import math
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from broken_promises import breaks
from espresso_helpers import CHEAP, silicon
from made_crystals import STRUCTURES
from stub_pw import Stub

from crystal_gym.oracles import (
    CachedOracle,
    ChainOracle,
    EspressoOracle,
    Properties,
    Status,
    TableOracle,
)
from crystal_gym.rewards import REWARDS, EnergyReward, FormationReward
from crystal_gym.sets import load_skeletons
from crystal_gym.testing import (
    SAME_CRYSTAL,
    FixedOracle,
    FormulaOracle,
    check_encoder_factory,
    check_oracle,
    check_reward,
    fluorite,
    impossible_crystals,
    rocksalt,
    tiny_crystals,
    triclinic,
    wurtzite,
)

pytest_plugins = ["espresso_fixtures"]


def two():
    return [STRUCTURES[name].copy() for name in ("rocksalt", "triclinic")]


def test_importing_the_kit_loads_neither_torch_nor_pymatgen():
    code = (
        "import sys, crystal_gym.testing;"
        "print([m for m in ('torch', 'pymatgen', 'd3rlpy', 'ase') if m in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


# -- oracles that keep their promises --------------------------------------------------------------


def test_a_made_up_oracle_keeps_them():
    check_oracle(FormulaOracle())


def test_the_table_keeps_them(table):
    check_oracle(TableOracle(table), list(STRUCTURES.values()))


def test_the_bundled_table_keeps_them():
    mini = load_skeletons("mini")
    known = [mini[i].structure(mini[i].reference) for i in (0, 100, 200, 300)]
    check_oracle(TableOracle(), known)


def test_the_surrogate_and_a_chain_keep_them():
    pytest.importorskip("d3rlpy")
    from crystal_gym.oracles import SurrogateOracle

    surrogate = SurrogateOracle()
    check_oracle(surrogate, [rocksalt(), rocksalt("Mg", "O", 4.2)])
    check_oracle(ChainOracle([TableOracle(), surrogate]), [rocksalt("Mg", "O", 4.2), triclinic()])


@pytest.fixture
def stub(tmp_path):
    stub = Stub(tmp_path / "stub", ["Na", "Cl", "Si"])
    options = {"pseudopotentials": stub.pseudopotentials, "pw": str(stub.pw), "references": None}
    return EspressoOracle("labels", scratch=tmp_path / "scratch", **options)


def test_espresso_keeps_them_with_a_stand_in_for_pw(stub):
    # The stand-in makes its energy up from the text of the input, so it knows no invariance.
    check_oracle(stub, [rocksalt()], invariances=())


def test_espresso_behind_a_cache_keeps_them_all(stub, tmp_path):
    # The cache knows a crystal however it is written.
    check_oracle(CachedOracle(stub, tmp_path / "results.db"), [rocksalt(), silicon()])


@pytest.mark.dft
def test_espresso_keeps_them_with_the_real_pw(pw, pseudopotentials, tmp_path):
    oracle = EspressoOracle(
        pseudopotentials=pseudopotentials.folder,
        pw=pw,
        references=None,
        scratch=tmp_path,
        **CHEAP,
    )
    # A mesh of k-points belongs to the vectors of a cell, and a grid for 60 Ry sees the origin.
    seen = ("sites", "origin", "rotation")
    check_oracle(oracle, [silicon()], invariances=seen, tolerance=0.01)


# -- oracles that do not ---------------------------------------------------------------------------


class Each(FormulaOracle):
    """Changes every answer of a good oracle."""

    def __init__(self, change):
        self.change = change

    def evaluate(self, structures):
        return [
            self.change(answer, structure) if answer.status is Status.OK else answer
            for answer, structure in zip(super().evaluate(structures), structures, strict=True)
        ]


def always(**values):
    return Each(lambda answer, structure: replace(answer, **values))


class All(FormulaOracle):
    """Changes the list of answers of a good oracle."""

    def __init__(self, change):
        self.change = change

    def evaluate(self, structures):
        return self.change(super().evaluate(structures), structures)


def shifted_by(answer, amount):
    gap = answer.band_gap_ev
    return answer if gap is None else replace(answer, band_gap_ev=gap + amount)


def counting():
    calls = itertools.count()
    return All(lambda found, _: [shifted_by(a, 0.1 * next(calls)) for a in found])


def unsafe(found, structures):
    if any(len(s) == 2 and s.get_distance(0, 1) < 0.1 for s in structures):
        raise ZeroDivisionError("atoms 0.00 Å apart")
    return found


def raising_for_bad_ones(found, structures):
    if any(a.status is not Status.OK for a in found):
        raise RuntimeError("SCF did not converge")
    return found


def spoiled_by_bad_ones(found, structures):
    bad = Properties(status=Status.NOT_CONVERGED)
    return [bad] * len(found) if any(a.status is not Status.OK for a in found) else found


def mutating(found, structures):
    for structure in structures:
        structure.replace(0, "He")
    return found


def first_site(answer, structure):
    return shifted_by(answer, structure[0].specie.Z / 1000)


class WithFillings(FormulaOracle):
    def __init__(self, change):
        self.change = change

    def evaluate_fillings(self, fillings):
        found = self.evaluate([skeleton.structure(tokens) for skeleton, tokens in fillings])
        return self.change(found)


class Cacheable(FormulaOracle):
    def fingerprint(self, elements):
        return "made up"

    def derive(self, properties, species):
        return properties


def failing(found):
    raise KeyError("He")


class HalfCacheable(FormulaOracle):
    fingerprint = Cacheable.fingerprint


class PrintOfOrder(Cacheable):
    def fingerprint(self, elements):
        return "".join(elements)


class Deriving(Cacheable):
    def derive(self, properties, species):
        return replace(properties, formation_energy_ev_per_atom=-9.0)


BROKEN_ORACLES = {
    "class": (FormulaOracle, "it is an object with evaluate(structures)"),
    "no evaluate": (SimpleNamespace(), "it is an object with evaluate(structures)"),
    "raises": (All(lambda f, s: failing(f)), "evaluate raises nothing"),
    "tuple": (All(lambda f, s: tuple(f)), "answers are a list"),
    "none of none": (All(lambda f, s: f or None), "answers are a list"),
    "one of none": (All(lambda f, s: f or [Properties()]), "one answer for each structure"),
    "left out": (All(lambda f, s: f[:1]), "one answer for each structure, in order"),
    "dictionary": (All(lambda f, s: [vars(a) for a in f]), "answers are crystal_gym.oracles.Prop"),
    "status": (always(status="ok"), "the status is a member of crystal_gym.oracles.Status"),
    "text": (always(band_gap_ev="1.0"), "band_gap_ev is a number or None"),
    "array": (always(band_gap_ev=np.ones(1)), "band_gap_ev is a number or None"),
    "truth": (always(total_energy_ry=True), "total_energy_ry is a number or None"),
    "nan": (always(band_gap_ev=math.nan), "what is unknown is None, never NaN"),
    "infinite": (always(total_energy_ry=-math.inf), "total_energy_ry is finite"),
    "nan time": (always(wall_s=math.nan), "wall_s is finite"),
    "provenance": (always(provenance=None), "provenance is a string"),
    "details": (always(details={"std": math.nan}), "details can be written as JSON"),
    "array details": (always(details={"std": np.ones(2)}), "details can be written as JSON"),
    "gap of a failure": (always(status=Status.TIMEOUT), "without status ok there is no gap"),
    "no number": (
        Each(lambda a, s: Properties()),
        "status ok comes with at least one number",
    ),
    "negative gap": (always(band_gap_ev=-0.1), "band_gap_ev is in eV, from 0 to 25"),
    "milli-eV": (always(band_gap_ev=1200.0), "band_gap_ev is in eV"),
    "kJ/mol": (always(formation_energy_ev_per_atom=-411.0), "is in eV/atom, from -15 to 15"),
    "positive energy": (always(total_energy_ry=3.0), "the energy of the cell in Ry, below 0"),
    "huge energy": (always(total_energy_ry=-1e9), "the energy of the cell in Ry"),
    "time": (always(wall_s=-1.0), "wall_s is in seconds, not below 0"),
    "knows nothing": (
        FixedOracle(Properties(status=Status.UNKNOWN)),
        "at least one of the given structures can be calculated",
    ),
    "mutates": (All(mutating), "structures are left as they were given"),
    "not the same again": (counting(), "asked twice it answers the same"),
    "batch": (
        All(lambda f, s: [shifted_by(a, 0.1 * len(f)) for a in f]),
        "a batch is answered as its crystals one by one",
    ),
    "order": (
        All(lambda f, s: sorted(f, key=lambda a: a.band_gap_ev or 0)),
        "answers come in the order of the structures",
    ),
    "sites": (Each(first_site), "renumbering the sites changes nothing"),
    "origin": (
        Each(lambda a, s: shifted_by(a, float(np.abs(s.frac_coords % 1).sum()))),
        "moving the origin changes nothing",
    ),
    "rotation": (
        Each(lambda a, s: shifted_by(a, abs(s.lattice.matrix[0, 0]) / 10)),
        "turning the crystal in space changes nothing",
    ),
    "vectors": (
        Each(lambda a, s: shifted_by(a, s.lattice.a / 10)),
        "other lattice vectors of the same crystal change nothing",
    ),
    "overlap": (All(unsafe), "evaluate raises nothing for overlapping atoms"),
    "bad ones raise": (All(raising_for_bad_ones), "evaluate raises nothing for overlapping atoms"),
    "bad ones are fine": (
        FixedOracle(Properties(-10.0, -1.0, 2.0)),
        "what cannot be calculated has a status that says so for overlapping atoms",
    ),
    "bad ones spoil": (
        All(spoiled_by_bad_ones),
        "one impossible crystal spoils no other answer of its batch",
    ),
    "fillings raise": (WithFillings(failing), "evaluate_fillings raises nothing"),
    "fillings differ": (
        WithFillings(lambda f: [shifted_by(a, 0.5) for a in f]),
        "evaluate_fillings says what evaluate says",
    ),
    "fillings left out": (WithFillings(lambda f: f[1:]), "one answer for each structure"),
    "half a cache": (HalfCacheable(), "both fingerprint(elements) and derive(properties, species)"),
    "print of the order": (PrintOfOrder(), "one string for the same elements in any order"),
    "derives": (Deriving(), "derive(properties, species) leaves a fresh answer as it is"),
}


@pytest.mark.parametrize(("oracle", "promise"), BROKEN_ORACLES.values(), ids=BROKEN_ORACLES)
def test_a_broken_oracle_is_told_which_promise(oracle, promise):
    breaks(promise, check_oracle, oracle, two())


def test_a_message_names_the_oracle_what_was_seen_and_what_to_do():
    said = str(breaks("band_gap_ev", check_oracle, always(band_gap_ev=1200.0), two()))
    assert said == (
        "oracle FormulaOracle() breaks a promise: band_gap_ev is in eV, from 0 to 25. Seen: 1200. "
        "A metal has a gap of 0; convert from Hartree (27.211 eV), Ry (13.606 eV) or meV."
    )


def test_what_an_oracle_raised_is_the_cause():
    error = breaks("raises nothing", check_oracle, All(lambda f, s: failing(f)), two())
    assert isinstance(error.__cause__, KeyError)
    assert error.seen == "KeyError: 'He'"


def test_invariances_and_failures_can_be_left_out_by_name():
    check_oracle(Each(first_site), two(), invariances=("origin", "rotation", "vectors"))
    check_oracle(FixedOracle(Properties(-10.0, -1.0, 2.0)), two(), impossible={})
    check_oracle(Each(lambda a, s: shifted_by(a, s[0].specie.Z / 1e6)), two())  # within tolerance
    with pytest.raises(ValueError, match="invariance 'mirror' is unknown: expected some of sites"):
        check_oracle(FormulaOracle(), two(), invariances=("mirror",))
    with pytest.raises(ValueError, match="expected at least one crystal"):
        check_oracle(FormulaOracle(), [])


def test_cacheable_oracles_pass():
    check_oracle(Cacheable(), two())
    check_oracle(WithFillings(lambda found: found), two())


# -- crystals --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SAME_CRYSTAL)
def test_what_is_called_the_same_crystal_is(name):
    from pymatgen.analysis.structure_matcher import StructureMatcher

    matcher = StructureMatcher(ltol=1e-3, stol=1e-3, angle_tol=0.1, primitive_cell=False)
    for structure in tiny_crystals().values():
        changed = SAME_CRYSTAL[name](structure)
        assert changed.sites != structure.sites
        assert matcher.fit(structure, changed)
        assert changed.volume == pytest.approx(structure.volume)


def test_crystals_are_made_of_what_is_asked_for():
    assert rocksalt("Mg", "O", a=4.2).volume == pytest.approx(4.2**3 / 4)
    assert rocksalt("Mg", "O").formula == "Mg1 O1"
    assert wurtzite("Al", "N").formula == "Al2 N2"
    assert fluorite("Zr", "O").formula == "Zr1 O2"


def test_rotation_turns_the_vectors():
    matrix = SAME_CRYSTAL["rotation"](rocksalt()).lattice.matrix
    assert np.abs(matrix - rocksalt().lattice.matrix).max() > 0.5


def test_impossible_crystals_make_no_skeleton_and_no_answer():
    for wrong, structure in impossible_crystals().items():
        (answer,) = FormulaOracle().evaluate([structure])
        assert answer.status is not Status.OK, wrong
        assert answer.provenance


# -- rewards ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", REWARDS)
def test_the_built_in_rewards_keep_their_promises(name):
    check_reward(name)


def gap_only(properties, target_gap):
    gap = properties.band_gap_ev
    return None if gap is None else -abs(gap - target_gap)


def test_a_reward_for_a_target_keeps_them():
    check_reward(gap_only, targets=(0.0, 3.0))


def ignores_what_is_missing(properties, target):
    gap = math.nan if properties.band_gap_ev is None else properties.band_gap_ev
    return -abs(gap - (target or 0))


def drawn(properties, target, _generator=np.random.default_rng(0)):  # noqa: B008
    return None if properties.band_gap_ev is None else _generator.random()


class OtherValues(FormationReward):
    def values(self, total, formation, gap, target):
        return super().values(total, formation, gap, target)

    def __call__(self, properties, target):
        value = super().__call__(properties, target)
        return None if value is None else value + 1.0


class ScalarValues(EnergyReward):
    def values(self, total, formation, gap, target):
        return self.a1 * math.exp(-formation / self.b1)


class HidingValues(EnergyReward):
    def values(self, total, formation, gap, target):
        found = np.nan_to_num(super().values(total, formation, gap, target))
        return found if found.ndim else np.where(np.isnan(formation), np.nan, found)


def of_gap(function):
    return lambda p, target: None if p.band_gap_ev is None else function(p.band_gap_ev)


BROKEN_REWARDS = {
    "raises without a target": (gap_only, "it raises nothing for"),
    "raises on unknown": (lambda p, target: -p.band_gap_ev, "it raises nothing for"),
    "no number": (lambda p, target: None, "it is a number where every property is known"),
    "array": (of_gap(lambda gap: np.ones(1)), "a reward is one real number or None"),
    "text": (of_gap(str), "a reward is one real number or None"),
    "truth": (of_gap(lambda gap: gap > 1), "a reward is one real number or None"),
    "complex": (of_gap(complex), "a reward is one real number or None"),
    "nan": (ignores_what_is_missing, "a reward is finite, and None where it is not known"),
    "infinite": (of_gap(lambda gap: math.inf), "a reward is finite"),
    "huge": (of_gap(lambda gap: -1e6), "a reward is of a size that can be learned"),
    "random": (drawn, "called twice it returns the same"),
    "of nothing": (lambda p, target: 0.0, "without any property it returns None"),
    "values differ": (OtherValues(), "values returns for arrays what calls return one by one"),
    "values of scalars": (ScalarValues(), "takes arrays of one length"),
    "values hide": (HidingValues(), "values is NaN where every property is"),
}


@pytest.mark.parametrize(("reward", "promise"), BROKEN_REWARDS.values(), ids=BROKEN_REWARDS)
def test_a_broken_reward_is_told_which_promise(reward, promise):
    breaks(promise, check_reward, reward)


def test_a_reward_that_is_none_is_refused():
    with pytest.raises(ValueError, match="reward='gap' is unknown"):
        check_reward("gap")
    with pytest.raises(TypeError, match="is not callable"):
        check_reward(3.0)


# -- without the extra -----------------------------------------------------------------------------


def test_without_torch_one_sentence_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ImportError, match=r"pip install 'crystal-gym\[agents\]'"):
        check_encoder_factory(object())


# -- the document ----------------------------------------------------------------------------------


def test_the_document_s_tests_pass(tmp_path):
    text = (Path(__file__).resolve().parents[1] / "docs" / "testing.md").read_text("utf-8")
    (block,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (tmp_path / "test_mine.py").write_text(block)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_mine.py"]
    said = subprocess.check_output(command, cwd=tmp_path, text=True)
    assert "3 passed" in said
