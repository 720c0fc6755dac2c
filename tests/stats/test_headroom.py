"""Failure curves and headroom: by hand where it can be said, by simulation where it is a promise."""

from __future__ import annotations

from math import inf

import numpy as np
import pytest

from cvxrl.stats.failure_curve import FailureCurve, fit_failures
from cvxrl.stats.headroom import best_draws, headroom_draws, headroom_interval, ratio_interval

VALUES = [1e-4, 3e-4, 1e-3, 3e-3]


def alone(*failures: int, runs: int) -> list[dict[int, bool]]:
    """Every run has a seed of its own, so that they are independent."""
    return [{1000 * i + run: run < failed for run in range(runs)} for i, failed in enumerate(failures)]


def fit(*failures: int, runs: int = 5) -> FailureCurve:
    return fit_failures(VALUES, alone(*failures, runs=runs))


def test_without_a_failure_half_fail_beyond_the_largest_value() -> None:
    curve = fit(0, 0, 0, 0)
    assert curve.half is None and curve.beyond == "above"
    interval = curve.half_interval(0.95)
    assert interval.low == pytest.approx(VALUES[-1], rel=0.02) and interval.high == inf


def test_where_all_fail_half_fail_below_the_smallest_value() -> None:
    curve = fit(5, 5, 5, 5)
    assert curve.half is None and curve.beyond == "below"
    interval = curve.half_interval(0.95)
    assert interval.low == 0 and interval.high == pytest.approx(VALUES[0], rel=0.02)


@pytest.mark.parametrize("runs", [5, 10, 100])
def test_complete_separation_holds_the_whole_gap_and_nothing_else(runs: int) -> None:
    curve = fit(0, 0, runs, runs, runs=runs)
    assert curve.half == pytest.approx(np.sqrt(3e-4 * 1e-3), rel=0.15)
    interval = curve.half_interval(0.95)
    assert interval.low == pytest.approx(3e-4, rel=0.06) and interval.high == pytest.approx(1e-3, rel=0.06)


def test_failures_that_do_not_rise_say_nothing() -> None:
    assert fit(3, 2, 2, 1).half_interval(0.95).low == 0
    assert fit(3, 2, 2, 1).half_interval(0.95).high == inf


@pytest.mark.parametrize("failures", [(5, 5, 0, 0), (5, 5, 5, 0), (5, 4, 4, 1)])
def test_failures_that_fall_say_nothing_though_most_runs_fail(failures: tuple[int, ...]) -> None:
    curve = fit(*failures)
    assert curve.falls and curve.half is None and curve.beyond is None
    assert (curve.half_interval(0.95).low, curve.half_interval(0.95).high) == (0, inf)
    assert not fit(5, 5, 5, 4).falls and not fit(0, 0, 0, 0).falls and not fit(5, 5, 5, 5).falls


def test_a_single_run_at_each_value_leaves_it_open() -> None:
    interval = fit(0, 0, 1, 1, runs=1).half_interval(0.95)
    assert interval.low == 0 and interval.high == inf


def test_many_runs_find_the_curve() -> None:
    curve = fit(23, 159, 500, 841, runs=1000)  # Phi(-2), Phi(-1), Phi(0), Phi(1) about
    assert curve.half == pytest.approx(1e-3, rel=0.05)
    inside = curve.half_interval(0.95)
    assert inside.low < 1e-3 < inside.high and inside.high / inside.low < 1.3
    share = curve.shares(np.array(VALUES))
    assert np.all(np.diff(share) > 0) and share[2] == pytest.approx(0.5, abs=0.03)
    low, high = curve.band(np.array(VALUES), 0.95)
    assert np.all(low <= share) and np.all(share <= high) and np.all(high - low < 0.1)


def test_a_longer_confidence_makes_a_wider_interval() -> None:
    narrow, wide = fit(0, 1, 3, 5).half_interval(0.8), fit(0, 1, 3, 5).half_interval(0.99)
    assert wide.low < narrow.low < narrow.high < wide.high


def test_values_have_to_be_positive_and_to_rise() -> None:
    for values in ([1e-3], [0.0, 1.0], [2.0, 1.0], [1.0, 1.0]):
        with pytest.raises(ValueError, match="increasing"):
            fit_failures(values, [{0: False}] * len(values))


