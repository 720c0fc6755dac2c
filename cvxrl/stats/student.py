"""Quantiles of the normal and of Student's t distribution, without SciPy."""

from __future__ import annotations

import math
from statistics import NormalDist


def normal_quantile(probability: float) -> float:
    """Value below which a standard normal variable falls with a probability in (0, 1)."""
    return NormalDist().inv_cdf(probability)


def student_quantile(probability: float, freedom: int) -> float:
    """Value below which Student's t with ``freedom`` >= 1 degrees of freedom falls, by bisection.

    Raises:
        ValueError: the probability is not in [0.5, 1), or there is no degree of freedom.
    """
    if not 0.5 <= probability < 1 or freedom < 1:
        raise ValueError(f"needs a probability in [0.5, 1) and freedom >= 1, got {probability} and {freedom}")
    central = 2 * probability - 1
    low, high = 0.0, 1.0
    while _central_mass(high, freedom) < central:
        high *= 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if _central_mass(middle, freedom) < central else (low, middle)
    return (low + high) / 2


def _central_mass(t: float, freedom: int) -> float:
    """P(|T| <= t), exactly, as a finite sum (Abramowitz and Stegun 1964, eq. 26.7.3 and 26.7.4)."""
    theta = math.atan(t / math.sqrt(freedom))
    cosine_squared = math.cos(theta) ** 2
    odd = freedom % 2
    term, total = (math.cos(theta), 0.0) if odd else (1.0, 0.0)
    for k in range((freedom - 1) // 2 if odd else freedom // 2):
        total += term
        term *= cosine_squared * ((2 * k + 2) / (2 * k + 3) if odd else (2 * k + 1) / (2 * k + 2))
    if odd:
        return 2 / math.pi * (theta + math.sin(theta) * total)
    return math.sin(theta) * total
