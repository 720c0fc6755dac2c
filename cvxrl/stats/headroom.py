"""Headroom of a setting: the value at which half the runs fail over the best one, and ratios of two headrooms.

Both parts are uncertain, the best one also because it is chosen on the same runs. Each gets a distribution of plausible
values: the half-fail point the confidence distribution of its fitted curve, the best one a bootstrap over seeds
that chooses anew in every resample. They are combined as if independent; where the same seeds make both, failing more
lowers both, so the interval errs on the wide side.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import exp, inf

import numpy as np
from numpy.typing import NDArray

from cvxrl.stats.bootstrap import Interval, small_sample_stretch
from cvxrl.stats.failure_curve import FailureCurve

Array = NDArray[np.float64]


def best_draws(
    values: Sequence[float],
    scores: Sequence[Mapping[int, float]],
    errors: Sequence[float],
    rng: np.random.Generator,
    *,
    confidence: float,
    resamples: int,
) -> Array:
    """Logarithm of the value with the largest mean score, in each of many resamples of the seeds.

    Values that ran the same seeds get the same resampled ones. The means are spread for few seeds as the intervals of
    `cvxrl.stats.bootstrap` are, and by as much of the evaluations' error as the seeds do not show; ties are broken at
    random.

    Args:
        values: positive settings.
        scores: at each, the score of each of its seeds, at least two.
        errors: at each, standard error with which one score was measured.
        rng: the only source of randomness.
        confidence: for which few seeds are corrected.
        resamples: number of draws.

    Raises:
        ValueError: a value has fewer than two seeds.
    """
    if min(map(len, scores)) < 2:
        raise ValueError("choosing the best value needs two seeds at each")
    drawn: dict[tuple[int, ...], NDArray[np.int64]] = {}
    mean_RV = np.empty((resamples, len(values)))
    for v, (of_seed, error) in enumerate(zip(scores, errors, strict=True)):
        seeds = tuple(sorted(of_seed))
        if seeds not in drawn:
            drawn[seeds] = rng.integers(0, len(seeds), size=(resamples, len(seeds)))
        score_N = np.array([of_seed[seed] for seed in seeds])
        mean, factor = score_N.mean(), small_sample_stretch(len(seeds), 1, confidence)
        unseen = np.sqrt(max(0.0, error**2 - score_N.var(ddof=1)) / len(seeds))
        resampled_R = score_N[drawn[seeds]].mean(axis=1)
        mean_RV[:, v] = mean + factor * (resampled_R - mean) + unseen * rng.standard_normal(resamples)
    tied_RV = mean_RV >= mean_RV.max(axis=1, keepdims=True) - 1e-12
    chosen_R = (tied_RV * rng.random(tied_RV.shape)).argmax(axis=1)
    return np.asarray(np.log(np.array(values))[chosen_R])


def headroom_draws(curve: FailureCurve, best_R: Array, rng: np.random.Generator) -> Array:
    """Bounds of the logarithm of the headroom in each draw, shape (2, R).

    Args:
        curve: whose half-fail point is drawn from its confidence distribution, one draw of each of R equal parts.
        best_R: logarithms of the best value, from `best_draws`, or one that was fixed beforehand, R times.
        rng: pairs the two.
    """
    draws = len(best_R)
    return curve.half_at(rng.permutation((np.arange(draws) + 0.5) / draws)) - best_R


def headroom_interval(draws_2R: Array, confidence: float) -> Interval:
    """Percentiles of a headroom; an end is open (0, infinity) where half fail beyond the tried values."""
    return _percentiles(draws_2R[0], draws_2R[1], confidence)


def ratio_interval(one_2R: Array, other_2R: Array, confidence: float) -> Interval:
    """Percentiles of the ratio of two headrooms with equally many draws, ends as for one."""
    return _percentiles(one_2R[0] - other_2R[1], one_2R[1] - other_2R[0], confidence)


def _percentiles(low_R: Array, high_R: Array, confidence: float) -> Interval:
    tail = (1 - confidence) / 2
    low = float(np.quantile(low_R, tail, method="lower"))
    high = float(np.quantile(high_R, 1 - tail, method="higher"))
    return Interval(exp(low), exp(high) if high < inf else inf)
