"""Every measure of designs against a plain count."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy.stats import wasserstein_distance

from crystal_gym.elements import ELEMENTS, formula_counts, reduced_formula
from crystal_gym.envs.observations import COMPACT_HEADER
from crystal_gym.evaluation import Task
from crystal_gym.evaluation.intervals import estimates
from crystal_gym.evaluation.metrics import top_k_hits
from crystal_gym.evaluation.properties import (
    PropertyColumns,
    evaluate_designs,
    oracle_label,
)
from crystal_gym.evaluation.study import (
    Design,
    Judge,
    hit_matrix,
    statistics_at_target,
    statistics_of_design,
    statistics_over_targets,
)
from crystal_gym.oracles import ChainOracle, Properties, Status, TableOracle
from crystal_gym.testing import FixedOracle
from crystal_gym.validity import smact_valid

TARGETS = (1.0, 3.0)


@pytest.fixture
def task(trajectories):
    return Task.of_trajectories(trajectories).first_orders()


@pytest.fixture
def judge(trajectories, task):
    return Judge.of(trajectories, task, trajectories)


def designed(task, seed, failures=0.3):
    """Fillings partly right, with gaps and energies, some calculations failed."""
    generator = np.random.default_rng(seed)
    palette = [ELEMENTS.index(s) + 1 for s in ("Na", "Mg", "Al", "O", "Cl", "F")]
    tokens = task.reference.copy()
    wrong = (generator.random(tokens.shape) < 0.5) & (tokens > 0)
    tokens[wrong] = generator.choice(palette, wrong.sum())
    ok = generator.random(len(task)) > failures
    gaps = np.where(ok, generator.choice([0.0, 0.9, 1.1, 2.9, 3.2, 7.0], len(task)), np.nan)
    energies = np.where(ok, generator.normal(-1, 1, len(task)), np.nan)
    status = np.where(ok, "ok", "not_converged")
    unlike = generator.random(len(task)) < 0.2
    return Design(tokens, None, PropertyColumns(status, gaps, energies, unlike))


def values(statistics, n):
    return {name: e.value for name, e in estimates(statistics, n, resamples=2).items()}


@pytest.mark.parametrize("seed", range(4))
def test_measures_of_a_design_by_a_plain_count(task, judge, seed):
    design = designed(task, seed)
    found = values(statistics_of_design(design, judge), len(task))
    right = total = crystals = unknown = valid = exact = 0
    by_element = {}
    formulas = []
    for row, number in enumerate(task.skeleton.tolist()):
        skeleton = task.skeletons[number]
        mine, true = (t[row, : skeleton.n_sites] for t in (design.tokens, task.reference))
        for a, b in zip(mine, true, strict=True):
            total += 1
            right += a == b
            hits, sites = by_element.get(b, (0, 0))
            by_element[b] = hits + (a == b), sites + 1
        crystals += 1
        formulas.append(reduced_formula(mine))
        unknown += formulas[-1] not in judge.known
        valid += smact_valid(formula_counts(mine))
        orbit = [tuple(mine[p]) for p in skeleton.permutations]
        exact += tuple(true) in orbit
    assert found["accuracy"] == pytest.approx(right / total)
    assert found["macro_accuracy"] == pytest.approx(
        np.mean([h / s for h, s in by_element.values()])
    )
    assert found["exact_match"] == pytest.approx(exact / crystals)
    assert found["validity_smact14"] == pytest.approx(valid / crystals)
    assert found["novelty"] == pytest.approx(unknown / crystals)
    assert found["uniqueness"] == pytest.approx(len(set(formulas)) / crystals)
    gaps = [g for g in design.properties.band_gap_ev.tolist() if g == g]
    energies = [e for e in design.properties.formation_energy_ev_per_atom.tolist() if e == e]
    assert found["success"] == pytest.approx(len(gaps) / crystals)
    assert found["mean_gap_ev"] == pytest.approx(sum(gaps) / len(gaps))
    assert found["mean_formation_energy_ev_per_atom"] == pytest.approx(np.mean(energies))
    assert found["metals"] == pytest.approx(gaps.count(0.0) / len(gaps))
    assert found["unlike_training"] == pytest.approx(design.properties.unlike_training.mean())
    # A failure is no gap above the bound: it counts among all, as a miss.
    assert found["kappa"] == pytest.approx(sum(g > judge.rare_gap_ev for g in gaps) / crystals)
    assert found["emd_gap_ev"] == pytest.approx(wasserstein_distance(gaps, judge.band_gap_ev))
    assert found["emd_formation_energy_ev_per_atom"] == pytest.approx(
        wasserstein_distance(energies, judge.formation_energy_ev_per_atom)
    )


@pytest.mark.parametrize("seed", range(4))
def test_measures_at_a_target_count_failures_as_misses(task, judge, seed):
    design = designed(task, seed)
    for target in TARGETS:
        found = values(statistics_at_target(design, judge, target), len(task))
        hits, joint, errors = 0, set(), []
        for row, gap in enumerate(design.properties.band_gap_ev.tolist()):
            if gap != gap:
                continue
            errors.append(abs(gap - target))
            if abs(gap - target) > 0.25:
                continue
            hits += 1
            filling = design.tokens[row][design.tokens[row] > 0]
            formula = reduced_formula(filling)
            if smact_valid(formula_counts(filling)) and formula not in judge.known:
                joint.add(formula)
        assert found["nu"] == pytest.approx(hits / len(task))
        assert found["gap_error_ev"] == pytest.approx(np.mean(errors))
        assert found["valid_unique_novel_in_range"] == pytest.approx(len(joint) / len(task))


def test_measures_over_targets_by_a_plain_count(task, judge):
    designs = {t: designed(task, seed) for seed, t in enumerate((1.0, 3.0, 7.0))}
    found = values(statistics_over_targets(designs, judge), len(task))
    different = differing = sites = 0
    for row, number in enumerate(task.skeleton.tolist()):
        skeleton = task.skeletons[number]
        fillings = [d.tokens[row, : skeleton.n_sites] for d in designs.values()]
        different += len({skeleton.canonical_tokens(f) for f in fillings})
        pairs = list(itertools.combinations(fillings, 2))
        differing += sum((a != b).sum() for a, b in pairs) / len(pairs)
        sites += skeleton.n_sites
    assert found["distinct_fillings"] == pytest.approx(different / len(task))
    assert found["differing_sites"] == pytest.approx(differing / sites)
    rates = [
        [np.mean(np.abs(d.properties.band_gap_ev - t) <= 0.25) for t in designs]
        for d in designs.values()
    ]
    np.testing.assert_allclose(hit_matrix(designs, list(designs)), rates)
    own = np.trace(rates) / 3
    elsewhere = (np.sum(rates) - np.trace(rates)) / 6
    assert found["steering"] == pytest.approx(own - elsewhere)


def test_source_crystals_are_the_ceiling(task, judge):
    columns = PropertyColumns(
        np.full(len(task), "ok"),
        judge.band_gap_ev,
        judge.formation_energy_ev_per_atom,
        np.zeros(len(task), bool),
    )
    found = values(statistics_of_design(Design(task.reference, None, columns), judge), len(task))
    for name in ("accuracy", "similarity", "exact_match", "macro_accuracy", "success"):
        assert found[name] == 1.0
    assert found["emd_gap_ev"] == pytest.approx(0.0, abs=1e-12)
    assert found["novelty"] == 0.0


def test_top_k_is_asked_along_the_true_prefix(task):
    class Ranked:
        """Likes the source element of a site second best if all sites before it are right."""

        def values(self, observations):
            rows = np.asarray(observations)
            out = np.zeros((len(rows), len(ELEMENTS)))
            out[:, 0] = 3.0  # hydrogen is in no source crystal
            for row, observation in zip(out, rows, strict=True):
                number, focus = int(observation[1]), int(observation[2])
                reference = task.skeletons[number].reference
                shown = observation[len(COMPACT_HEADER) :][: len(reference)].astype(int)
                assert all(shown[i] in (0, reference[i]) for i in range(len(reference)))
                assert shown[focus] == 0
                row[reference[focus] - 1] = 2.0
            return out

    found = top_k_hits(Ranked(), task, None, (1, 2, 3))
    np.testing.assert_array_equal(found[:, 0], 0)
    np.testing.assert_array_equal(found[:, 1], task.n_sites)
    np.testing.assert_array_equal(found[:, 2], task.n_sites)


def test_an_oracle_is_asked_once_for_equal_designs(task):
    oracle = FixedOracle(Properties(band_gap_ev=1.0))
    twice = task.rows(np.array([0, 1, 0, 1, 2]))
    columns = evaluate_designs(oracle, twice.reference, twice)
    assert len(oracle.asked) == 3
    assert columns.has_gap.all()
    assert not columns.has_energy.any()
    empty = twice.reference.copy()
    empty[0, 0] = 0
    with pytest.raises(ValueError, match="has an empty site"):
        evaluate_designs(oracle, empty, twice)


def test_failed_calculations_have_no_numbers(task):
    found = PropertyColumns.of(
        [
            Properties(band_gap_ev=2.0, formation_energy_ev_per_atom=-1.0),
            Properties(band_gap_ev=2.0, status=Status.NOT_CONVERGED),
        ]
    )
    np.testing.assert_array_equal(found.has_gap, [True, False])
    np.testing.assert_array_equal(found.has_energy, [True, False])


def test_headers_say_what_is_surrogate_and_what_is_dft(table):
    class SurrogateOracle:
        def evaluate(self, structures):
            return []

    class Mine(SurrogateOracle):
        pass

    tables = TableOracle(table)
    assert oracle_label(tables).startswith("DFT table")
    assert oracle_label(SurrogateOracle()) == "surrogate, not DFT"
    both = oracle_label(ChainOracle([tables, SurrogateOracle()]))
    assert "DFT table" in both
    assert "surrogate, not DFT" in both
    assert "not known to be DFT" in oracle_label(type("Other", (), {})())
