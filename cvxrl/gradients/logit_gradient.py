"""Gradient of an objective in each token's logits: its direction towards the target, and where it is gone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from cvxrl.gradients.loss import Loss, Tape, of_logits
from cvxrl.gradients.probe import Structure, candidates, odds_slopes
from cvxrl.gradients.select import position_in_unit, take, units, without_vocabulary
from cvxrl.gradients.token_positions import TokenPositions, chunks, target_shift
from cvxrl.objectives.batch import TokenBatch
from cvxrl.recipe.lco import LcoKldSpec
from cvxrl.recipe.objective import ObjectiveSpec

# A gradient whose entries sum to less than this fraction of their sizes does not see a constant added to the logits.
_INVARIANT = 1e-9


@dataclass(frozen=True)
class Descent:
    """Per-token first derivatives and the coefficients of the Hessian, float64 [N].

    Attributes:
        norm_N: norm of the gradient in the token's logits.
        inner_N: minus gradient times (z* - z).
        reach_N: norm of the z* - z that the objective can see.
        slope_N: dL/dl, l the log-odds of the sampled token; structures `odds` and `softmax` (there: as in its Hessian).
        bend_N: d2L/dl2, likewise.
        entries_NK: diagonal of the Hessian at the candidates; structure `entries`.
    """

    norm_N: Tensor
    inner_N: Tensor
    reach_N: Tensor
    slope_N: Tensor | None = None
    bend_N: Tensor | None = None
    entries_NK: Tensor | None = None


def descent(
    batch: TokenBatch,
    spec: ObjectiveSpec,
    loss: Loss,
    weights_N: Tensor,
    found: Structure,
    positions: TokenPositions,
    yardstick: LcoKldSpec,
    chunk_numel: int,
) -> Descent:
    """First derivatives at the current logits, and second ones as far as a closed form needs them."""
    if found.kind == "odds":
        slope_N, bend_N = _odds(batch, spec, loss, weights_N, positions.log_odds_N, positions.old_log_odds_N)
        norm_N = slope_N.abs() * positions.width_N.sqrt()
        return Descent(norm_N, -slope_N * positions.along_N, positions.reach_N, slope_N, bend_N)
    rows = torch.empty(3, batch.actions_N.numel(), dtype=torch.float64, device=batch.logits_NV.device)
    entries_NK = torch.zeros(candidates(batch).shape, dtype=torch.float64, device=batch.logits_NV.device)
    for index_C in _chunks(batch, spec, chunk_numel):
        part = take(batch, index_C)
        tape = Tape(of_logits(loss, part, weights_N[index_C]), part.logits_NV, second=found.kind == "entries")
        weights_C1 = weights_N[index_C].unsqueeze(-1)
        rows[:, index_C] = _directed(part, tape.gradient / weights_C1, yardstick, found.kind)
        if found.kind == "entries":
            bent_CV = tape.times(torch.ones_like(part.logits_NV)) / weights_C1
            entries_NK[index_C] = bent_CV.gather(-1, candidates(part))
    if found.kind == "softmax":
        p_N, rest_N = torch.sigmoid(positions.log_odds_N), torch.sigmoid(-positions.log_odds_N)
        return Descent(rows[0], rows[1], rows[2], -found.factor * rest_N, found.factor * p_N * rest_N)
    return Descent(rows[0], rows[1], rows[2], entries_NK=entries_NK if found.kind == "entries" else None)


def old_norms(
    batch: TokenBatch,
    spec: ObjectiveSpec,
    loss: Loss,
    weights_N: Tensor,
    found: Structure,
    positions: TokenPositions,
    chunk_numel: int,
) -> Tensor:
    """Norm of the gradient that the same objective has at the rollout's logits, [N]."""
    if found.kind == "odds":
        old_N = positions.old_log_odds_N
        slope_N, _ = odds_slopes(without_vocabulary(batch), loss, weights_N, old_N, old_N)
        return (slope_N / weights_N).abs() * positions.old_width_N.sqrt()
    norms_N = torch.empty_like(positions.width_N)
    for index_C in _chunks(batch, spec, chunk_numel):
        part = take(batch, index_C)
        tape = Tape(of_logits(loss, part, weights_N[index_C]), part.require("old_logits_NV"), second=False)
        norms_N[index_C] = tape.gradient.norm(dim=-1) / weights_N[index_C]
    return norms_N


