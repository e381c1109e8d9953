"""`crystal_gym.evaluation.intervals` against scipy, plain loops and a known distribution."""

import numpy as np
import pytest
from scipy.stats import bootstrap, wasserstein_distance

from crystal_gym.evaluation.intervals import earth_movers, estimates, mean_ratio, ratio

ONES = np.ones((1, 40))


def test_a_ratio_is_sum_over_sum():
    generator = np.random.default_rng(0)
    above, below = generator.integers(0, 9, 40), generator.integers(1, 20, 40)
    weights = generator.integers(0, 4, (7, 40)).astype(float)
    by_hand = [
        sum(w * a for w, a in zip(row, above, strict=True))
        / sum(w * b for w, b in zip(row, below, strict=True))
        for row in weights
    ]
    np.testing.assert_allclose(ratio(above, below)(weights), by_hand)
    np.testing.assert_allclose(ratio(above)(ONES), above.mean())


def test_a_ratio_over_nothing_is_nan_and_not_zero():
    assert np.isnan(ratio(np.zeros(40), np.zeros(40))(ONES)).all()


@pytest.mark.parametrize(
    ("statistic", "shapes"),
    [(ratio, [(3,), (4,)]), (mean_ratio, [(3, 2), (3, 3)]), (mean_ratio, [(3,), (3,)])],
    ids=["lengths", "widths", "dimensions"],
)
def test_shapes_that_do_not_fit_are_refused(statistic, shapes):
    with pytest.raises(ValueError, match="a ratio of arrays of shapes"):
        statistic(*map(np.ones, shapes))


def test_a_mean_ratio_is_the_mean_of_those_that_there_are():
    above = np.array([[1, 0, 2], [1, 0, 0], [0, 0, 1]])
    below = np.array([[2, 0, 2], [1, 0, 1], [1, 0, 1]])
    assert mean_ratio(above, below)(np.ones((1, 3)))[0] == pytest.approx((2 / 4 + 3 / 4) / 2)


def test_a_mean_ratio_is_not_pulled_by_resamples_without_a_rare_element():
    generator = np.random.default_rng(1)
    sites = np.zeros((60, 30), dtype=int)
    sites[np.arange(60), np.arange(60) % 30] = 1  # two crystals an element
    hits = sites * (generator.random((60, 1)) < 0.4)
    found = estimates({"macro": mean_ratio(hits, sites)}, 60, resamples=2000)["macro"]
    assert found.value == pytest.approx(np.mean(hits.sum(0) / sites.sum(0)))
    assert found.low < found.value < found.high
    assert abs((found.low + found.high) / 2 - found.value) < 0.02


@pytest.mark.parametrize("seed", range(5))
def test_the_earth_movers_distance_is_scipys(seed):
    generator = np.random.default_rng(seed)
    values, reference = generator.gamma(2, 1, 40), generator.normal(1, 2, 40)
    values[generator.random(40) < 0.3] = np.nan
    reference[:3] = values[generator.random(40) < 2][:3]  # ties, and perhaps NaN
    weights = np.vstack([ONES, generator.integers(0, 4, (5, 40))])
    there, others = np.isfinite(values), np.isfinite(reference)
    expected = [
        wasserstein_distance(values[there], reference[others], row[there], row[others])
        for row in weights
    ]
    np.testing.assert_allclose(earth_movers(values, reference)(weights), expected)


def test_the_earth_movers_distance_is_the_cost_of_the_best_of_all_transports():
    generator = np.random.default_rng(3)
    values, reference = generator.normal(size=(2, 5))
    from itertools import permutations

    best = min(np.abs(values - np.array(p)).mean() for p in permutations(reference))
    assert earth_movers(values, reference)(np.ones((1, 5)))[0] == pytest.approx(best)


def test_no_distance_to_nothing():
    assert np.isnan(earth_movers(np.full(40, np.nan), np.ones(40))(ONES)).all()


def test_intervals_are_those_of_scipys_bootstrap():
    values = np.random.default_rng(4).exponential(size=200)
    mine = estimates({"mean": ratio(values)}, 200, resamples=4000, seed=1)["mean"]
    theirs = bootstrap((values,), np.mean, n_resamples=4000, method="percentile", rng=1)
    assert mine.value == pytest.approx(values.mean())
    assert mine.low == pytest.approx(theirs.confidence_interval.low, abs=0.01)
    assert mine.high == pytest.approx(theirs.confidence_interval.high, abs=0.01)


def test_intervals_cover_the_truth_about_as_often_as_they_say():
    generator = np.random.default_rng(5)
    covered = 0
    for seed in range(300):
        sites = generator.integers(2, 20, 150)
        hits = generator.binomial(sites, 0.7)
        found = estimates({"accuracy": ratio(hits, sites)}, 150, resamples=300, seed=seed)
        covered += found["accuracy"].low <= 0.7 <= found["accuracy"].high
    assert 0.90 < covered / 300 < 0.98


def test_the_seed_decides_and_measures_share_the_resamples():
    values = np.random.default_rng(6).random(30)
    both = {"one": ratio(values), "two": ratio(2 * values)}
    first, again, other = (estimates(both, 30, resamples=150, seed=s) for s in (0, 0, 1))
    assert first == again != other
    assert first["two"].low == pytest.approx(2 * first["one"].low)


def test_a_measure_of_nothing_has_no_interval():
    found = estimates({"nothing": ratio(np.zeros(5), np.zeros(5))}, 5)["nothing"]
    assert np.isnan([found.value, found.low, found.high]).all()


def test_no_crystals_are_refused():
    with pytest.raises(ValueError, match="0 crystals and 1000 resamples: expected at least one"):
        estimates({}, 0)