def test_seeds_that_fail_again_at_the_next_value_are_no_further_evidence() -> None:
    once = fit(1, 2, 3, 4)
    again = fit_failures(VALUES, [{seed: seed < failed for seed in range(5)} for failed in (1, 2, 3, 4)])
    in_turn = [{0}, {1, 2}, {3, 4, 0}, {1, 2, 3, 4}]
    spread = fit_failures(VALUES, [{seed: seed in fails for seed in range(5)} for fails in in_turn])
    assert once.effect == 1 == spread.effect and again.effect > 1.5
    assert again.half == once.half == spread.half
    narrow, wide = once.half_interval(0.5), again.half_interval(0.5)
    assert wide.low < narrow.low and wide.high > narrow.high
    assert spread.half_interval(0.5) == narrow


def draws_of_best(*scores: list[float], error: float = 0.0) -> np.ndarray:
    return best_draws(
        VALUES[: len(scores)],
        [dict(enumerate(s)) for s in scores],
        [error] * len(scores),
        np.random.default_rng(0),
        confidence=0.95,
        resamples=2000,
    )


def test_every_resample_chooses_its_best_value_anew() -> None:
    close = draws_of_best([0.80, 0.90, 0.85], [0.84, 0.88, 0.86])
    assert 0.1 < np.mean(close == np.log(VALUES[0])) < 0.9
    clear = draws_of_best([0.2, 0.3, 0.25], [0.84, 0.88, 0.86])
    assert np.mean(clear == np.log(VALUES[1])) == 1
    paired = draws_of_best([0.1, 0.5, 0.9], [0.11, 0.51, 0.91])  # the same seeds: always 0.01 apart
    assert np.mean(paired == np.log(VALUES[1])) == 1


def test_tied_scores_choose_any_value() -> None:
    assert 0.4 < np.mean(draws_of_best([1.0, 1.0], [1.0, 1.0]) == np.log(VALUES[0])) < 0.6
    told_apart = draws_of_best([0.90, 0.90], [0.91, 0.91], error=0.05)  # by less than the evaluations' error
    assert 0.2 < np.mean(told_apart == np.log(VALUES[0])) < 0.5


def test_an_unknown_half_fail_point_leaves_a_ratio_open() -> None:
    rng = np.random.default_rng(0)
    best = np.full(1000, np.log(1e-4))
    known, beyond = headroom_draws(fit(0, 0, 5, 5), best, rng), headroom_draws(fit(0, 0, 0, 0), best, rng)
    assert headroom_interval(beyond, 0.95).low == pytest.approx(30, rel=0.03)
    more = ratio_interval(beyond, known, 0.95)
    assert more.low == pytest.approx(3, rel=0.2) and more.high == inf
    less = ratio_interval(known, beyond, 0.95)
    assert less.low == 0 and less.high == pytest.approx(1 / 3, rel=0.2)
    nothing = ratio_interval(beyond, beyond, 0.95)
    assert nothing.low == 0 and nothing.high == inf


@pytest.mark.parametrize(("seeds", "width"), [(5, 0.1), (5, 0.4), (10, 0.25)])
def test_intervals_hold_the_truth_and_equal_methods_are_told_equal(seeds: int, width: float) -> None:
    """Five values half a decade apart; scores peak at a value of their own, failing seeds lose most of theirs."""
    rng = np.random.default_rng(5)
    place = np.arange(5) * 0.5
    held, more = 0, 0
    for _ in range(60):
        middle = rng.uniform(place[1], place[-1])
        pair = []
        for _ in range(2):
            fails = place > middle + width * rng.standard_normal((seeds, 5))
            score = 0.9 - 0.3 * (place - middle + 0.7) ** 2 + 0.05 * rng.standard_normal((seeds, 5))
            score = np.where(fails, 0.3, 1.0) * score
            curve = fit_failures(list(10**place), [dict(enumerate(fails[:, v].tolist())) for v in range(5)])
            by_seed = [dict(enumerate(score[:, v])) for v in range(5)]
            best = best_draws(list(10**place), by_seed, [0.02] * 5, rng, confidence=0.95, resamples=400)
            pair.append(headroom_draws(curve, best, rng))
        interval = curve.half_interval(0.95)
        held += interval.low <= 10**middle <= interval.high
        more += ratio_interval(pair[0], pair[1], 0.95).low > 1
    assert held >= 52  # at a coverage of 93%, fewer in one experiment of a hundred
    assert more <= 5  # at 3%, more in one of a hundred
