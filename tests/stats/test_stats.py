"""Statistics against hand-worked values, published definitions and simulation."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from helpers import quick_if

from cvxrl.stats.aggregate import Aggregate, iqm, mean, median
from cvxrl.stats.bootstrap import (
    bootstrap_interval,
    draw_runs,
    percentile_interval,
    performance_profile,
    resample,
    scores_of,
    small_sample_stretch,
)
from cvxrl.stats.clusters import ratio_interval, share_interval
from cvxrl.stats.difference import mean_difference, needed_seeds
from cvxrl.stats.improvement import (
    bootstrap_improvement_interval,
    improvement_interval,
    probability_of_improvement,
    resampled_improvement,
)
from cvxrl.stats.proportion import clustered_share_interval, exact_interval, exact_p, smoothed_error


def column(*values: float) -> np.ndarray:
    return np.array(values, dtype=float)[:, None]


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def test_aggregates_by_hand() -> None:
    assert mean(column(1, 2, 6)) == 3.0
    assert median(column(1, 2, 6)) == 2.0
    assert iqm(column(100, 0, 1, 2, 3)) == 2.0  # floor(5 / 4) = 1 cut from either end
    assert iqm(column(*range(1, 9))) == 4.5  # (3 + 4 + 5 + 6) / 4
    assert iqm(column(1, 2, 6)) == 3.0  # nothing is cut from three
    assert iqm(np.array([[0.0, 10.0], [1.0, 11.0]])) == 5.5  # cut over runs and tasks together, as rliable does
    many = np.arange(24.0).reshape(2, 6, 2)
    assert iqm(many) == pytest.approx([5.5, 17.5])  # leading axes are kept


@pytest.mark.parametrize("shape", [(3,), (0, 1), (3, 0)])
def test_scores_need_runs_and_tasks(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="runs and tasks"):
        mean(np.zeros(shape))


def test_resampling_stays_within_a_task() -> None:
    drawn = resample(np.array([[0.0, 10.0], [1.0, 11.0], [2.0, 12.0]]), rng(), 500)
    assert set(drawn[..., 0].ravel()) == {0.0, 1.0, 2.0} and set(drawn[..., 1].ravel()) == {10.0, 11.0, 12.0}
    assert not np.array_equal(drawn[..., 0] + 10, drawn[..., 1])  # tasks are resampled independently


@pytest.mark.parametrize("tasks", [1, 3])
def test_resampled_scores_are_those_of_the_runs_drawn_in_each_task(tasks: int) -> None:
    scores = np.random.default_rng(5).random((4, tasks))
    drawn = draw_runs(scores, rng(), 20)
    expected = [[[scores[n, m] for m, n in enumerate(row)] for row in resampled] for resampled in drawn]
    assert np.array_equal(scores_of(scores, drawn), expected)
    assert np.array_equal(resample(scores, rng(), 20), expected)


def test_bootstrap_agrees_with_full_enumeration() -> None:
    scores = [0.1, 0.5, 0.6, 0.9]
    every = np.array([np.mean(draw) for draw in product(scores, repeat=4)])
    exact = percentile_interval(every, 0.95)
    drawn = bootstrap_interval(column(*scores), mean, rng(), confidence=0.95, resamples=50_000, corrected=False)
    assert (drawn.low, drawn.high) == pytest.approx((exact.low, exact.high), abs=0.011)


def test_identical_runs_have_no_width() -> None:
    same = bootstrap_interval(np.array([[0.0, 1.0]] * 5), mean, rng(), confidence=0.95, resamples=100)
    assert (same.low, same.high) == (0.5, 0.5)


def test_the_stretch_by_hand() -> None:
    assert small_sample_stretch(5, 1, 0.95) == pytest.approx((5 / 4) ** 0.5 * 2.77645 / 1.95996, abs=1e-4)
    assert small_sample_stretch(1000, 1, 0.95) == pytest.approx(1.0, abs=3e-3)
    with pytest.raises(ValueError, match="two runs"):
        small_sample_stretch(1, 1, 0.95)
    plain, wide = (
        bootstrap_interval(column(0, 1, 2, 3, 4), mean, rng(), confidence=0.95, resamples=2000, corrected=c)
        for c in (False, True)
    )
    assert wide.high - 2 == pytest.approx(small_sample_stretch(5, 1, 0.95) * (plain.high - 2))
    assert wide.low - 2 == pytest.approx(small_sample_stretch(5, 1, 0.95) * (plain.low - 2))


def test_the_same_generator_gives_the_same_interval() -> None:
    scores = column(0.1, 0.7, 0.4)
    first, second = (bootstrap_interval(scores, iqm, rng(), confidence=0.95, resamples=50) for _ in range(2))
    other = bootstrap_interval(scores, iqm, np.random.default_rng(1), confidence=0.95, resamples=50)
    assert first == second != other


@pytest.mark.parametrize("tasks", [1, 3])
def test_improvement_by_counts_is_that_by_pairs_bit_for_bit(tasks: int) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 6, size=(7, tasks)) / 7, rng.integers(0, 6, size=(5, tasks)) / 7  # with ties
    by_pairs = np.random.default_rng(1)
    expected = probability_of_improvement(resample(x, by_pairs, 300), resample(y, by_pairs, 300))
    found = resampled_improvement(x, y, np.random.default_rng(1), 300)
    assert len(set(expected)) > 20 and np.array_equal(found, expected)


def test_probability_of_improvement_by_hand() -> None:
    assert probability_of_improvement(column(1, 2), column(1, 1)) == 0.75  # 1/2, 1/2, 1, 1
    assert probability_of_improvement(column(3), column(1, 2)) == 1.0
    two_tasks = probability_of_improvement(np.array([[1.0, 0.0]]), np.array([[0.0, 1.0]]))
    assert two_tasks == 0.5  # 1 on the first task, 0 on the second


def test_improvement_intervals() -> None:
    x, y = np.arange(5.0) + 10, np.arange(5.0)
    certain = improvement_interval(x, y, 0.95)
    assert certain.high == 1.0 and 0.5 < certain.low < 0.9
    # The lower end solves 1 - p = z sqrt(V(p)).
    p = certain.low
    variance = p * (1 - p) * (1 + 4 * (1 - p) / (2 - p) + 4 * p / (1 + p)) / 25
    assert 1 - p == pytest.approx(1.959964 * variance**0.5)
    turned = improvement_interval(y, x, 0.95)
    assert (turned.low, turned.high) == pytest.approx((1 - certain.high, 1 - certain.low))
    boot = bootstrap_improvement_interval(x[:, None], y[:, None], rng(), confidence=0.95, resamples=200)
    assert (boot.low, boot.high) == (1.0, 1.0)  # why it is not what `compare` prints


def seeds(*scores: float, first: int = 0) -> dict[int, float]:
    return dict(enumerate(scores, first))


def test_the_paired_difference_by_hand() -> None:
    found = mean_difference(seeds(1, 2, 4), seeds(0, 2, 1))  # differences 1, 0, 3
    assert found.estimate == pytest.approx(4 / 3) and found.shared == 3 and found.freedom == 2
    assert found.error == pytest.approx((7 / 3) ** 0.5 / 3**0.5)
    interval = found.interval(0.95)
    assert interval is not None and interval.high - 4 / 3 == pytest.approx(4.30265 * found.error, rel=1e-5)
    assert found.p_value == pytest.approx(0.2697, abs=1e-4)


def test_the_difference_of_seeds_that_are_not_shared_is_welchs() -> None:
    x, y = (27.5, 21.0, 19.0, 23.6, 17.0), (27.1, 22.0, 20.8, 23.4, 23.4, 23.5, 25.8)
    found = mean_difference(seeds(*x), seeds(*y, first=10))
    of_x, of_y = np.var(x, ddof=1) / 5, np.var(y, ddof=1) / 7
    assert found.shared == 0 and found.error == pytest.approx((of_x + of_y) ** 0.5)
    assert found.freedom == pytest.approx((of_x + of_y) ** 2 / (of_x**2 / 4 + of_y**2 / 6))
    few = mean_difference(seeds(*x[:3]), seeds(*y, first=10))
    assert few.freedom == 2  # Welch's own would be a guess


def test_shared_seeds_narrow_the_interval_only_where_the_smaller_method_has_no_others() -> None:
    x = seeds(0, 10, 20, 30, 40)
    all_shared = mean_difference(x, seeds(1, 11, 21, 31, 41))
    nested = mean_difference(x, seeds(1, 11, 21, 31, 41, 51, 2))
    crossed = mean_difference(x, {**seeds(1, 11, 21), 8: 31, 9: 41})
    apart = mean_difference(x, seeds(1, 11, 21, 31, 41, first=10))
    assert all_shared.error == pytest.approx(0, abs=1e-6)
    assert nested.error < crossed.error == apart.error
    against = mean_difference(x, {**seeds(41, 31, 21), 8: 11, 9: 1})
    assert against.error > apart.error  # what widens it is believed


def test_tied_scores_have_the_error_of_their_evaluation_or_none() -> None:
    found = mean_difference(seeds(1, 1, 1), seeds(1, 1, 1))
    assert found.interval(0.95) is None and found.p_value is None
    floored = mean_difference(seeds(1, 1, 1), seeds(1, 1, 1), 0.03, 0.04)
    assert floored.error == pytest.approx((0.03**2 / 3 + 0.04**2 / 3) ** 0.5)
    with pytest.raises(ValueError, match="two seeds"):
        mean_difference(seeds(1), seeds(1, 2))


@pytest.mark.parametrize("n", [2, 3, 6, 7, 10])
def test_rounding_is_no_spread(n: int) -> None:
    """The mean of three times 0.1 is not 0.1, and 0.4 - 0.3 is not 0.3 - 0.2."""
    for a in np.arange(1, 100) / 100:
        found = mean_difference(seeds(*[a] * n), seeds(*[0.2] * n))
        assert found.interval(0.95) is None and found.p_value is None
        measured = mean_difference(seeds(*[a] * n), seeds(*[0.2] * n), 0.02, 0.02)
        assert measured.error == pytest.approx(0.02 * (2 / n) ** 0.5)
    drawn = np.random.default_rng(n).integers(0, 900, n) / 1000
    x, y = seeds(*drawn), seeds(*np.round(drawn + 0.1, 3))
    assert mean_difference(x, y).p_value is None
    assert (mean_difference(x, y | {1: y[1] + 1e-4}).p_value or 1) < 0.01, "a difference that varies a little"


SEEDS = [(5, 5, 5), (5, 5, 0), (3, 10, 3), (5, 20, 5), (4, 4, 2)]


@pytest.mark.parametrize(
    ("spread", "seeds_of"),
    # Paired, of different numbers and widths, and paired in part.
    quick_if(lambda *case: case in ((1.0, SEEDS[0]), (3.0, SEEDS[2]), (3.0, SEEDS[4])), product([1.0, 3.0], SEEDS)),
)
def test_equal_means_are_rarely_told_apart(spread: float, seeds_of: tuple[int, int, int]) -> None:
    n, k, shared = seeds_of
    generator, trials, wrong = np.random.default_rng(5), 1500, 0
    for _ in range(trials):
        x = generator.normal(0, 1, n)
        y = generator.normal(0, 1, k)
        y[:shared] = 0.5 * x[:shared] + 0.75**0.5 * y[:shared]
        found = mean_difference(seeds(*x), {i if i < shared else 100 + i: float(v) for i, v in enumerate(y * spread)})
        interval = found.interval(0.95)
        assert interval is not None and found.p_value is not None
        assert (interval.low > 0 or interval.high < 0) == (found.p_value < 0.05)  # one test
        wrong += found.p_value < 0.05
    assert wrong / trials < 0.05 + 3 * (0.05 * 0.95 / trials) ** 0.5


def test_seeds_needed_are_those_for_the_largest_difference_left() -> None:
    found = mean_difference(seeds(0, 1, 2, 3, 4), seeds(1, 2, 0, 4, 4))
    interval = found.interval(0.95)
    assert interval is not None and interval.low < 0 < interval.high
    least = needed_seeds(found, 5, 0.95, 0.8)
    largest, one_seed = max(-interval.low, interval.high), found.error * 5**0.5
    assert least == max(6, int(np.ceil(((1.959964 + 0.841621) * one_seed / largest) ** 2)))
    assert needed_seeds(mean_difference(seeds(1, 1), seeds(1, 1)), 2, 0.95, 0.8) is None


def test_wilsons_interval_is_the_textbooks_and_has_a_width_where_all_are_right() -> None:
    many = clustered_share_interval(0.5, 0.05, 10_000, 100 * 10_000, 0.95)  # 100 independent trials, t is normal
    assert (many.low, many.high) == pytest.approx((0.5, 0.5), abs=0.01)
    alone = clustered_share_interval(0.9, (0.9 * 0.1 / 100) ** 0.5, 100, 100, 0.95)
    t, n = 1.98422, 100
    center = (0.9 + t**2 / (2 * n)) / (1 + t**2 / n)
    assert (alone.low + alone.high) / 2 == pytest.approx(center, abs=1e-5)
    right = clustered_share_interval(1.0, 0.0, 15, 60, 0.95)
    assert right.high == 1.0 and right.low == pytest.approx(1 / (1 + 2.14479**2 / 15), abs=1e-5)
    for clusters in range(2, 400):
        of_all, of_none = (clustered_share_interval(share, 0.0, clusters, clusters, 0.95) for share in (1.0, 0.0))
        assert of_all.high == 1.0 and of_none.low == 0.0, "the share itself, whatever is rounded on the way"


@pytest.mark.parametrize(("questions", "samples", "share"), [(15, 1, 0.98), (15, 4, 0.98), (32, 2, 0.05), (50, 2, 0.5)])
def test_the_interval_of_an_accuracy_holds_the_truth(questions: int, samples: int, share: float) -> None:
    generator, trials, hits, plain = np.random.default_rng(7), 1000, 0, 0
    for _ in range(trials):
        of_question = generator.beta(share * 7 / 3, (1 - share) * 7 / 3, questions)
        right = generator.binomial(samples, of_question) / samples
        mean_, error = right.mean(), right.std(ddof=1) / questions**0.5
        found = clustered_share_interval(mean_, error, questions, questions * samples, 0.95)
        hits, plain = hits + (found.low <= share <= found.high), plain + (abs(mean_ - share) <= 1.96 * error)
    assert 0.92 < hits / trials <= 0.99
    assert plain < hits


def test_a_share_over_clusters_has_the_error_of_the_clusters() -> None:
    counts = np.full(4, 100.0)
    apart = share_interval(np.array([0.0, 100.0, 0.0, 100.0]), counts, 0.95)
    alike = share_interval(np.array([50.0, 51.0, 49.0, 50.0]), counts, 0.95)
    assert apart is not None and alike is not None
    assert (apart.low, apart.high) == (0.0, 1.0) and alike.high - alike.low < 0.03
    mean = ratio_interval(np.array([10.0, 30.0]), np.array([10.0, 10.0]), 0.95)
    assert mean is not None and mean.high - 2 == pytest.approx(12.7062 * (2 * 2 * 10**2) ** 0.5 / 20, rel=1e-4)
    assert share_interval(np.array([3.0, 0.0]), np.array([9.0, 0.0]), 0.95) is None  # one cluster has tokens


def test_a_share_of_none_or_all_tokens_is_as_unsure_as_its_clusters_are_few() -> None:
    counts = np.full(5, 100.0)
    none, all_ = share_interval(np.zeros(5), counts, 0.95), share_interval(counts, counts, 0.95)
    assert none is not None and none.low == 0 and none.high == pytest.approx(0.5218, abs=1e-4)
    assert all_ is not None and all_.high == 1 and all_.low == pytest.approx(0.4782, abs=1e-4)


def test_an_interval_over_clusters_holds_the_truth() -> None:
    generator, hits, trials = np.random.default_rng(6), 0, 1000
    for _ in range(trials):
        counts = generator.integers(20, 60, 16).astype(float)
        found = share_interval(
            generator.binomial(counts.astype(int), generator.beta(2, 8, 16)).astype(float), counts, 0.95
        )
        hits += found is not None and found.low <= 0.2 <= found.high
    assert 0.91 < hits / trials < 0.98


@pytest.mark.parametrize(
    ("hits", "count", "low", "high"),
    [(0, 5, 0.0, 0.5218), (5, 5, 0.4782, 1.0), (1, 10, 0.0025, 0.4450), (7, 20, 0.1539, 0.5922)],
)
def test_exact_intervals_are_the_tables(hits: int, count: int, low: float, high: float) -> None:
    found = exact_interval(hits, count, 0.95)
    assert (found.low, found.high) == pytest.approx((low, high), abs=5e-5)
    with pytest.raises(ValueError, match="no share"):
        exact_interval(count + 1, count, 0.95)


def test_a_share_of_all_is_not_certain() -> None:
    assert smoothed_error(np.array([1.0, 0.5]), 20) == pytest.approx(
        [(22 / 24 * 2 / 24 / 24) ** 0.5, (0.25 / 24) ** 0.5]
    )
    assert smoothed_error(np.array(0.5), 10_000) == pytest.approx(0.005, rel=1e-3)


def test_profile_by_hand() -> None:
    scores, thresholds = column(0.0, 0.5, 1.0), np.array([-1.0, 0.0, 0.5, 0.7, 1.0])
    profile = performance_profile(scores, thresholds, rng(), confidence=0.95, resamples=500)
    assert profile.share_T == pytest.approx([1, 2 / 3, 1 / 3, 1 / 3, 0])  # strictly above
    assert profile.low_T[1] < 2 / 3 < profile.high_T[1] and profile.low_T[0] == profile.high_T[0] == 1


@pytest.mark.parametrize(("statistic", "runs"), [(mean, 5), (mean, 10), (iqm, 10)], ids=["mean 5", "mean 10", "iqm 10"])
def test_a_95_percent_interval_holds_the_truth_95_percent_of_the_time(statistic: Aggregate, runs: int) -> None:
    generator, hits, plain_hits, trials = np.random.default_rng(1), 0, 0, 2000
    for _ in range(trials):
        scores = generator.normal(0.7, 0.1, (runs, 1))
        for corrected in (True, False):
            interval = bootstrap_interval(
                scores, statistic, generator, confidence=0.95, resamples=400, corrected=corrected
            )
            inside = interval.low <= 0.7 <= interval.high
            hits, plain_hits = hits + (inside and corrected), plain_hits + (inside and not corrected)
    assert 0.93 < hits / trials < 0.97
    assert plain_hits < hits  # the plain percentile interval is too narrow; see docs/compare.md


def test_improvement_interval_covers() -> None:
    generator, trials = np.random.default_rng(2), 2000
    for shift, truth in ((0.0, 0.5), (1.19, 0.8)):  # P(N(1.19, 1) > N(0, 1)) = Phi(1.19 / sqrt 2) = 0.80
        hits = 0
        for _ in range(trials):
            found = improvement_interval(generator.normal(shift, 1, 5), generator.normal(0, 1, 5), 0.95)
            hits += found.low <= truth <= found.high
        assert 0.93 < hits / trials < 0.98, shift


@pytest.mark.parametrize(
    ("table", "p"),
    [((0, 8, 5, 8), 0.0256), ((5, 8, 0, 8), 0.0256), ((3, 4, 1, 4), 0.4857), ((0, 3, 0, 5), 1.0), ((2, 2, 0, 3), 0.1)],
)
def test_fishers_exact_test(table: tuple[int, int, int, int], p: float) -> None:
    assert exact_p(*table) == pytest.approx(p, abs=5e-5)
