"""Extreme eigenvalues of symmetric operators that can only be multiplied with vectors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

# A new direction shorter than this fraction of the operator's size is rounding: the Krylov space is exhausted.
_BREAKDOWN = 1e-10


@dataclass(frozen=True)
class Ritz:
    """Approximate eigenvalues of C operators.

    Attributes:
        values_CM: in ascending order.
        residuals_CM: an exact eigenvalue lies within this distance of the value beside it.
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

    Holds ``steps`` vectors of shape [C, D]. An operator whose Krylov space is exhausted goes on from a random vector
    orthogonal to it, so that no eigenvalue is missed for the choice of ``start_CD``.

    Args:
        times: the operators, one vector each: [C, D] -> [C, D].
        start_CD: start vectors, not zero.
        steps: products to make, at most D.
        generator: draws the vectors after an exhausted space; on the CPU.
        progress: called with (products made, ``steps``).
    """
    steps = min(steps, start_CD.shape[-1])
    basis: list[Tensor] = [start_CD / start_CD.norm(dim=-1, keepdim=True)]
    diagonal: list[Tensor] = []
    beside: list[Tensor] = []
    for step in range(steps):
        product_CD = times(basis[-1])
        diagonal.append((product_CD * basis[-1]).sum(-1))
        rest_CD = _orthogonal(product_CD, basis)
        length_C = rest_CD.norm(dim=-1)
        scale_C = torch.stack([v.abs() for v in (*diagonal, *beside)]).amax(0)
        done_C = length_C <= _BREAKDOWN * scale_C
        beside.append(torch.where(done_C, 0.0, length_C))
        if progress is not None:
            progress(step + 1, steps)
        if step + 1 == steps:
            break
        if bool(done_C.any()):
            fresh_CD = torch.randn(rest_CD.shape, generator=generator, dtype=rest_CD.dtype).to(rest_CD.device)
            rest_CD = torch.where(done_C.unsqueeze(-1), _orthogonal(fresh_CD, basis), rest_CD)
        basis.append(rest_CD / rest_CD.norm(dim=-1, keepdim=True))
    return _ritz(torch.stack(diagonal, -1), torch.stack(beside, -1))


def _orthogonal(vector_CD: Tensor, basis: list[Tensor]) -> Tensor:
    """What the basis leaves of a vector. Twice is enough (Kahan, Parlett)."""
    for _ in range(2):
        for direction_CD in basis:
            vector_CD = vector_CD - (vector_CD * direction_CD).sum(-1, keepdim=True) * direction_CD
    return vector_CD


def _ritz(diagonal_CM: Tensor, beside_CM: Tensor) -> Ritz:
    matrix_CMM = torch.diag_embed(diagonal_CM.double())
    off_CM = beside_CM[:, :-1].double()
    matrix_CMM = matrix_CMM + torch.diag_embed(off_CM, offset=1) + torch.diag_embed(off_CM, offset=-1)
    values_CM, vectors_CMM = torch.linalg.eigh(matrix_CMM)
    residuals_CM = beside_CM[:, -1:].double() * vectors_CMM[:, -1, :].abs()
    return Ritz(values_CM, residuals_CM)
