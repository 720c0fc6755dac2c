"""Performance profiles: the share of runs above every score (arXiv 2108.13264, run-score distribution)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cvxrl.stats.aggregate import Scores
from cvxrl.stats.bootstrap import resample


@dataclass(frozen=True)
class Profile:
    """Share of runs above each threshold.

    Attributes:
        share_T: one share per threshold.
        low_T, high_T: pointwise bootstrap percentiles.
    """

    share_T: Scores
    low_T: Scores
    high_T: Scores


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
