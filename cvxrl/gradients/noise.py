"""The gradient noise scale B_simple = tr(Sigma) / |G|^2 from minibatch gradients (arXiv 1812.06162, appendix A.1)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from cvxrl.stats.student import student_quantile

# Below this the jackknife's variance rests on two numbers or fewer.
MIN_MINIBATCHES = 4


@dataclass(frozen=True)
class NoiseScale:
    """The batch size at which the gradient's noise is as large as the gradient.

    Attributes:
        value: noise / signal; infinity if the signal's estimate is not above zero.
        low: lower end of the interval; at least 0.
        high: upper end; infinity if the minibatches do not tell |G|^2 from zero.
        level: nominal coverage of the interval.
        signal: unbiased estimate of |G|^2; may come out negative.
        noise: unbiased estimate of tr(Sigma), the variance of a single example's gradient.
        snr: |G|^2 over the variance of a minibatch gradient.
        minibatches: K.
    """

    value: float
    low: float
    high: float
    level: float
    signal: float
    noise: float
    snr: float
    minibatches: int


def noise_scale(matrix_KK: Tensor, batch_size: float, *, level: float = 0.9) -> NoiseScale:
    """Noise scale and its interval from the inner products of K gradients, each the mean over ``batch_size`` examples.

    |G|^2 is the mean of g_i . g_j over i != j and tr(Sigma) / b is the mean of |g_i|^2 minus that; the same numbers as
    from the two batch sizes b and K b. The interval is Fieller's for their ratio, with the jackknife covariance of the
    two over minibatches and Student's t with K - 1 degrees of freedom.

    Args:
        matrix_KK: inner products (`gram.Gram.matrix`).
        batch_size: independent examples per minibatch, in the unit that the noise scale shall have. Samples of one
            prompt are not independent: count prompts.
        level: nominal coverage.

    Raises:
        ValueError: fewer than `MIN_MINIBATCHES` gradients.
    """
    size = matrix_KK.shape[0]
    if size < MIN_MINIBATCHES:
        raise ValueError(f"the noise scale needs at least {MIN_MINIBATCHES} minibatches, got {size}")
    products_KK = matrix_KK.double()
    squares_K, rows_K = products_KK.diagonal(), products_KK.sum(-1)
    both = _signal_and_noise(squares_K.sum(), rows_K.sum() - squares_K.sum(), size, batch_size)
    # Leaving minibatch i out takes away its square and twice its products with the others.
    left_K2 = _signal_and_noise(
        squares_K.sum() - squares_K, rows_K.sum() - squares_K.sum() - 2.0 * (rows_K - squares_K), size - 1, batch_size
    )
    centred_K2 = left_K2 - left_K2.mean(0)
    covariance_22 = (size - 1) / size * centred_K2.T @ centred_K2
    signal, noise = both.tolist()
    low, high = _fieller(signal, noise, covariance_22, student_quantile(0.5 + 0.5 * level, size - 1))
    return NoiseScale(
        value=max(noise, 0.0) / signal if signal > 0 else math.inf,
        low=low,
        high=high,
        level=level,
        signal=signal,
        noise=noise,
        snr=signal * batch_size / noise if noise > 0 else math.inf,
        minibatches=size,
    )


def _signal_and_noise(squares: Tensor, products: Tensor, size: int, batch_size: float) -> Tensor:
    """|G|^2 and tr(Sigma) from the sum of squared norms and the sum of products of different gradients, [..., 2]."""
    signal = products / (size * (size - 1))
    return torch.stack([signal, batch_size * (squares / size - signal)], dim=-1)


def _fieller(signal: float, noise: float, covariance_22: Tensor, t: float) -> tuple[float, float]:
    """All ratios B >= 0 with |noise - B signal| within t of its standard errors."""
    (ss, sn), (_, nn) = covariance_22.tolist()
    # (noise - B signal)^2 <= t^2 (nn - 2 B sn + B^2 ss), a quadratic in B.
    a = signal**2 - t**2 * ss
    b = signal * noise - t**2 * sn
    c = noise**2 - t**2 * nn
    inside = b * b - a * c
    if inside < 0:
        # Only possible for a < 0: every ratio is within reach.
        return 0.0, math.inf
    root = math.sqrt(inside)
    if a > 0 and signal < 0:
        # Chance far in the tail: |G|^2 cannot be negative, so all that is known is that it is small.
        return 0.0, math.inf
    if a <= 0:
        # The signal is not told from zero: the set reaches infinity. b - root <= 0 there, so this root is c's side.
        bound = c / (b + root) if b + root > 0 else 0.0
        return max(bound, 0.0), math.inf
    return max((b - root) / a, 0.0), max((b + root) / a, 0.0)
