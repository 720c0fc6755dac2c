"""A share or a mean over tokens that come in clusters, such as the prompts of a rollout, with the clusters' error.

Tokens of one prompt resemble each other, so another rollout differs by prompts and not by tokens: with 16 prompts, a
share of 2000 tokens is known as well as 16 draws allow.
"""

from __future__ import annotations

from math import sqrt

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from cvxrl.stats.bootstrap import Interval
from cvxrl.stats.proportion import exact_interval

Numbers = NDArray[np.float64]


def ratio_interval(sums_C: Numbers, counts_C: Numbers, confidence: float) -> Interval | None:
    """Interval of sum(sums) / sum(counts), by the variance of its linearisation over clusters and Student's t.

    Args:
        sums_C: sum over the tokens of each cluster.
        counts_C: tokens of each cluster; clusters without any are left out.
        confidence: e.g. 0.95.

    Returns:
        None with fewer than two clusters that have tokens.
    """
    kept = counts_C > 0
    sums, counts = sums_C[kept], counts_C[kept]
    if len(sums) < 2:
        return None
    ratio = sums.sum() / counts.sum()
    rest = sums - ratio * counts
    error = sqrt(len(rest) / (len(rest) - 1) * float((rest**2).sum())) / float(counts.sum())
    half = float(stdtrit(len(rest) - 1, (1 + confidence) / 2)) * error
    return Interval(float(ratio) - half, float(ratio) + half)


def share_interval(hits_C: Numbers, counts_C: Numbers, confidence: float) -> Interval | None:
    """The same for a share of the tokens, within [0, 1].

    Where no cluster, or every token of every cluster, has the property, nothing varies; what is known then is how large
    a share of the clusters may differ (Clopper and Pearson), and that share of the tokens at most.

    Args:
        hits_C: tokens of each cluster that have the property.
        counts_C: tokens of each cluster.
        confidence: e.g. 0.95.
    """
    found = ratio_interval(hits_C, counts_C, confidence)
    clusters = int((counts_C > 0).sum())
    if found is None:
        return None
    if not hits_C.any():
        return Interval(0.0, exact_interval(0, clusters, confidence).high)
    if (hits_C == counts_C).all():
        return Interval(exact_interval(clusters, clusters, confidence).low, 1.0)
    return found.within(0.0, 1.0)
