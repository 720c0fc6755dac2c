"""How large a share can be, of which a few runs or answers were seen."""

from __future__ import annotations

from math import comb, sqrt

import numpy as np
from scipy.special import betaincinv, ndtri, stdtrit

from cvxrl.stats.aggregate import Scores
from cvxrl.stats.bootstrap import Interval


def exact_interval(hits: int, count: int, confidence: float) -> Interval:
    """Clopper and Pearson's interval of a share: it holds the truth at least as often as promised, for any count.

    None of 5 runs failed: up to 52% may fail.

    Args:
        hits: 0 to ``count``.
        count: at least 1.
        confidence: e.g. 0.95.

    Raises:
        ValueError: there are more hits than trials, or none of those.
    """
    if not 0 <= hits <= count or count < 1:
        raise ValueError(f"{hits} of {count} is no share")
    tail = (1 - confidence) / 2
    low = float(betaincinv(hits, count - hits + 1, tail)) if hits else 0.0
    high = float(betaincinv(hits + 1, count - hits, 1 - tail)) if hits < count else 1.0
    return Interval(low, high)


def exact_p(hits: int, count: int, other_hits: int, other_count: int) -> float:
    """Two-sided p of Fisher's exact test that two shares are equal: of all tables as unlikely as this one, or more.

    None of 8 against 5 of 8: 0.026.
    """
    both = hits + other_hits

    def ways(k: int) -> int:
        return comb(count, k) * comb(other_count, both - k)

    tables = [ways(k) for k in range(max(0, both - other_count), min(both, count) + 1)]
    return sum(table for table in tables if table <= ways(hits)) / sum(tables)


def smoothed_error(share_T: Scores, count: float) -> Scores:
    """Standard errors of shares with two successes and two failures added (Agresti and Coull 1998).

    Never 0: twenty right answers of twenty do not prove that the next one is right.

    Args:
        share_T: observed, in [0, 1].
        count: independent trials behind each.
    """
    added_T = (share_T * count + 2) / (count + 4)
    return np.sqrt(added_T * (1 - added_T) / (count + 4))


def clustered_share_interval(share: float, error: float, clusters: int, trials: int, confidence: float) -> Interval:
    """Wilson's interval of a share of trials that come in clusters, such as several answers to each question.

    The number of independent trials that would have this standard error takes the place of their number (Korn and
    Graubard 1998), never below that of the clusters nor above that of the trials, and Student's t that of the normal.
    Unlike share +- 1.96 errors it has a width where every answer is right: 15 right of 15 leave 20% wrong.

    Args:
        share: observed.
        error: its standard error over clusters.
        clusters: at least two.
        trials: of all clusters.
        confidence: e.g. 0.95.
    """
    spread = share * (1 - share)
    alone = min(max(spread / error**2, clusters), trials) if error > 0 else clusters
    t = float(stdtrit(clusters - 1, (1 + confidence) / 2))
    shrink = 1 / (1 + t**2 / alone)
    center, half = (share + t**2 / (2 * alone)) * shrink, t * shrink * sqrt(spread / alone + (t / (2 * alone)) ** 2)
    # Rounding must not put the share outside, where one end is the share itself.
    low, high = min(center - half, share), max(center + half, share)
    return Interval(max(0.0, low), min(1.0, high))


def z_of(confidence: float) -> float:
    """Half-width of a two-sided normal interval, in standard errors."""
    return float(ndtri((1 + confidence) / 2))
