"""P(X > Y): how likely a run of one method beats a run of another."""

from __future__ import annotations

from collections.abc import Callable
from math import sqrt

import numpy as np

from cvxrl.stats.aggregate import Scores
from cvxrl.stats.bootstrap import Interval, percentile_interval, resample
from cvxrl.stats.proportion import z_of


def probability_of_improvement(x_NM: Scores, y_KM: Scores) -> Scores:
    """Mean over tasks of P(X > Y) + P(X = Y) / 2 over all pairs of runs (arXiv 2108.13264; Mann-Whitney's U / NK).

    Args:
        x_NM: scores of one method, (..., N, M).
        y_KM: scores of the other, (..., K, M).
    """
    difference = x_NM[..., :, None, :] - y_KM[..., None, :, :]
    return np.asarray((0.5 * (np.sign(difference) + 1)).mean(axis=(-3, -2, -1)))


def improvement_interval(x: Scores, y: Scores, confidence: float) -> Interval:
    """Score interval of P(X > Y) for one task (Newcombe 2006, Statistics in Medicine 25:559, method 5).

    The probabilities p for which |p - estimate| <= z sqrt(V(p)), with Hanley and McNeil's variance V of the
    Mann-Whitney statistic. Unlike the bootstrap it does not shrink to a point when every run of one method beats every
    run of the other, as happens with few seeds.

    Args:
        x: scores of one method, shape (N,).
        y: scores of the other, shape (K,).
        confidence: e.g. 0.95.
    """
    estimate = float(probability_of_improvement(x[:, None], y[:, None]))
    z = z_of(confidence)
    extra = (len(x) + len(y)) / 2 - 1

    def outside(p: float) -> bool:
        variance = p * (1 - p) * (1 + extra * (1 - p) / (2 - p) + extra * p / (1 + p)) / (len(x) * len(y))
        return abs(p - estimate) > z * sqrt(variance)

    return Interval(_edge(0.0, estimate, outside), _edge(1.0, estimate, outside))


def bootstrap_improvement_interval(
    x_NM: Scores, y_KM: Scores, rng: np.random.Generator, *, confidence: float, resamples: int
) -> Interval:
    """Interval that rliable prints for `probability_of_improvement`: both methods resampled, percentiles."""
    values = probability_of_improvement(resample(x_NM, rng, resamples), resample(y_KM, rng, resamples))
    return percentile_interval(values, confidence)


def _edge(end: float, inside: float, outside: Callable[[float], bool]) -> float:
    """Bisect between ``end`` of [0, 1] and a point that belongs to the interval."""
    if not outside(end):
        return end
    for _ in range(60):
        middle = (end + inside) / 2
        end, inside = (middle, inside) if outside(middle) else (end, middle)
    return inside
