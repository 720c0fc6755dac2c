"""Stratified bootstrap (arXiv 2108.13264) of a statistic and of a performance profile.

Intervals are corrected for the few seeds one can afford.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri, stdtrit

from cvxrl.stats.aggregate import Aggregate, Scores


@dataclass(frozen=True)
class Interval:
    """Both ends of an interval."""

    low: float
    high: float

    def within(self, least: float, most: float) -> Interval:
        """Cut to the range that the quantity cannot leave; what is cut off never held the truth."""
        return Interval(min(max(self.low, least), most), min(max(self.high, least), most))


@dataclass(frozen=True)
class Profile:
    """Share of runs above each threshold (the run-score distribution of arXiv 2108.13264).

    Attributes:
        share_T: one share per threshold.
        low_T, high_T: pointwise bootstrap percentiles.
    """

    share_T: Scores
    low_T: Scores
    high_T: Scores


def resample(scores_NM: Scores, rng: np.random.Generator, resamples: int) -> Scores:
    """Draw runs with replacement, independently within each task (stratum): (N, M) -> (resamples, N, M)."""
    return scores_of(scores_NM, draw_runs(scores_NM, rng, resamples))


def scores_of(scores_NM: Scores, drawn_RNM: NDArray[np.int64]) -> Scores:
    """Scores of the drawn runs, (resamples, N, M)."""
    tasks = scores_NM.shape[1]
    return np.take(scores_NM, drawn_RNM if tasks == 1 else drawn_RNM * tasks + np.arange(tasks))


def draw_runs(scores_NM: Scores, rng: np.random.Generator, resamples: int) -> NDArray[np.int64]:
    """Which runs `resample` draws, (resamples, N, M)."""
    runs, tasks = scores_NM.shape
    return rng.integers(0, runs, size=(resamples, runs, tasks))


def percentile_interval(values: Scores, confidence: float) -> Interval:
    """The middle ``confidence`` of bootstrap values (percentile method, as rliable prints it)."""
    low, high = np.quantile(values, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(low), float(high))


def small_sample_stretch(runs: int, tasks: int, confidence: float) -> float:
    """How much wider than its percentiles a bootstrap interval has to be when there are few runs.

    The plain percentile interval is too narrow for two reasons: resampling N runs has the variance of a sample
    divided by N rather than N - 1, and it uses normal where Student's t belongs. The factor
    sqrt(N / (N - 1)) * t / z undoes both; it tends to 1 as N grows (Hesterberg 2015, arXiv 1411.5279, section 5.3).
    With 5 runs the plain interval holds the truth about 84% of the time for the mean, this one 94%.

    Raises:
        ValueError: there are fewer than two runs.
    """
    if runs < 2:
        raise ValueError("an interval needs at least two runs")
    tail = (1 + confidence) / 2
    return float(
        np.sqrt(runs / (runs - 1)) * stdtrit(tasks * (runs - 1), tail) / ndtri(tail),
    )


def stretch(interval: Interval, center: float, factor: float) -> Interval:
    """Both ends moved away from ``center`` by a factor."""
    return Interval(center + factor * (interval.low - center), center + factor * (interval.high - center))


def bootstrap_interval(
    scores_NM: Scores,
    statistic: Aggregate,
    rng: np.random.Generator,
    *,
    confidence: float,
    resamples: int,
    corrected: bool = True,
) -> Interval:
    """Interval of a statistic of N >= 2 runs on M tasks.

    Args:
        scores_NM: one score per run and task.
        statistic: maps (..., N, M) to (...).
        rng: the only source of randomness.
        confidence: e.g. 0.95.
        resamples: bootstrap draws; at least 2000 keeps the ends steady.
        corrected: apply `small_sample_stretch`; without it this is rliable's interval.

    Raises:
        ValueError: there are fewer than two runs.
    """
    plain, wide = bootstrap_ends(scores_NM, draw_runs(scores_NM, rng, resamples), statistic, confidence)
    return wide if corrected else plain


def bootstrap_ends(
    scores_NM: Scores, drawn_RNM: NDArray[np.int64], statistic: Aggregate, confidence: float
) -> tuple[Interval, Interval]:
    """Interval of a statistic over resamples that are drawn already: rliable's, and stretched for few runs.

    Drawing takes longer than most statistics do; several of the same runs share what was drawn.

    Args:
        scores_NM: one score per run and task.
        drawn_RNM: which runs were drawn (`draw_runs`).
        statistic: maps (..., N, M) to (...).
        confidence: e.g. 0.95.

    Raises:
        ValueError: there are fewer than two runs.
    """
    runs, tasks = scores_NM.shape
    factor = small_sample_stretch(runs, tasks, confidence)
    plain = percentile_interval(statistic(scores_of(scores_NM, drawn_RNM)), confidence)
    return plain, stretch(plain, float(statistic(scores_NM)), factor)


def performance_profile(
    scores_NM: Scores, thresholds_T: Scores, rng: np.random.Generator, *, confidence: float, resamples: int
) -> Profile:
    """Share of runs that score strictly above each threshold, averaged over tasks, with a pointwise band."""
    share_T = _above(scores_NM, thresholds_T)
    drawn = _above(resample(scores_NM, rng, resamples), thresholds_T)
    low_T, high_T = np.quantile(drawn, [(1 - confidence) / 2, (1 + confidence) / 2], axis=0)
    return Profile(share_T, low_T, high_T)


def _above(scores: Scores, thresholds_T: Scores) -> Scores:
    """(..., N, M) and (T,) -> (..., T)."""
    return np.asarray((scores[..., None] > thresholds_T).mean(axis=(-3, -2)))
