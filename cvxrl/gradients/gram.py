"""Inner products between gradients, and what follows from them: cosines, sign splits, shares, the noise scale."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from scipy.special import stdtrit
from torch import Tensor

from cvxrl.gradients.parameters import Vectors

# Numbers per gradient that are converted to float64 at a time.
_PIECE = 2**20
# Share of the largest gradient's norm below which another is rounding.
_ROUNDING = 1e-5


class Gram:
    """Collects gradients one at a time and the inner products of each with all before it.

    Holds a copy of every gradient in ``dtype``: K times the model's size. In bfloat16 an entry is rounded by at most
    2^-9 of itself, which moves the cosine of two gradients by about 1e-6.
    """

    def __init__(self, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> None:
        """Start empty. ``dtype`` and ``device`` of the copies: None for those of the gradients."""
        self._dtype, self._device = dtype, device
        self._held: list[dict[str, Tensor]] = []
        self._rows: list[list[float]] = []

    def add(self, gradient: Vectors) -> int:
        """Take a gradient in and return its number.

        Raises:
            ValueError: its parameters differ from those of the first gradient.
        """
        if self._held and gradient.keys() != self._held[0].keys():
            raise ValueError(f"parameters differ: {sorted(gradient.keys() ^ self._held[0].keys())[:3]}")
        kept = {
            name: tensor.detach().reshape(-1).to(device=self._device, dtype=self._dtype, copy=True)
            for name, tensor in gradient.items()
        }
        self._held.append(kept)
        row_K = torch.zeros(len(self._held), dtype=torch.float64)
        for name, tensor in kept.items():
            for start in range(0, tensor.numel(), _PIECE):
                pieces = [held[name][start : start + _PIECE].double() for held in self._held]
                row_K += torch.stack([torch.dot(piece, pieces[-1]) for piece in pieces]).cpu()
        self._rows.append(row_K.tolist())
        return len(self._rows) - 1

    def matrix(self) -> Tensor:
        """Inner products of all gradients so far, float64 [K, K]."""
        size = len(self._rows)
        matrix_KK = torch.zeros(size, size, dtype=torch.float64)
        for i, row in enumerate(self._rows):
            products = torch.tensor(row, dtype=torch.float64)
            matrix_KK[i, : i + 1] = products
            matrix_KK[: i + 1, i] = products
        return matrix_KK

    def clear(self) -> None:
        """Drop the copies; the inner products stay."""
        self._held.clear()


@dataclass(frozen=True)
class SignSplit:
    """Gradient of the tokens with A > 0 against that of the tokens with A < 0.

    Attributes:
        positive: norm of the first.
        negative: norm of the second.
        cosine: between them; NaN if one is zero.
        negative_mass: negative / (positive + negative); NaN if both are zero.
        cancelled: 1 - |sum| / (positive + negative): what is lost because they pull against each other.
    """

    positive: float
    negative: float
    cosine: float
    negative_mass: float
    cancelled: float


def cosines(matrix_KK: Tensor) -> Tensor:
    """Cosine of every pair, [K, K]; NaN beside a zero gradient."""
    norms_K = matrix_KK.diagonal().sqrt()
    return matrix_KK / torch.outer(norms_K, norms_K)


def has_gradient(matrix_KK: Tensor) -> Tensor:
    """Which gradients are more than the rounding of float32 beside the largest of them, bool [K].

    A zero that was computed in float32 is 1e-8 long or so; it has a direction, but not one that means anything.
    """
    squares_K = matrix_KK.diagonal()
    return squares_K > _ROUNDING**2 * squares_K.max()


def mean_pairwise_cosine(matrix_KK: Tensor) -> float | None:
    """Mean cosine over the pairs of different gradients, whose spread says how far minibatches agree.

    Gradients that are zero, or no more than rounding beside the largest, are left out; None if fewer than two are left.
    """
    chosen_K = has_gradient(matrix_KK)
    size = int(chosen_K.sum())
    if size < 2:
        return None
    upper = torch.triu_indices(size, size, offset=1)
    return float(cosines(matrix_KK[chosen_K][:, chosen_K])[upper[0], upper[1]].mean())


def norm_shares(matrix_KK: Tensor) -> Tensor:
    """Norm of each part of a gradient over the sum of all parts' norms, [K]: the share of each decile, say."""
    norms_K = matrix_KK.diagonal().sqrt()
    return norms_K / norms_K.sum()


def sign_split(matrix_22: Tensor) -> SignSplit:
    """Split of a gradient by the sign of the advantage, from the inner products of (positive, negative)."""
    positive, negative = matrix_22.diagonal().sqrt().unbind()
    both = positive + negative
    whole = matrix_22.sum().clamp(min=0.0).sqrt()
    return SignSplit(
        positive=float(positive),
        negative=float(negative),
        cosine=float(matrix_22[0, 1] / (positive * negative)),
        negative_mass=float(negative / both),
        cancelled=float(1.0 - whole / both),
    )


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
        matrix_KK: inner products (`Gram.matrix`).
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
    low, high = _fieller(signal, noise, covariance_22, float(stdtrit(size - 1, 0.5 + 0.5 * level)))
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
