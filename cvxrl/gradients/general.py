"""Extreme eigenvalues of each token's logits Hessian by double backward, where no closed form applies."""

from __future__ import annotations

import torch
from torch import Tensor

from cvxrl.gradients.lanczos import lanczos
from cvxrl.gradients.loss import Loss, Tape, of_logits
from cvxrl.gradients.select import position_in_unit, take, units
from cvxrl.objectives.batch import TokenBatch
from cvxrl.recipe.objective import ObjectiveSpec


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
