"""Difference of two means over training seeds: its interval and its test, from one standard error.

Seeds that both methods ran are alike in what they share (prompts, initial weights), so their scores may be correlated;
seeds that only one ran are not. The variance of the difference is that of Derrick, Russ, Toher and White (2017, Journal
of Modern Applied Statistical Methods 16(1):137) for samples that overlap in part:

    s_x^2 / n + s_y^2 / k - 2 c r s_x s_y / (n k)

with c shared seeds and r their correlation. With the same seeds on both sides it is that of the paired t test, with
no common seed that of Welch's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf, sqrt

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri, stdtr, stdtrit

from cvxrl.stats.bootstrap import Interval

# Scores that differ by less than this share of themselves are tied; a variance that cancels to less of its parts is 0.
_ROUNDING = 1e-12
# Below this many seeds Welch's degrees of freedom are themselves guesses: 3 against 20 would err in 8% instead of 5%.
_FEW = 5


@dataclass(frozen=True)
class MeanDifference:
    """mean(x) - mean(y) with what its interval and its test need.

    Attributes:
        estimate: the difference.
        error: its standard error; 0 where nothing varies.
        freedom: degrees of freedom of Student's t.
        shared: seeds that both ran.
    """

    estimate: float
    error: float
    freedom: float
    shared: int

    def interval(self, confidence: float) -> Interval | None:
        """Student's t interval; None where nothing varies, since tied scores are no proof of an exact difference."""
        if not self.error:
            return None
        half = float(stdtrit(self.freedom, (1 + confidence) / 2)) * self.error
        return Interval(self.estimate - half, self.estimate + half)

    @property
    def p_value(self) -> float | None:
        """Two-sided: below 1 - confidence exactly where the interval excludes 0. None as for the interval."""
        return 2 * float(stdtr(self.freedom, -abs(self.estimate) / self.error)) if self.error else None


def mean_difference(
    x: Mapping[int, float], y: Mapping[int, float], x_error: float = 0.0, y_error: float = 0.0
) -> MeanDifference:
    """Compare the means of two methods.

    Args:
        x: score of one method for each of its seeds, at least two.
        y: scores of the other.
        x_error: standard error with which one score of x was measured; scores that are tied differ by chance of the
            evaluation all the same, so the error of the difference is never below what these make of it.
        y_error: that of y.

    Raises:
        ValueError: a method has fewer than two seeds.
    """
    n, k = len(x), len(y)
    if min(n, k) < 2:
        raise ValueError(f"needs two seeds of each, got {n} and {k}")
    shared = sorted(x.keys() & y.keys())
    one, other = np.array(list(x.values())), np.array(list(y.values()))
    of_x, of_y = _variance(one) / n, _variance(other) / k
    variance = of_x + of_y - 2 * len(shared) * _correlation(x, y, shared) * sqrt(of_x * of_y / (n * k))
    if variance <= _ROUNDING * (of_x + of_y):
        variance = 0.0
    least = x_error**2 / n + y_error**2 / k
    freedom = _freedom(of_x, of_y, n, k, len(shared))
    return MeanDifference(float(one.mean() - other.mean()), sqrt(max(variance, least)), freedom, len(shared))


def needed_seeds(found: MeanDifference, seeds: int, confidence: float, power: float) -> int | None:
    """Fewest seeds per method with which the largest difference that the interval allows would be found.

    The observed difference is no guide: for two equal methods and 5 seeds, the number it asks for is anywhere between
    18 and 1256 in four of five experiments. Only this lower end is known; there is no upper one while the interval
    holds 0.

    Args:
        found: a difference whose interval holds 0.
        seeds: of the smaller method.
        confidence: of the verdict.
        power: chance to find it.

    Returns:
        Seeds per method, at least one more than there are; None where nothing varies.
    """
    interval = found.interval(confidence)
    if interval is None:
        return None
    largest = max(abs(interval.low), abs(interval.high))
    one_seed = found.error * sqrt(seeds)  # standard error with a single seed each
    wanted = (float(ndtri((1 + confidence) / 2)) + float(ndtri(power))) ** 2 * (one_seed / largest) ** 2
    return max(seeds + 1, int(np.ceil(wanted)))


def _variance(score_N: NDArray[np.float64]) -> float:
    """Variance between seeds, exactly 0 where they are tied: the mean of equal numbers may be another number."""
    return 0.0 if np.ptp(score_N) <= _ROUNDING * np.abs(score_N).max() else float(score_N.var(ddof=1))


def _correlation(x: Mapping[int, float], y: Mapping[int, float], shared: list[int]) -> float:
    """Correlation of the scores of shared seeds; 0 where there is none to be had.

    Where both methods have seeds of their own beside a few shared ones, a correlation that would narrow the interval is
    too unsure to be used (2 shared of 3, correlation 0.9: 18% errors); one that widens it is.
    """
    a, b = np.array([x[s] for s in shared]), np.array([y[s] for s in shared])
    if len(shared) < 2 or not a.std() or not b.std():
        return 0.0
    found = float(np.clip(np.corrcoef(a, b)[0, 1], -1, 1))
    return found if len(shared) == min(len(x), len(y)) else min(found, 0.0)


def _freedom(of_x: float, of_y: float, n: int, k: int, shared: int) -> float:
    fewest = min(n, k)
    if fewest < _FEW or shared == n == k:
        return fewest - 1.0
    spread = of_x**2 / (n - 1) + of_y**2 / (k - 1)
    welch = (of_x + of_y) ** 2 / spread if spread else inf
    if shared < fewest:
        return min(welch, n + k - 2.0)
    alone = n + k - 2 * shared
    return (shared - 1) + (min(welch, n + k - 2.0) - shared + 1) / (n + k) * alone
