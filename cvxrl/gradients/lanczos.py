"""Extreme eigenvalues of symmetric operators that can only be multiplied with vectors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

# A new direction shorter than this fraction of the operator's size is rounding: the Krylov space is exhausted.
_BREAKDOWN = 1e-10
# Numbers per vector that are converted to float64 at a time: no second copy of a model's gradient exists.
_PIECE = 2**18
# Roundings of the operator's size by which rounded products are trusted to be off without showing it.
_ROUNDINGS = 16


@dataclass(frozen=True)
class Ritz:
    """Approximate eigenvalues of C operators.

    Attributes:
        values_CM: in ascending order.
        residuals_CM: an exact eigenvalue lies within this distance of the value beside it: what the Krylov space leaves
            of the eigenvector, and what the products' own rounding shows of itself.
    """

    values_CM: Tensor
    residuals_CM: Tensor


def lanczos(
    times: Callable[[Tensor], Tensor],
    start_CD: Tensor,
    steps: int,
    generator: torch.Generator,
    progress: Callable[[int, int], None] | None = None,
) -> Ritz:
    """Lanczos with full reorthogonalisation, for several operators side by side.

    Holds ``steps`` vectors of shape [C, D] in the type of ``start_CD``; norms and inner products are summed in float64,
    whatever it is. An operator whose Krylov space is exhausted goes on from a random vector orthogonal to it, so that
    no eigenvalue is missed for the choice of ``start_CD``.

    The products of a symmetric operator with the basis make a tridiagonal matrix. What rounded products leave off its
    three diagonals is noise; its norm is added to the residuals, and so is the rounding that leaves no such trace, 16
    units in the last place of the operator's size.

    Args:
        times: the operators, one vector each: [C, D] -> [C, D].
        start_CD: start vectors, not zero.
        steps: products to make, at most D.
        generator: draws the vectors after an exhausted space; on the CPU.
        progress: called with (products made, ``steps``).
    """
    steps = min(steps, start_CD.shape[-1])
    basis: list[Tensor] = [_normed(start_CD)]
    diagonal: list[Tensor] = []
    beside: list[Tensor] = []
    noise_C = torch.zeros(start_CD.shape[0], dtype=torch.float64, device=start_CD.device)
    for step in range(steps):
        product_CD = times(basis[-1])
        rest_CD, along_CM = _orthogonal(product_CD, basis)
        diagonal.append(along_CM[:, -1])
        noise_C += _off_diagonal(along_CM, beside)
        length_C = norms(rest_CD)
        scale_C = torch.stack([v.abs() for v in (*diagonal, *beside)]).amax(0)
        done_C = length_C <= _BREAKDOWN * scale_C
        beside.append(torch.where(done_C, 0.0, length_C))
        if progress is not None:
            progress(step + 1, steps)
        if step + 1 == steps:
            break
        if bool(done_C.any()):
            fresh_CD = torch.randn(rest_CD.shape, generator=generator, dtype=rest_CD.dtype).to(rest_CD.device)
            rest_CD = torch.where(done_C.unsqueeze(-1), _orthogonal(fresh_CD, basis)[0], rest_CD)
        basis.append(_normed(rest_CD))
    noise_C = noise_C.sqrt() + _ROUNDINGS * torch.finfo(start_CD.dtype).eps * scale_C
    return _ritz(torch.stack(diagonal, -1), torch.stack(beside, -1), noise_C)


def inner(a_CD: Tensor, b_CD: Tensor) -> Tensor:
    """Inner products of the rows, float64 [C]: multiplied and summed in float64, a piece at a time.

    A norm that is summed in float32 is 3e-4 low on a vector of a million numbers and 2e-3 low on one of 28 million.
    """
    size = max(1, _PIECE // a_CD.shape[0])
    total_C = torch.zeros(a_CD.shape[0], dtype=torch.float64, device=a_CD.device)
    for left_CD, right_CD in zip(torch.split(a_CD, size, -1), torch.split(b_CD, size, -1), strict=True):
        total_C += (left_CD.double() * right_CD.double()).sum(-1)
    return total_C


def norms(vector_CD: Tensor) -> Tensor:
    """Euclidean norms of the rows, float64 [C]; see `inner`."""
    return inner(vector_CD, vector_CD).sqrt()


def _normed(vector_CD: Tensor) -> Tensor:
    return vector_CD / norms(vector_CD).to(vector_CD.dtype).unsqueeze(-1)


def _orthogonal(vector_CD: Tensor, basis: list[Tensor]) -> tuple[Tensor, Tensor]:
    """What the basis leaves of a vector, and its products with the basis, [C, M]. Twice is enough (Kahan, Parlett)."""
    along = []
    left_CD = vector_CD.clone()
    for _ in range(2):
        for direction_CD in basis:
            along.append(inner(left_CD, direction_CD))
            left_CD -= along[-1].to(left_CD.dtype).unsqueeze(-1) * direction_CD
    return left_CD, torch.stack(along[: len(basis)], -1)


def _off_diagonal(along_CM: Tensor, beside: list[Tensor]) -> Tensor:
    """Squared size of what a product has off the three diagonals, or unlike its mirror image on the upper one, [C]."""
    above_CM = along_CM[:, :-1].clone()
    if beside:
        above_CM[:, -1] -= beside[-1]
    return 2.0 * above_CM.square().sum(-1)


def _ritz(diagonal_CM: Tensor, beside_CM: Tensor, noise_C: Tensor) -> Ritz:
    off_CM = beside_CM[:, :-1]
    matrix_CMM = torch.diag_embed(diagonal_CM)
    matrix_CMM = matrix_CMM + torch.diag_embed(off_CM, offset=1) + torch.diag_embed(off_CM, offset=-1)
    values_CM, vectors_CMM = torch.linalg.eigh(matrix_CMM)
    residuals_CM = beside_CM[:, -1:] * vectors_CMM[:, -1, :].abs()
    return Ritz(values_CM, residuals_CM + noise_C.unsqueeze(-1))
