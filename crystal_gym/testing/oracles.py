"""What every oracle has to keep."""

from __future__ import annotations

import json
import math
import numbers
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from crystal_gym.elements import EMPTY
from crystal_gym.oracles.base import Filling, FillingOracle, Oracle, Properties, Status
from crystal_gym.testing.crystals import SAME_CRYSTAL, impossible_crystals, tiny_crystals
from crystal_gym.testing.promises import Promises, shortened

if TYPE_CHECKING:
    from pymatgen.core import Structure

__all__ = ["check_oracle"]

_NUMBERS = ("total_energy_ry", "formation_energy_ev_per_atom", "band_gap_ev")
_LARGEST_GAP_EV = 25.0
"""The widest gaps, of solid He and Ne, are about 20 eV."""

_LARGEST_FORMATION_ENERGY_EV_PER_ATOM = 15.0
"""Fluorides reach -5; published reference energies of two elements are 5 too low."""

_LARGEST_ENERGY_RY_PER_ATOM = 60_000.0
"""All electrons of plutonium; pseudopotentials leave a few hundred."""


def check_oracle(
    oracle: Oracle,
    structures: Sequence[Structure] | None = None,
    *,
    impossible: Mapping[str, Structure] | None = None,
    invariances: Collection[str] = tuple(SAME_CRYSTAL),
    tolerance: float = 1e-3,
) -> None:
    """Hold an oracle to its promises.

    - It has ``evaluate(structures)``, which returns a list of one
      :class:`~crystal_gym.oracles.Properties` for each structure, in order; ``[]`` for none.
    - Numbers are finite and in plausible ranges of their units, None where unknown, never NaN;
      without status ``ok`` there is no gap. Details can be written as JSON.
    - A batch is answered as its crystals one by one, twice asked as once; what it is given is left
      as it was.
    - The same crystal with its sites renumbered, its origin moved, turned in space or on other
      lattice vectors has the same properties.
    - What cannot be calculated has a status, raises nothing and spoils no answer beside it.
    - ``evaluate_fillings``, where there is one, says what ``evaluate`` says; ``fingerprint`` and
      ``derive``, where there are, suit a cache.

    Every structure is evaluated some ten times: give an expensive oracle one or two.

    Args:
        oracle: Yours.
        structures: Crystals, at least one of which it can calculate; :func:`tiny_crystals` by
            default.
        impossible: What cannot be calculated, by what is wrong; :func:`impossible_crystals` by
            default. Nothing is asked of an empty one.
        invariances: Keys of :data:`SAME_CRYSTAL`. Leave one out only for a reason that you can
            name, such as a k-point mesh that other vectors change.
        tolerance: Largest difference between answers that should be the same, in the unit of each
            number (Ry, eV/atom, eV).

    Raises:
        BrokenPromise: The first that is found.
        ValueError: If an invariance is unknown, or there is no structure.

    Example:
        >>> from crystal_gym.testing import FormulaOracle, check_oracle
        >>> check_oracle(FormulaOracle())
    """
    crystals = list(tiny_crystals().values()) if structures is None else list(structures)
    if not crystals:
        raise ValueError("structures=[] shows nothing: expected at least one crystal")
    unknown = sorted(set(invariances) - set(SAME_CRYSTAL))
    if unknown:
        known = ", ".join(SAME_CRYSTAL)
        raise ValueError(f"invariance {unknown[0]!r} is unknown: expected some of {known}")
    check = _OracleCheck(oracle, tolerance)
    answers = check.protocol(crystals)
    check.repeated(crystals, answers)
    for name in invariances:
        check.same_crystal(name, crystals, answers)
    check.failures(impossible_crystals() if impossible is None else impossible, crystals, answers)
    if isinstance(oracle, FillingOracle):
        check.fillings(crystals)
    if hasattr(oracle, "fingerprint") or hasattr(oracle, "derive"):
        check.cacheable(crystals, answers)


