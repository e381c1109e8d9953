"""`ChainOracle`: the next is asked for what the first does not know, and nothing else."""

import pytest
from made_crystals import STRUCTURES, replaced, tokens_of

from crystal_gym.oracles import (
    ChainOracle,
    Filling,
    FillingOracle,
    Oracle,
    Properties,
    Status,
    TableOracle,
)


class Answering:
    """Answers for Structures of some formulas, and notes what it was asked."""

    def __init__(self, **statuses):
        self.statuses = statuses
        self.asked = []

    def evaluate(self, structures):
        formulas = [s.composition.reduced_formula for s in structures]
        self.asked.append(formulas)
        return [self._answer(formula) for formula in formulas]

    def _answer(self, formula):
        return Properties(status=self.statuses.get(formula, Status.UNKNOWN), provenance=str(self))

    def __repr__(self):
        return f"Answering({', '.join(self.statuses)})"


class AnsweringFillings(Answering):
    """Answers for fillings as well, without a Structure."""

    def evaluate_fillings(self, fillings):
        return self.evaluate([skeleton.structure(tokens) for skeleton, tokens in fillings])


SALT = STRUCTURES["rocksalt"]
CRYSTALS = [replaced(SALT, pair) for pair in (["Na", "Cl"], ["K", "Cl"], ["Na", "F"])]


def as_structures(chain, skeleton):
    return chain.evaluate(CRYSTALS)


def as_fillings(chain, skeleton):
    tokens = [tokens_of([site.specie.symbol for site in s]) for s in CRYSTALS]
    return chain.evaluate_fillings([Filling(skeleton, t) for t in tokens])


@pytest.fixture(params=[as_structures, as_fillings])
def ask(request, made_set):
    skeleton = next(s for s in made_set if s.name == "rocksalt")
    return lambda chain: request.param(chain, skeleton)


@pytest.mark.parametrize("kind", [Answering, AnsweringFillings])
def test_only_the_unknown_is_passed_on_and_answers_stay_in_order(ask, kind):
    first, second = kind(KCl=Status.OK), Answering(NaCl=Status.OK, KCl=Status.OK, NaF=Status.OK)
    found = ask(ChainOracle([first, second]))
    assert [p.provenance for p in found] == [str(second), str(first), str(second)]
    assert first.asked == [["NaCl", "KCl", "NaF"]]
    assert second.asked == [["NaCl", "NaF"]]


@pytest.mark.parametrize("status", [s for s in Status if s is not Status.UNKNOWN])
def test_every_other_status_is_an_answer(ask, status):
    first = Answering(NaCl=status, KCl=status, NaF=status)
    second = Answering(NaCl=Status.OK)
    assert [p.status for p in ask(ChainOracle([first, second]))] == [status] * 3
    assert second.asked == []


def test_the_third_is_asked_for_what_two_do_not_know(ask):
    oracles = [Answering(NaCl=Status.OK), Answering(KCl=Status.OK), Answering(NaF=Status.OK)]
    found = ask(ChainOracle(oracles))
    assert [p.provenance for p in found] == [str(oracle) for oracle in oracles]
    assert oracles[2].asked == [["NaF"]]


def test_what_none_knows_stays_unknown_as_the_last_one_said(ask):
    first, last = Answering(KCl=Status.OK), Answering()
    found = ask(ChainOracle([first, last]))
    assert [p.status for p in found] == [Status.UNKNOWN, Status.OK, Status.UNKNOWN]
    assert found[0].provenance == str(last)


def test_a_chain_of_one_answers_as_that_one(ask):
    oracle = Answering(NaCl=Status.OK)
    assert [p.status for p in ask(ChainOracle([oracle]))] == [Status.OK, *[Status.UNKNOWN] * 2]


def test_nothing_asked_is_nothing_answered():
    chain = ChainOracle([AnsweringFillings()])
    assert chain.evaluate([]) == []
    assert chain.evaluate_fillings([]) == []


class Remembering(Answering):
    """Gives the same list every time."""

    answers = [Properties(status=Status.UNKNOWN)] * 3

    def evaluate(self, structures):
        return self.answers


def test_the_list_that_an_oracle_gave_is_left_as_it_is():
    first = Remembering()
    ChainOracle([first, Answering(NaCl=Status.OK)]).evaluate(CRYSTALS)
    assert [p.status for p in first.answers] == [Status.UNKNOWN] * 3


@pytest.mark.parametrize("place", [0, 1])
def test_an_oracle_that_leaves_out_an_answer_is_noticed(place):
    class Short(Answering):
        def evaluate(self, structures):
            return super().evaluate(structures)[1:]

    oracles = [Answering(), Answering()]
    oracles[place] = Short()
    with pytest.raises(ValueError, match="zip"):
        ChainOracle(oracles).evaluate(CRYSTALS)


def test_a_table_comes_first_and_the_rest_is_asked_of_another(table, made_set):
    second = Answering(KCl=Status.OK)
    chain = ChainOracle([TableOracle(table), second])
    found = chain.evaluate([SALT, replaced(SALT, ["K", "Cl"])])
    assert found[0] == table.properties(0)
    assert found[1].provenance == str(second)


def test_a_chain_may_hold_a_chain():
    inner = ChainOracle([Answering(NaCl=Status.OK), Answering(KCl=Status.OK)])
    found = ChainOracle([inner, Answering(NaF=Status.OK)]).evaluate(CRYSTALS)
    assert [p.status for p in found] == [Status.OK] * 3


def test_a_chain_has_the_protocols_and_names_its_oracles():
    chain = ChainOracle([Answering(NaCl=Status.OK), Answering()])
    assert isinstance(chain, Oracle)
    assert isinstance(chain, FillingOracle)
    assert repr(chain) == "ChainOracle(Answering(NaCl), Answering())"


def test_an_empty_chain_is_refused():
    with pytest.raises(ValueError, match="a chain needs at least one oracle; none was given"):
        ChainOracle([])


@pytest.mark.parametrize(
    ("oracles", "sentence"),
    [
        ([Answering(), Answering], "has no evaluate.*expected oracles, not their classes"),
        ([Answering(), "table"], "'table' has no evaluate"),
        ([None], "None has no evaluate"),
        (Answering(), r"is one oracle: expected a list such as \[first, second\]"),
    ],
    ids=["class", "name", "none", "no list"],
)
def test_what_is_no_oracle_is_refused(oracles, sentence):
    with pytest.raises(TypeError, match=sentence):
        ChainOracle(oracles)
