"""Extreme eigenvalues of each token's logits Hessian: in closed form for log pi(a) alone, else by double backward.

The logits Hessian of every loss that depends on log pi(a) alone is b w w^T - a (diag r - r r^T). r is the softmax over
all tokens but the sampled one a, w = e_a - r. With l the log-odds of a and F the loss as a function of l, a = F'(l) and
b = F''(l): because dl/dz = w and d2l/dz2 = -(diag r - r r^T). Forward KL, whose Hessian is diag(p) - p p^T, is
a = -(1 - p_a), b = p_a (1 - p_a).

A vector y = alpha e_a + y' has the form b (alpha - r . y')^2 - a Var_r(y'). Both terms can be chosen freely if there
are three tokens or more, so the Hessian is positive semidefinite exactly if b >= 0 and a <= 0.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from cvxrl.gradients.lanczos import lanczos
from cvxrl.gradients.loss import Loss, Tape, of_logits
from cvxrl.gradients.select import position_in_unit, take, units
from cvxrl.objectives.batch import TokenBatch
from cvxrl.recipe.objective import ObjectiveSpec

# Halvings of a bracket: its width falls to 2^-60 of the Hessian's size, below float64's rounding of it.
_BISECTIONS = 60


def odds_signs(slope_N: Tensor, bend_N: Tensor, vocab: int, tolerance: float) -> tuple[Tensor, Tensor]:
    """Whether the Hessian is positive and whether it is negative semidefinite, [N] each.

    Args:
        slope_N: a = F'(l).
        bend_N: b = F''(l).
        vocab: number of tokens; with two the second term vanishes.
        tolerance: what counts as zero, as a fraction of |a| + |b|.
    """
    slack_N = tolerance * (slope_N.abs() + bend_N.abs())
    free_N = torch.full_like(slope_N, vocab < 3, dtype=torch.bool)
    psd_N = (bend_N >= -slack_N) & (free_N | (slope_N <= slack_N))
    nsd_N = (bend_N <= slack_N) & (free_N | (slope_N >= -slack_N))
    return psd_N, nsd_N


def odds_extremes(r_CV: Tensor, actions_C: Tensor, slope_C: Tensor, bend_C: Tensor) -> tuple[Tensor, Tensor]:
    """Smallest and largest eigenvalue, [C] each, by bisection on the number of eigenvalues above a point.

    Args:
        r_CV: softmax over the other tokens, zero at the sampled one.
        actions_C: sampled tokens.
        slope_C: a.
        bend_C: b.
    """
    if r_CV.shape[-1] < 3:
        only_C = bend_C * (1.0 + r_CV.square().sum(-1))
        return only_C.clamp(max=0.0), only_C.clamp(min=0.0)
    return -_largest(r_CV, actions_C, -slope_C, -bend_C), _largest(r_CV, actions_C, slope_C, bend_C)


def _largest(r_CV: Tensor, actions_C: Tensor, slope_C: Tensor, bend_C: Tensor) -> Tensor:
    """Largest eigenvalue of D + a r r^T + b w w^T with D = diag(-a r_j), [C]."""
    size_C = slope_C.abs() + bend_C.abs()
    unit_C = torch.where(size_C > 0, size_C, 1.0)
    slope_C, bend_C = slope_C / unit_C, bend_C / unit_C
    squares_C = r_CV.square().sum(-1)
    diagonal_CV = -slope_C.unsqueeze(-1) * r_CV
    # Without b the matrix is at most D for a < 0 and at most 0, an entry of D, for a > 0. Two downward updates move the
    # largest eigenvalue to the third largest entry of D at the lowest.
    top_C3 = diagonal_CV.topk(3, dim=-1).values
    low_C = top_C3[:, 2]
    high_C = top_C3[:, 0] + bend_C.clamp(min=0) * (1.0 + squares_C)
    count_above = _counter(r_CV, diagonal_CV, top_C3, slope_C, bend_C)
    for _ in range(_BISECTIONS):
        middle_C = 0.5 * (low_C + high_C)
        above_C = count_above(middle_C) > 0
        low_C, high_C = torch.where(above_C, middle_C, low_C), torch.where(above_C, high_C, middle_C)
    # A semidefinite Hessian has the eigenvalue 0 (adding a constant to all logits changes nothing).
    _, nsd_C = odds_signs(slope_C, bend_C, r_CV.shape[-1], tolerance=0.0)
    return torch.where(nsd_C, 0.0, 0.5 * (low_C + high_C) * size_C)


def _counter(
    r_CV: Tensor, diagonal_CV: Tensor, top_C3: Tensor, slope_C: Tensor, bend_C: Tensor
) -> Callable[[Tensor], Tensor]:
    """Number of eigenvalues above x, valid for x above the third largest entry of D.

    With U = [sqrt|a| r, sqrt|b| w] and J the signs of a and b, Sylvester's law on the block matrix
    [[D - x, U], [U^T, -J]] gives  above(M) = above(D) + positive(-J - U^T (D - x)^-1 U) - positive(-J).
    Because r_a = 0, the 2 x 2 matrix needs a single sum over the vocabulary, s = sum_j r_j^2 / (d_j - x).
    """
    squares_CV = r_CV.square()
    work_CV = torch.empty_like(r_CV)
    size_a_C, size_b_C = slope_C.abs(), bend_C.abs()
    sign_a_C, sign_b_C = torch.where(slope_C < 0, -1.0, 1.0), torch.where(bend_C < 0, -1.0, 1.0)
    before_C = (sign_a_C < 0).int() + (sign_b_C < 0).int()

    def count(x_C: Tensor) -> Tensor:
        torch.sub(diagonal_CV, x_C.unsqueeze(-1), out=work_CV)
        torch.div(squares_CV, work_CV, out=work_CV)
        s_C = work_CV.sum(-1)
        # Near a pole s is huge: written out, so that its squares cancel before they are rounded.
        beyond_C = s_C - 1.0 / x_C
        determinant_C = sign_a_C * sign_b_C + sign_a_C * size_b_C * beyond_C + sign_b_C * size_a_C * s_C
        determinant_C -= size_a_C * size_b_C * s_C / x_C
        trace_C = -sign_a_C - sign_b_C - size_a_C * s_C - size_b_C * beyond_C
        positive_C = torch.where(determinant_C < 0, 1, torch.where(trace_C > 0, 2, 0))
        return (top_C3 > x_C.unsqueeze(-1)).sum(-1) + positive_C - before_C

    return count


class _Blocks:
    """Products of the diagonal blocks d2L/dz_n2 of some tokens with one vector each."""

    def __init__(self, part: TokenBatch, spec: ObjectiveSpec, loss: Loss, weights_N: Tensor, wanted_C: Tensor) -> None:
        self.tape = Tape(of_logits(loss, part, weights_N), part.logits_NV)
        self.shape, self.rows_C = part.logits_NV.shape, wanted_C
        self.weights_C1 = weights_N[wanted_C].unsqueeze(-1)
        # Tokens of the same place in different units do not meet, so one product serves them all.
        places_C = position_in_unit(units(part, spec))[wanted_C]
        self.same = [torch.nonzero(places_C == place).squeeze(-1) for place in torch.unique(places_C)]
        if spec.coupling == "token":
            self.same = [torch.arange(wanted_C.numel(), device=wanted_C.device)]

    def times(self, vectors_CV: Tensor) -> Tensor:
        out_CV = torch.empty_like(vectors_CV)
        for chosen in self.same:
            padded_NV = vectors_CV.new_zeros(self.shape)
            padded_NV[self.rows_C[chosen]] = vectors_CV[chosen]
            out_CV[chosen] = self.tape.times(padded_NV)[self.rows_C[chosen]]
        return out_CV / self.weights_C1


def general_extremes(
    batch: TokenBatch,
    spec: ObjectiveSpec,
    loss: Loss,
    weights_N: Tensor,
    tokens_C: Tensor,
    *,
    steps: int,
    chunk_numel: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Smallest and largest eigenvalue and an error bound of the tokens ``tokens_C``, [C] each.

    Up to ``steps`` tokens in the vocabulary the Hessian is formed and the bound is 0; beyond, Lanczos makes ``steps``
    products and the bound is the larger residual. Tokens go in chunks, together with all tokens they are coupled to.
    """
    units_N = units(batch, spec)
    found = torch.empty(3, tokens_C.numel(), dtype=torch.float64, device=batch.logits_NV.device)
    per_chunk = max(1, chunk_numel // batch.logits_NV.shape[-1])
    for unit_ids in torch.split(torch.unique(units_N[tokens_C]), per_chunk):
        rows_M = torch.nonzero(torch.isin(units_N, unit_ids)).squeeze(-1)
        chosen_C = torch.nonzero(torch.isin(units_N[tokens_C], unit_ids)).squeeze(-1)
        within_C = torch.searchsorted(rows_M, tokens_C[chosen_C])
        blocks = _Blocks(take(batch, rows_M), spec, loss, weights_N[rows_M], within_C)
        found[:, chosen_C] = _extremes(blocks, chosen_C.numel(), batch.logits_NV.shape[-1], steps)
    return found[0], found[1], found[2]


def _extremes(blocks: _Blocks, num: int, vocab: int, steps: int) -> Tensor:
    device = blocks.tape.gradient.device
    if vocab <= steps:
        columns = [
            blocks.times(unit.expand(num, vocab)) for unit in torch.eye(vocab, dtype=torch.float64, device=device)
        ]
        values_CV = torch.linalg.eigvalsh(torch.stack(columns, dim=-1))
        return torch.stack([values_CV[:, 0], values_CV[:, -1], torch.zeros_like(values_CV[:, 0])])
    generator = torch.Generator().manual_seed(0)
    start_CV = torch.randn(num, vocab, generator=generator, dtype=torch.float64).to(device)
    found = lanczos(blocks.times, start_CV, steps, generator)
    bound_C = torch.maximum(found.residuals_CM[:, 0], found.residuals_CM[:, -1])
    return torch.stack([found.values_CM[:, 0], found.values_CM[:, -1], bound_C])