def _odds(
    batch: TokenBatch, spec: ObjectiveSpec, loss: Loss, weights_N: Tensor, log_odds_N: Tensor, old_log_odds_N: Tensor
) -> tuple[Tensor, Tensor]:
    """dL/dl and the diagonal of d2L/dl2 per unit of weight: tokens of the same place in different units go together."""
    slope_N, bend = odds_slopes(without_vocabulary(batch), loss, weights_N, log_odds_N, old_log_odds_N)
    places_N = position_in_unit(units(batch, spec))
    bend_N = torch.zeros_like(slope_N)
    for place in range(int(places_N.max()) + 1):
        mask_N = (places_N == place).to(slope_N.dtype)
        bend_N += mask_N * bend.times(mask_N)
    return slope_N / weights_N, bend_N / weights_N


def _chunks(batch: TokenBatch, spec: ObjectiveSpec, chunk_numel: int) -> Iterator[Tensor]:
    """Indices of tokens that go together: coupled ones never apart."""
    if spec.coupling == "token":
        yield from chunks(batch.actions_N.numel(), batch.logits_NV.shape[-1], chunk_numel)
        return
    units_N = units(batch, spec)
    for unit in torch.unique(units_N):
        yield torch.nonzero(units_N == unit).squeeze(-1)


def _directed(part: TokenBatch, gradient_CV: Tensor, yardstick: LcoKldSpec, kind: str) -> Tensor:
    """Norm of the gradient, its product with -(z* - z), and the norm of z* - z; [3, C].

    Where the objective does not see a constant, z* - z is centred; else it is the difference at the candidates.
    """
    ids_CK, shift_CK = target_shift(part, yardstick)
    away_CV = part.require("old_logits_NV").scatter_add(-1, ids_CK, shift_CK) - part.logits_NV
    at_candidates_CK = away_CV.gather(-1, ids_CK)
    away_CV -= away_CV.mean(-1, keepdim=True)
    raw_C = (gradient_CV.gather(-1, ids_CK) * at_candidates_CK).sum(-1)
    centred_C = (gradient_CV * away_CV).sum(-1)
    blind_C = gradient_CV.sum(-1).abs() <= _INVARIANT * gradient_CV.abs().sum(-1)
    if kind != "general":
        blind_C = torch.full_like(blind_C, kind == "softmax")
    inner_C = -torch.where(blind_C, centred_C, raw_C)
    reach_C = torch.where(blind_C, away_CV.norm(dim=-1), at_candidates_CK.norm(dim=-1))
    return torch.stack([gradient_CV.norm(dim=-1), inner_C, reach_C])


# Codes of `why_frozen`, in order.
REASONS = ("", "clip", "improbable", "certain", "flat")

# log p below which p * 1 may underflow in float64: a zero gradient there is a tiny probability, not a clip.
_UNDERFLOW = -700.0


def why_frozen(
    norm_N: Tensor,
    old_norm_N: Tensor,
    distance_N: Tensor,
    old_distance_N: Tensor,
    log_odds_N: Tensor,
    directed_N: Tensor,
    *,
    vanishing: float,
    remaining: float,
) -> Tensor:
    """Index into ``REASONS`` of each token, int8 [N]; 0 where the token is not frozen.

    A token is frozen if its gradient's norm is at most ``vanishing`` of what the same objective's was at the rollout
    policy, while its distance to the target is at least ``remaining`` of what it was there. `flat`: the gradient was
    zero there already. `clip`: it is exactly zero now. Else the slope faded: `improbable` if p_a < 1/2, or `certain`.

    Args:
        norm_N: norm of the gradient at the current logits.
        old_norm_N: the same at the rollout's logits.
        distance_N: total variation to the target.
        old_distance_N: the same from the rollout policy.
        log_odds_N: log-odds of the sampled token.
        directed_N: tokens that have a target other than where they are; the others are never frozen.
        vanishing: fraction of the gradient.
        remaining: fraction of the distance.
    """
    frozen_N = directed_N & (norm_N <= vanishing * old_norm_N) & (distance_N >= remaining * old_distance_N)
    faded_N = torch.where(log_odds_N < 0, REASONS.index("improbable"), REASONS.index("certain"))
    cut_N = (norm_N == 0) & (log_odds_N > _UNDERFLOW)
    reason_N = torch.where(cut_N, REASONS.index("clip"), faded_N)
    reason_N = torch.where(old_norm_N == 0, REASONS.index("flat"), reason_N)
    return torch.where(frozen_N, reason_N, 0).to(torch.int8)
