"""The mean difference of two methods, paired by seed."""

from __future__ import annotations

import numpy as np

from cvxrl.stats.aggregate import Scores, mean
from cvxrl.stats.bootstrap import (
    Interval,
    bootstrap_interval,
    percentile_interval,
    resample,
    small_sample_stretch,
    stretch,
)


def paired_interval(x: Scores, y: Scores, rng: np.random.Generator, *, confidence: float, resamples: int) -> Interval:
    """Interval of mean(x - y) over N >= 2 seeds that both methods ran; pairs are resampled together.

    Args:
        x: scores of one method, shape (N,).
        y: scores of the other for the same seeds in the same order, shape (N,).
        rng: the only source of randomness.
        confidence: e.g. 0.95.
        resamples: bootstrap draws.
    """
    if x.shape != y.shape:
        raise ValueError(f"pairs need the same seeds, got {x.shape} and {y.shape}")
    return bootstrap_interval((x - y)[:, None], mean, rng, confidence=confidence, resamples=resamples)


def unpaired_interval(x: Scores, y: Scores, rng: np.random.Generator, *, confidence: float, resamples: int) -> Interval:
    """Interval of mean(x) - mean(y) when the methods share no seeds: each is resampled on its own."""
    values = mean(resample(x[:, None], rng, resamples)) - mean(resample(y[:, None], rng, resamples))
    factor = small_sample_stretch(min(len(x), len(y)), 1, confidence)
    return stretch(percentile_interval(np.asarray(values), confidence), float(x.mean() - y.mean()), factor)