class _OracleCheck(Promises):
    def __init__(self, oracle: Oracle, tolerance: float) -> None:
        super().__init__(f"oracle {shortened(oracle, 80)}")
        self.oracle, self.tolerance = oracle, tolerance

    def protocol(self, crystals: list[Structure]) -> list[Properties]:
        """Check the form of answers; return them."""
        self.require(
            isinstance(self.oracle, Oracle) and not isinstance(self.oracle, type),
            "it is an object with evaluate(structures)",
            self.oracle,
            "Give the method this name, and pass an object, not its class",
        )
        self.require(
            self.ask([]) == [],
            "no structures have no answers: evaluate([]) returns []",
            self.ask([]),
            "Return an empty list before anything is calculated",
        )
        before = [crystal.copy() for crystal in crystals]
        answers = self.ask(crystals)
        for crystal, old in zip(crystals, before, strict=True):
            self.require(
                crystal.sites == old.sites,  # their order too, unlike ==
                "structures are left as they were given",
                f"{old.formula} came back as {shortened(crystal)}",
                "Work on structure.copy()",
            )
        self.require(
            any(a.status is Status.OK for a in answers),
            "at least one of the given structures can be calculated",
            ", ".join(sorted({str(a.status) for a in answers})),
            "Pass structures that the oracle knows, else nothing more can be checked",
        )
        return answers

    def ask(self, structures: Sequence[Structure], *, about: str = "") -> list[Properties]:
        """Return the checked answers of a batch."""
        answers = self.call(
            self.oracle.evaluate,
            structures,
            promise=f"evaluate raises nothing{about}: a failure is a status",
            advice="Catch what your calculator raises and return "
            "Properties(status=Status.GEOMETRY, provenance=why)",
        )
        return self.checked(answers, structures, about)

    def checked(self, answers: Any, structures: Sequence[Structure], about: str) -> Any:
        """Return answers after a look at their number, types and ranges."""
        self.require(
            isinstance(answers, list),
            "answers are a list",
            type(answers).__name__,
            "Return list(...) of them",
        )
        self.require(
            len(answers) == len(structures),
            "there is one answer for each structure, in order",
            f"{len(answers)} answers for {len(structures)} structures",
            "Answer what you cannot calculate with a status instead of leaving it out",
        )
        for answer, structure in zip(answers, structures, strict=True):
            self.require(
                isinstance(answer, Properties),
                "answers are crystal_gym.oracles.Properties",
                answer,
                "Return Properties(band_gap_ev=..., formation_energy_ev_per_atom=...)",
            )
            self.one(answer, len(structure), about)
        return answers

    def one(self, answer: Properties, n_sites: int, about: str) -> None:
        """Check one answer."""
        self.require(
            isinstance(answer.status, Status),
            "the status is a member of crystal_gym.oracles.Status",
            answer.status,
            "Write Status.OK, or Status('ok') where you have a string",
        )
        for name in (*_NUMBERS, "wall_s"):
            value = getattr(answer, name)
            self.require(
                value is None
                or (isinstance(value, numbers.Real) and not isinstance(value, (bool, np.bool_))),
                f"{name} is a number or None{about}",
                value,
                "Convert it with float(), and take the one number out of an array with .item()",
            )
            self.require(
                value is None or bool(math.isfinite(value)),
                f"{name} is finite{about}: what is unknown is None, never NaN",
                value,
                "Return None for it, and a status that says why if the calculation failed",
            )
        self.require(
            isinstance(answer.provenance, str),
            "provenance is a string",
            answer.provenance,
            "Say in a few words where the numbers come from, or why there are none",
        )
        self.call(
            lambda: json.dumps(dict(answer.details), allow_nan=False),
            promise="details can be written as JSON",
            advice="Keep numbers, strings, lists and dictionaries of them, and leave NaN out",
        )
        if answer.status is Status.OK:
            self.ranges(answer, n_sites)
        else:
            self.require(
                answer.band_gap_ev is None,
                f"without status ok there is no gap{about}",
                f"status {answer.status} with a gap of {answer.band_gap_ev} eV",
                "Return band_gap_ev=None, or Status.OK if the number is good",
            )

    def ranges(self, answer: Properties, n_sites: int) -> None:
        """Check that numbers of a good answer can be what their units say."""
        gap, formation = answer.band_gap_ev, answer.formation_energy_ev_per_atom
        total = answer.total_energy_ry
        self.require(
            not gap == formation == total == None,  # noqa: E711
            "status ok comes with at least one number",
            answer,
            "Return a status that says why there is none",
        )
        if gap is not None:
            self.require(
                0 <= gap <= _LARGEST_GAP_EV,
                f"band_gap_ev is in eV, from 0 to {_LARGEST_GAP_EV:g}",
                f"{gap:g}",
                "A metal has a gap of 0; convert from Hartree (27.211 eV), Ry (13.606 eV) or meV",
            )
        if formation is not None:
            most = _LARGEST_FORMATION_ENERGY_EV_PER_ATOM
            self.require(
                abs(formation) <= most,
                f"formation_energy_ev_per_atom is in eV/atom, from -{most:g} to {most:g}",
                f"{formation:g}",
                "Subtract the energies of the elements, divide by the number of atoms, and convert "
                "from kJ/mol (96.485 of them are 1 eV)",
            )
        if total is not None:
            most = _LARGEST_ENERGY_RY_PER_ATOM * n_sites
            self.require(
                -most <= total < 0,
                f"total_energy_ry is the energy of the cell in Ry, below 0 and above {-most:g}",
                f"{total:g}",
                "Convert from eV (13.606 of them are 1 Ry); leave it None if its zero is no "
                "separate nuclei and electrons",
            )
        self.require(
            answer.wall_s is None or answer.wall_s >= 0,
            "wall_s is in seconds, not below 0",
            answer.wall_s,
            "Measure it with time.perf_counter()",
        )

    def same(
        self, first: Sequence[Properties], second: Sequence[Properties], promise: str, advice: str
    ) -> None:
        """Require that answers agree in status and numbers."""
        for number, (one, other) in enumerate(zip(first, second, strict=True)):
            for name in ("status", *_NUMBERS):
                a, b = getattr(one, name), getattr(other, name)
                close = a == b or (
                    name != "status" and None not in (a, b) and abs(a - b) <= self.tolerance
                )
                seen = f"crystal {number}: {name} is {a} and then {b}"
                self.require(close, promise, seen, advice)

    def repeated(self, crystals: list[Structure], answers: list[Properties]) -> None:
        """Check batches and repetitions."""
        self.same(
            answers,
            self.ask(crystals),
            "asked twice it answers the same",
            "Seed what is drawn at random, and leave nothing behind between calls",
        )
        self.same(
            answers,
            [self.ask([crystal])[0] for crystal in crystals],
            "a batch is answered as its crystals one by one",
            "Look for padding, normalisation over the batch, or answers in another order",
        )
        self.same(
            answers,
            self.ask(crystals[::-1])[::-1],
            "answers come in the order of the structures",
            "Put results back in the order of the questions after sorting or running in parallel",
        )

    def same_crystal(self, name: str, crystals: list[Structure], answers: list[Properties]) -> None:
        """Check that a crystal has the same properties however it is written."""
        words = {
            "sites": "renumbering the sites changes nothing",
            "origin": "moving the origin changes nothing",
            "rotation": "turning the crystal in space changes nothing",
            "vectors": "other lattice vectors of the same crystal change nothing",
        }[name]
        self.same(
            answers,
            self.ask([SAME_CRYSTAL[name](crystal) for crystal in crystals]),
            words,
            "Reduce the cell first (crystal_gym.structures.cell_from_structure), or leave "
            f"{name!r} out of invariances and say why",
        )

    def failures(
        self,
        impossible: Mapping[str, Structure],
        crystals: list[Structure],
        answers: list[Properties],
    ) -> None:
        """Check what happens to what cannot be calculated."""
        for wrong, structure in impossible.items():
            about = f" for {wrong}"
            (answer,) = self.ask([structure], about=about)
            self.require(
                answer.status is not Status.OK,
                f"what cannot be calculated has a status that says so{about}",
                answer,
                "Look at the structure before the calculation and return Status.GEOMETRY or "
                "Status.UNSUPPORTED_ELEMENT",
            )
        if impossible:
            mixed = self.ask([*impossible.values(), *crystals], about=" for one bad in a batch")
            self.same(
                answers,
                mixed[len(impossible) :],
                "one impossible crystal spoils no other answer of its batch",
                "Leave it out of the batch that is calculated, and put its status in its place",
            )

    def fillings(self, crystals: list[Structure]) -> None:
        """Check that fillings of skeletons are answered as structures."""
        from crystal_gym.sets import load_skeletons

        assert isinstance(self.oracle, FillingOracle)
        skeletons = load_skeletons(crystals)
        whole = [s for s in skeletons if (s.reference != EMPTY).all()]
        asked = [Filling(skeleton, skeleton.reference) for skeleton in whole]
        structures = [skeleton.structure(tokens) for skeleton, tokens in asked]
        answers = self.call(
            self.oracle.evaluate_fillings,
            asked,
            promise="evaluate_fillings raises nothing: a failure is a status",
            advice="Catch what your calculator raises and return Properties with a status",
        )
        self.same(
            self.ask(structures),
            self.checked(answers, structures, " from evaluate_fillings"),
            "evaluate_fillings says what evaluate says of the same crystals",
            "Let one of the two call the other",
        )

    def cacheable(self, crystals: list[Structure], answers: list[Properties]) -> None:
        """Check what a cache asks for."""
        from crystal_gym.structures import site_symbols

        oracle: Any = self.oracle
        self.require(
            hasattr(oracle, "fingerprint") and hasattr(oracle, "derive"),
            "an oracle for caches has both fingerprint(elements) and derive(properties, species)",
            f"one of them, in {type(oracle).__name__}",
            "Write the other too (derive may return what it is given), or none",
        )
        species = [site_symbols(crystal) for crystal in crystals]
        for symbols, answer in zip(species, answers, strict=True):
            prints = {oracle.fingerprint(order) for order in (symbols, symbols[::-1])}
            self.require(
                len(prints) == 1 and all(isinstance(p, str) and p for p in prints),
                "fingerprint(elements) is one string for the same elements in any order",
                prints,
                "Name the settings and the version of the calculator, elements sorted",
            )
            self.same(
                [answer],
                [oracle.derive(answer, symbols)],
                "derive(properties, species) leaves a fresh answer as it is",
                "Derive what a stored answer lacks by the same formula as evaluate",
            )
