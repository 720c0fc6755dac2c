"""Statistics against hand-worked values, published definitions and simulation."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from cvxrl.stats.aggregate import Aggregate, iqm, mean, median
from cvxrl.stats.bootstrap import (
    bootstrap_interval,
    paired_interval,
    percentile_interval,
    performance_profile,
    resample,
    small_sample_stretch,
    unpaired_interval,
)
from cvxrl.stats.improvement import (
    bootstrap_improvement_interval,
    improvement_interval,
    probability_of_improvement,
)
from cvxrl.stats.permutation import holm, permutation_p_value, required_seeds, sign_flip_p_value, smallest_p_value
from cvxrl.stats.student import normal_quantile, student_quantile


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


@pytest.mark.parametrize(
    ("freedom", "table"), [(1, 12.7062), (2, 4.3027), (3, 3.1824), (4, 2.7764), (9, 2.2622), (30, 2.0423)]
)
def test_student_quantiles_are_the_tables(freedom: int, table: float) -> None:
    assert student_quantile(0.975, freedom) == pytest.approx(table, abs=5e-5)


def test_student_tends_to_normal_and_refuses_nonsense() -> None:
    assert student_quantile(0.975, 10_000) == pytest.approx(normal_quantile(0.975), abs=1e-3)
    assert student_quantile(0.5, 3) == pytest.approx(0.0, abs=1e-12)
    with pytest.raises(ValueError, match="freedom"):
        student_quantile(0.975, 0)


def test_resampling_stays_within_a_task() -> None:
    drawn = resample(np.array([[0.0, 10.0], [1.0, 11.0], [2.0, 12.0]]), rng(), 500)
    assert set(drawn[..., 0].ravel()) == {0.0, 1.0, 2.0} and set(drawn[..., 1].ravel()) == {10.0, 11.0, 12.0}
    assert not np.array_equal(drawn[..., 0] + 10, drawn[..., 1])  # tasks are resampled independently


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


def test_pairs_are_kept_together() -> None:
    seeds = np.array([0.0, 10.0, 20.0, 30.0])
    paired = paired_interval(seeds + 1, seeds, rng(), confidence=0.95, resamples=500)
    assert (paired.low, paired.high) == (1.0, 1.0)
    apart = unpaired_interval(seeds + 1, seeds, rng(), confidence=0.95, resamples=500)
    assert apart.low < -10 and apart.high > 10
    with pytest.raises(ValueError, match="same seeds"):
        paired_interval(seeds, seeds[:3], rng(), confidence=0.95, resamples=10)


def test_permutation_by_hand() -> None:
    assert permutation_p_value(np.array([3.0, 4.0]), np.array([1.0, 2.0]), rng(), 0) == pytest.approx(2 / 6)
    assert permutation_p_value(np.array([1.0, 4.0]), np.array([2.0, 3.0]), rng(), 0) == 1.0
    x, y = np.arange(5.0) + 10, np.arange(5.0)
    assert permutation_p_value(x, y, rng(), 0) == pytest.approx(2 / 252) == smallest_p_value(5, 5)
    # 0.1 + 0.2 != 0.3 in floating point; relabelings that tie must count.
    tied = permutation_p_value(np.array([0.1, 0.2, 0.3]), np.array([0.3, 0.2, 0.1]), rng(), 0)
    assert tied == 1.0


def test_a_sampled_permutation_test_agrees_with_the_exact_one(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = rng().normal(0.8, 1, 6), rng().normal(0, 1, 6)[::-1]
    exact = permutation_p_value(x, y, rng(), 0)
    flipped = sign_flip_p_value(x - y, rng(), 0)
    monkeypatch.setattr("cvxrl.stats.permutation.EXACT_LIMIT", 1)
    assert permutation_p_value(x, y, rng(), 20_000) == pytest.approx(exact, abs=0.01)
    assert sign_flip_p_value(x - y, rng(), 20_000) == pytest.approx(flipped, abs=0.01)
    assert permutation_p_value(x + 100, y, rng(), 99) == 1 / 100  # never zero


def test_sign_flips_by_hand() -> None:
    assert sign_flip_p_value(np.array([1.0, 1.0, 1.0]), rng(), 0) == 2 / 8
    assert sign_flip_p_value(np.ones(5), rng(), 0) == 0.0625  # what five pairs can reach at best
    assert sign_flip_p_value(np.array([1.0, -1.0]), rng(), 0) == 1.0


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.6]) == [1.0, 1.0]
    assert holm([]) == []


def test_required_seeds_are_the_textbook_ones() -> None:
    x, y = np.array([1.0, -1.0]) / 2**0.5, np.array([1.0, -1.0]) / 2**0.5  # variance 1 each
    assert required_seeds(x + 1.0, y, 0.05, 0.8) == 17  # Cohen's tables: d = 1.0 and 0.5
    assert required_seeds(x + 0.5, y, 0.05, 0.8) == 64
    assert required_seeds(x, y, 0.05, 0.8) is None
    assert required_seeds(x + 1e-9, y, 0.05, 0.8) is None
    assert required_seeds(np.array([9.0, 9.0]), np.array([0.0, 0.0]), 0.05, 0.8) == 4  # 2 / C(8, 4) = 0.029


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
