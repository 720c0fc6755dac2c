"""One number for the scores of several runs.

Scores have shape (..., N, M): N runs on M tasks. Leading axes are kept, so that a whole bootstrap is one call.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Scores = NDArray[np.float64]
Aggregate = Callable[[Scores], Scores]

_TRIMMED = 0.25  # share cut from either end by the interquartile mean


def mean(scores: Scores) -> Scores:
    """Mean over runs and tasks."""
    return np.asarray(_flat(scores).mean(axis=-1))


def median(scores: Scores) -> Scores:
    """Median over runs and tasks.

    rliable's `aggregate_median` is another number: the median over tasks of the mean over runs, which is the plain
    mean when there is one task.
    """
    return np.asarray(np.median(_flat(scores), axis=-1))


def iqm(scores: Scores) -> Scores:
    """Interquartile mean (arXiv 2108.13264): the mean without the floor(NM / 4) lowest and highest scores."""
    ordered = np.sort(_flat(scores), axis=-1)
    count = ordered.shape[-1]
    cut = int(_TRIMMED * count)
    return np.asarray(ordered[..., cut : count - cut].mean(axis=-1))


def _flat(scores: Scores) -> Scores:
    """Runs and tasks as one axis: (..., N, M) -> (..., N * M)."""
    if scores.ndim < 2 or 0 in scores.shape[-2:]:
        raise ValueError(f"scores need runs and tasks, got shape {scores.shape}")
    return scores.reshape(*scores.shape[:-2], -1)
