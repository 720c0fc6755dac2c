"""Which structure the logits Hessian of an objective has, found by derivatives of the function that runs.

On a few tokens, the gradient and a Hessian-vector product by autograd are compared with what each structure predicts:
at the batch's logits, at perturbed ones, and at random logits and rollout logits, where nothing is near a limit. The
name of the objective plays no part, so a changed objective changes its structure or its coefficients with it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from cvxrl.gradients.loss import Loss, Tape, of_logits
from cvxrl.gradients.select import fewer_columns, take, two_logits, units
from cvxrl.gradients.token_positions import others
from cvxrl.objectives.batch import TokenBatch
from cvxrl.recipe.objective import ObjectiveSpec

# Numbers in a probe's [tokens, V] tensors; autograd holds about ten of them.
_PROBE_NUMEL = 2**19
_PROBE_TOKENS = 64
_TOLERANCE = 1e-7


@dataclass(frozen=True)
class Structure:
    """What the logits Hessian of each token looks like.

    Attributes:
        kind: `odds`: the loss sees a token's logits through log pi(a) alone. `entries`: through single logits, those of
            the sampled token or of the candidates. `softmax`: the Hessian is a constant times diag(p) - p p^T.
            `general`: none of these.
        factor: that constant.
    """

    kind: Literal["odds", "entries", "softmax", "general"]
    factor: float = 0.0


def find_structure(batch: TokenBatch, spec: ObjectiveSpec, loss: Loss, weights_N: Tensor) -> Structure:
    """The first structure that explains the gradient and the curvature of the objective on a part of the batch."""
    generator = torch.Generator().manual_seed(0)
    index_C = _probe_tokens(batch, spec)
    part, weights_C = take(batch, index_C.to(batch.actions_N.device)), weights_N[index_C]
    if part.logits_NV.numel() > 2 * _PROBE_NUMEL:
        part = fewer_columns(part, _columns(part, max(4, _PROBE_NUMEL // index_C.numel()), generator))

    def noise() -> Tensor:
        return torch.randn(part.logits_NV.shape, generator=generator, dtype=torch.float64).to(part.logits_NV.device)

    old_CV = part.old_logits_NV
    places = [
        part,
        replace(part, logits_NV=part.logits_NV + noise()),
        replace(part, logits_NV=noise(), old_logits_NV=None if old_CV is None else noise()),
    ]
    probes = [_Probe(place, loss, weights_C, noise()) for place in places]
    if all(probe.is_odds() for probe in probes):
        return Structure("odds")
    if all(probe.is_entries() for probe in probes):
        return Structure("entries")
    factors = [factor for probe in probes if (factor := probe.softmax_factor()) is not None]
    if len(factors) == len(probes) and max(factors) - min(factors) <= _TOLERANCE * abs(factors[0]):
        return Structure("softmax", factors[0])
    return Structure("general")


def _probe_tokens(batch: TokenBatch, spec: ObjectiveSpec) -> Tensor:
    """Tokens spread over the batch, or the first two whole units of coupled ones."""
    num_tokens, vocab = batch.logits_NV.shape
    units_N = units(batch, spec)
    if spec.coupling != "token":
        return torch.nonzero(units_N < 2).squeeze(-1).cpu()
    count = min(num_tokens, _PROBE_TOKENS, max(8, _PROBE_NUMEL // vocab))
    return torch.linspace(0, num_tokens - 1, count).long()


def _columns(part: TokenBatch, count: int, generator: torch.Generator) -> Tensor:
    """The sampled token and some random others of each row, all different. Shape [C, count]."""
    num_tokens, vocab = part.logits_NV.shape
    offsets = 1 + torch.randperm(vocab - 1, generator=generator)[: count - 1].to(part.actions_N.device)
    others_CK = (part.actions_N.unsqueeze(-1) + offsets) % vocab
    return torch.cat([part.actions_N.view(num_tokens, 1), others_CK], dim=-1)


class _Probe:
    """Gradient and products with two vectors at one point, and what the structures say they should be."""

    def __init__(self, part: TokenBatch, loss: Loss, weights_C: Tensor, vector_CV: Tensor) -> None:
        self.part, self.loss, self.weights_C, self.vector_CV = part, loss, weights_C, vector_CV
        tape = Tape(of_logits(loss, part, weights_C), part.logits_NV)
        self.gradient_CV, self.product_CV = tape.gradient, tape.times(self.vector_CV)
        self.row_sums_CV = tape.times(torch.ones_like(self.vector_CV))

    def is_odds(self) -> bool:
        """Gradient a w; product (F'' (w . v)) w - a R v, where F'' may couple tokens."""
        r_CV, log_odds_C = others(self.part.logits_NV, self.part.actions_N)
        action_C1 = self.part.actions_N.unsqueeze(-1)
        w_CV = (-r_CV).scatter(-1, action_C1, 1.0)
        old_CV = self.part.old_logits_NV
        old_C = None if old_CV is None else others(old_CV, self.part.actions_N)[1]
        slope_C, bend = odds_slopes(self.part, self.loss, self.weights_C, log_odds_C, old_C)
        moved_C = bend.times((w_CV * self.vector_CV).sum(-1))
        rest_CV = r_CV * self.vector_CV
        curved_CV = rest_CV - r_CV * rest_CV.sum(-1, keepdim=True)
        product_CV = moved_C.unsqueeze(-1) * w_CV - slope_C.unsqueeze(-1) * curved_CV
        scale_C = slope_C.abs() + moved_C.abs()
        return _close(self.gradient_CV, slope_C.unsqueeze(-1) * w_CV, scale_C) and _close(
            self.product_CV, product_CV, scale_C
        )

    def is_entries(self) -> bool:
        """Gradient and product vanish off the candidates, and the Hessian is diagonal on them."""
        ids_CK = candidates(self.part)
        off_CV = torch.ones_like(self.gradient_CV).scatter(-1, ids_CK, 0.0)
        nothing = not bool((off_CV * self.gradient_CV).any() or (off_CV * self.product_CV).any())
        scale_C = self.row_sums_CV.abs().amax(-1)
        return nothing and _close(self.product_CV, self.row_sums_CV * self.vector_CV, scale_C)

    def softmax_factor(self) -> float | None:
        """The constant k if the product is k (diag(p) - p p^T) v on every token."""
        p_CV = torch.softmax(self.part.logits_NV, dim=-1)
        weighted_CV = p_CV * self.vector_CV
        unit_CV = self.weights_C.unsqueeze(-1) * (weighted_CV - p_CV * weighted_CV.sum(-1, keepdim=True))
        factor = (self.product_CV * unit_CV).sum() / unit_CV.square().sum()
        fits = _close(self.product_CV, factor * unit_CV, self.weights_C)
        return float(factor) if fits else None


def candidates(batch: TokenBatch) -> Tensor:
    """Tokens that have an advantage: the sampled one, [N, 1], or the dense candidates, [N, K]."""
    return batch.actions_N.unsqueeze(-1) if batch.dense is None else batch.dense.ids_NK


def odds_slopes(
    batch: TokenBatch, loss: Loss, weights_N: Tensor, log_odds_N: Tensor, old_log_odds_N: Tensor | None
) -> tuple[Tensor, Tape]:
    """dL/dl of every token, [N], and products with d2L/dl2, [N, N], by the objective's own function.

    l is the log-odds of the sampled token and L the weighted sum. The function sees a vocabulary of two.
    """

    def of_falling(falling_N: Tensor) -> Tensor:
        return loss(two_logits(batch, falling_N, old_log_odds_N), weights_N)

    tape = Tape(of_falling, -log_odds_N)
    return -tape.gradient, tape


def _close(found_CV: Tensor, wanted_CV: Tensor, scale_C: Tensor) -> bool:
    error_C = (found_CV - wanted_CV).abs().amax(-1)
    return bool((error_C <= _TOLERANCE * (scale_C + found_CV.abs().amax(-1))).all())
