"""P(X > Y): how likely a run of one method beats a run of another."""

from __future__ import annotations

from collections.abc import Callable
from math import sqrt

import numpy as np
from numpy.typing import NDArray

from cvxrl.stats.aggregate import Scores
from cvxrl.stats.bootstrap import Interval, draw_runs, percentile_interval
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
    return percentile_interval(resampled_improvement(x_NM, y_KM, rng, resamples), confidence)


def resampled_improvement(x_NM: Scores, y_KM: Scores, rng: np.random.Generator, resamples: int) -> Scores:
    """`probability_of_improvement` of both methods' resampled runs, by how often each run was drawn, [resamples].

    The pairs are compared once, not in every resample: a thousandth of the memory with a hundred seeds. Counts and
    halves add up without rounding, so that the numbers are those of the comparison pair by pair, bit for bit.
    """
    drawn_x, drawn_y = draw_runs(x_NM, rng, resamples), draw_runs(y_KM, rng, resamples)
    won_R = np.zeros(resamples)
    for task in range(x_NM.shape[1]):
        x_N, y_K = x_NM[:, task], y_KM[:, task]
        beats_NK = 0.5 * (np.sign(x_N[:, None] - y_K[None, :]) + 1)
        won_R += ((_counts(drawn_x[..., task], len(x_N)) @ beats_NK) * _counts(drawn_y[..., task], len(y_K))).sum(
            axis=1
        )
    return won_R / (len(x_NM) * y_KM.size)


def _counts(drawn_RD: NDArray[np.int64], runs: int) -> Scores:
    """How often each run is in each row, [R, runs]."""
    resamples = len(drawn_RD)
    flat = (drawn_RD + runs * np.arange(resamples)[:, None]).ravel()
    return np.bincount(flat, minlength=resamples * runs).reshape(resamples, runs).astype(np.float64)


def _edge(end: float, inside: float, outside: Callable[[float], bool]) -> float:
    """Bisect between ``end`` of [0, 1] and a point that belongs to the interval."""
    if not outside(end):
        return end
    for _ in range(60):
        middle = (end + inside) / 2
        end, inside = (middle, inside) if outside(middle) else (end, middle)
    return inside
