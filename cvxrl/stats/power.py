"""How many seeds would settle it."""

from __future__ import annotations

from math import ceil

import numpy as np

from cvxrl.stats.aggregate import Scores
from cvxrl.stats.permutation import smallest_p_value
from cvxrl.stats.student import normal_quantile

MOST_SEEDS = 10_000  # an effect that would need more is none


def required_seeds(x: Scores, y: Scores, alpha: float, power: float) -> int | None:
    """Seeds per method with which a difference as large as the observed one is found with probability ``power``.

    n = 2 (z_{1-alpha/2} + z_power)^2 s^2 / d^2 + z_{1-alpha/2}^2 / 4 for a two-sided comparison of two means (Guenther
    1981), with d the observed difference and s^2 the mean of the two variances; and never fewer than a permutation
    test needs to reach alpha at all. The observed difference is itself uncertain, so this is an order of magnitude.

    Args:
        x: scores of one method, at least two.
        y: scores of the other, at least two.
        alpha: level that the p-value has to reach.
        power: e.g. 0.8.

    Returns:
        Seeds per method, or None where no difference was seen or more than `MOST_SEEDS` would be needed.
    """
    difference = float(x.mean() - y.mean())
    if difference == 0:
        return None
    variance = float(x.var(ddof=1) + y.var(ddof=1)) / 2
    z_alpha, z_power = normal_quantile(1 - alpha / 2), normal_quantile(power)
    with np.errstate(over="ignore"):
        needed = 2 * (z_alpha + z_power) ** 2 * variance / difference**2 + z_alpha**2 / 4
    if not needed <= MOST_SEEDS:
        return None
    seeds = max(2, ceil(needed))
    while smallest_p_value(seeds, seeds) > alpha:
        seeds += 1
    return seeds
