"""Permutation tests, exact where feasible; Holm's correction; and how many seeds a test would need."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from math import ceil, comb

import numpy as np
from numpy.typing import NDArray

from cvxrl.stats.aggregate import Scores
from cvxrl.stats.student import normal_quantile

EXACT_LIMIT = 50_000  # relabelings that are enumerated (9 against 9); above, as many as asked for are drawn
MOST_SEEDS = 10_000  # an effect that would need more is none
# Sums of the same numbers in another order differ in the last bits; a tie must count as a tie.
_TIE = 1e-9


def permutation_p_value(x: Scores, y: Scores, rng: np.random.Generator, draws: int) -> float:
    """Two-sided p-value of |mean(x) - mean(y)| when the labels of all runs are shuffled.

    Exact (every relabeling) up to `EXACT_LIMIT` of them, else (1 + hits) / (1 + draws), which is valid too
    (Phipson and Smyth 2010). Runs of the same seed are not kept together: with 5 seeds a test that flips the signs of
    paired differences cannot go below 2 / 2^5 = 0.0625.

    Args:
        x: scores of one method, shape (N,).
        y: scores of the other, shape (K,).
        rng: used only when relabelings are drawn.
        draws: number of relabelings when they are not enumerated.
    """
    pooled, size = np.concatenate([x, y]), len(x)
    if comb(len(pooled), size) <= EXACT_LIMIT:
        chosen = np.array(list(combinations(range(len(pooled)), size)))
        return float(np.mean(_at_least(_differences(pooled, chosen), x, y, pooled)))
    shuffled = rng.permuted(np.tile(np.arange(len(pooled)), (draws, 1)), axis=1)[:, :size]
    hits = int(_at_least(_differences(pooled, shuffled), x, y, pooled).sum())
    return (1 + hits) / (1 + draws)


def sign_flip_p_value(differences: Scores, rng: np.random.Generator, draws: int) -> float:
    """Two-sided p-value of |mean| when the signs of paired differences, shape (N,), are flipped at random."""
    count = len(differences)
    if 2**count <= EXACT_LIMIT:
        bits = (np.arange(2**count)[:, None] >> np.arange(count)) & 1
        means = np.abs(((2 * bits - 1) * differences).mean(axis=1))
    else:
        means = np.abs((rng.choice([-1.0, 1.0], size=(draws, count)) * differences).mean(axis=1))
    hits = means >= abs(differences.mean()) - _TIE * max(1.0, float(np.abs(differences).max()))
    return float(hits.mean()) if 2**count <= EXACT_LIMIT else (1 + int(hits.sum())) / (1 + draws)


def smallest_p_value(runs: int, others: int) -> float:
    """What `permutation_p_value` gives when the two methods do not overlap at all."""
    mirrored = 2 if runs == others else 1  # swapping equal groups gives the same absolute difference
    return mirrored / comb(runs + others, runs)


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values (Holm 1979): all at or below alpha may be rejected at a family-wise error of alpha."""
    count = len(p_values)
    adjusted = [0.0] * count
    highest = 0.0
    for rank, index in enumerate(sorted(range(count), key=lambda i: p_values[i])):
        highest = max(highest, min(1.0, (count - rank) * p_values[index]))
        adjusted[index] = highest
    return adjusted


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


def _differences(pooled: Scores, chosen: NDArray[np.int64]) -> Scores:
    """|mean(first group) - mean(second)| for every row of indices of the first group."""
    size, others = chosen.shape[1], len(pooled) - chosen.shape[1]
    sums = pooled[chosen].sum(axis=1)
    return np.asarray(np.abs(sums / size - (pooled.sum() - sums) / others))


def _at_least(differences: Scores, x: Scores, y: Scores, pooled: Scores) -> NDArray[np.bool_]:
    observed = abs(float(x.mean() - y.mean()))
    return np.asarray(differences >= observed - _TIE * max(1.0, float(np.abs(pooled).max())))
