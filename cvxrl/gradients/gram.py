"""Inner products between gradients: all that cosines, sign splits, deciles and the noise scale need."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cvxrl.gradients.parameters import Vectors

# Numbers per gradient that are converted to float64 at a time.
_PIECE = 2**20


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


def mean_pairwise_cosine(matrix_KK: Tensor) -> float:
    """Mean cosine over the pairs of different gradients, whose spread says how far minibatches agree.

    Raises:
        ValueError: fewer than two gradients.
    """
    size = matrix_KK.shape[0]
    if size < 2:
        raise ValueError(f"a cosine between minibatches needs at least 2 of them, got {size}")
    upper = torch.triu_indices(size, size, offset=1)
    return float(cosines(matrix_KK)[upper[0], upper[1]].mean())


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
