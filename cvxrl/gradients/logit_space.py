"""One objective on one frozen batch, token by token, in the space of the logits (docs/gradients.md, 1)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cvxrl.gradients.logit_gradient import REASONS, Descent, descent, old_norms, why_frozen
from cvxrl.gradients.logit_spectrum import general_extremes, odds_extremes, odds_signs
from cvxrl.gradients.loss import Loss, token_weights, weighted_loss
from cvxrl.gradients.probe import Structure, find_structure
from cvxrl.gradients.select import take
from cvxrl.gradients.token_positions import TokenPositions, chunks, others, token_positions
from cvxrl.objectives.batch import TokenBatch
from cvxrl.recipe.lco import LcoKldSpec
from cvxrl.recipe.objective import ObjectiveSpec, RegularizerSpec


@dataclass(frozen=True)
class Rules:
    """Thresholds of the columns, and how much work is done.

    Attributes:
        vanishing: a gradient is gone at this fraction of its norm at the rollout policy.
        remaining: a token is far from its target at this fraction of its distance there.
        rounding: inner products within this fraction of |gradient| |z* - z| count as zero.
        semidefinite: eigenvalues within this fraction of the Hessian's size count as zero.
        eigenvalue_tokens: tokens whose eigenvalues are computed, drawn at random; None for all, 0 for none.
        lanczos_steps: products per token where no closed form applies and the vocabulary is larger.
        chunk_numel: numbers per working buffer; bounds the memory, changes nothing.
    """

    vanishing: float = 0.01
    remaining: float = 0.5
    rounding: float = 1e-9
    semidefinite: float = 1e-9
    eigenvalue_tokens: int | None = None
    lanczos_steps: int = 64
    chunk_numel: int = 2**18


@dataclass(frozen=True)
class LogitSpace:
    """Per-token columns, [N]: float64 on the batch's device, or bool.

    Gradient and Hessian are those of the token's own logits, everything else fixed, per unit of the token's weight.

    Attributes:
        structure: how the Hessian was found.
        psd_N: the Hessian is positive semidefinite. False where it is not known.
        nsd_N: it is negative semidefinite. False where it is not known.
        known_N: whether the two columns before are known (always, except for structure `general` on tokens not drawn).
        min_eigenvalue_N: smallest eigenvalue; NaN on tokens that were not drawn.
        max_eigenvalue_N: largest eigenvalue, likewise.
        eigenvalue_error_N: bound on the error of both beyond rounding; 0 for closed forms; NaN likewise.
        gradient_norm_N: norm of the gradient.
        old_gradient_norm_N: norm of the same objective's gradient at the rollout's logits.
        inner_N: descent direction times (z* - z).
        cosine_N: their cosine; NaN without a direction or a gradient.
        away_N: the descent direction points away from the target, beyond rounding.
        distance_N: total variation between the policy and pi*.
        old_distance_N: total variation between the rollout policy and pi*.
        directed_N: the token has a target other than where it is; the others are in no share of directions.
        reason_N: index into `logit_gradient.REASONS` of why the token is frozen; 0 where it is not.
    """

    structure: Structure
    psd_N: Tensor
    nsd_N: Tensor
    known_N: Tensor
    min_eigenvalue_N: Tensor
    max_eigenvalue_N: Tensor
    eigenvalue_error_N: Tensor
    gradient_norm_N: Tensor
    old_gradient_norm_N: Tensor
    inner_N: Tensor
    cosine_N: Tensor
    away_N: Tensor
    distance_N: Tensor
    old_distance_N: Tensor
    directed_N: Tensor
    reason_N: Tensor

    @property
    def indefinite_N(self) -> Tensor:
        """The Hessian has eigenvalues of both signs."""
        return self.known_N & ~self.psd_N & ~self.nsd_N

    @property
    def frozen_N(self) -> Tensor:
        """The gradient is gone although the target is not near."""
        return self.reason_N > 0

    def frozen_by(self, reason: str) -> Tensor:
        """Tokens frozen for one of `logit_gradient.REASONS`."""
        return self.reason_N == REASONS.index(reason)


def logit_space(
    batch: TokenBatch,
    spec: ObjectiveSpec,
    yardstick: LcoKldSpec,
    *,
    rules: Rules | None = None,
    regularizer: RegularizerSpec | None = None,
    weights_N: Tensor | None = None,
    positions: TokenPositions | None = None,
    generator: torch.Generator | None = None,
) -> LogitSpace:
    """Curvature, direction and stationary points of an objective in each token's logits.

    Args:
        batch: needs ``old_logits_NV``, advantages, and whatever the objective needs (if groups, whole ones).
        spec: the objective; the function that the registry holds for it is what is measured.
        yardstick: defines the target pi* that every objective is measured against.
        rules: thresholds and the amount of work; None for the defaults.
        regularizer: terms added to the token loss.
        weights_N: weight of each token in the reduced loss, positive; None: 1, or 1 / length of the token's sequence
            for objectives over sequences. For objectives of single tokens weights change nothing.
        positions: `token_positions(batch, yardstick)`, to share it between objectives.
        generator: draws the tokens for ``rules.eigenvalue_tokens``; on the CPU.

    Raises:
        ValueError: an input is missing, or eigenvalue tokens shall be drawn without a generator.
    """
    rules = rules or Rules()
    positions = positions or token_positions(batch, yardstick, chunk_numel=rules.chunk_numel)
    loss = weighted_loss(spec, regularizer)
    weights_N = token_weights(batch, spec) if weights_N is None else weights_N.to(torch.float64)
    found = find_structure(batch, spec, loss, weights_N)
    now = descent(batch, spec, loss, weights_N, found, positions, yardstick, rules.chunk_numel)
    before_N = now.norm_N
    if not positions.on_policy:
        before_N = old_norms(batch, spec, loss, weights_N, found, positions, rules.chunk_numel)
    tokens_C = _drawn(batch, rules, generator)
    curvature = _curvature(batch, spec, loss, weights_N, found, now, tokens_C, rules)
    return _columns(found, now, before_N, positions, curvature, rules)


def _columns(
    found: Structure,
    now: Descent,
    before_N: Tensor,
    positions: TokenPositions,
    curvature: tuple[Tensor, ...],
    rules: Rules,
) -> LogitSpace:
    psd_N, nsd_N, known_N, least_N, most_N, error_N = curvature
    size_N = now.norm_N * now.reach_N
    directed_N = positions.directed_N & (now.reach_N > 0)
    return LogitSpace(
        structure=found,
        psd_N=psd_N,
        nsd_N=nsd_N,
        known_N=known_N,
        min_eigenvalue_N=least_N,
        max_eigenvalue_N=most_N,
        eigenvalue_error_N=error_N,
        gradient_norm_N=now.norm_N,
        old_gradient_norm_N=before_N,
        inner_N=now.inner_N,
        cosine_N=torch.where(directed_N & (size_N > 0), now.inner_N / size_N, torch.nan),
        away_N=directed_N & (now.inner_N < -rules.rounding * size_N),
        distance_N=positions.distance_N,
        old_distance_N=positions.old_distance_N,
        directed_N=directed_N,
        reason_N=why_frozen(
            now.norm_N,
            before_N,
            positions.distance_N,
            positions.old_distance_N,
            positions.log_odds_N,
            directed_N,
            vanishing=rules.vanishing,
            remaining=rules.remaining,
        ),
    )


def _drawn(batch: TokenBatch, rules: Rules, generator: torch.Generator | None) -> Tensor:
    num_tokens, count = batch.actions_N.numel(), rules.eigenvalue_tokens
    if count is None or count >= num_tokens:
        return torch.arange(num_tokens, device=batch.actions_N.device)
    if count == 0:
        return torch.arange(0, device=batch.actions_N.device)
    if generator is None:
        raise ValueError("drawing tokens for their eigenvalues needs a generator")
    return torch.randperm(num_tokens, generator=generator)[:count].sort().values.to(batch.actions_N.device)


def _curvature(
    batch: TokenBatch,
    spec: ObjectiveSpec,
    loss: Loss,
    weights_N: Tensor,
    found: Structure,
    now: Descent,
    tokens_C: Tensor,
    rules: Rules,
) -> tuple[Tensor, ...]:
    """Semidefinite (both signs), known, smallest and largest eigenvalue, error: [N] each."""
    vocab = batch.logits_NV.shape[-1]
    values = torch.full((3, now.norm_N.numel()), torch.nan, dtype=torch.float64, device=now.norm_N.device)
    known_N = torch.ones_like(now.norm_N, dtype=torch.bool)
    if found.kind == "entries":
        assert now.entries_NK is not None
        least_N, most_N = now.entries_NK.amin(-1), now.entries_NK.amax(-1)
        if now.entries_NK.shape[-1] < vocab:
            least_N, most_N = least_N.clamp(max=0.0), most_N.clamp(min=0.0)
        values[:, tokens_C] = torch.stack([least_N, most_N, torch.zeros_like(least_N)])[:, tokens_C]
    elif found.kind == "general":
        if tokens_C.numel() == 0:
            nothing_N = torch.zeros_like(known_N)
            return (nothing_N, nothing_N, nothing_N, *values)
        least_C, most_C, error_C = general_extremes(
            batch, spec, loss, weights_N, tokens_C, steps=rules.lanczos_steps, chunk_numel=rules.chunk_numel
        )
        values[:, tokens_C] = torch.stack([least_C, most_C, error_C])
        least_N, most_N = values[0], values[1]
        known_N = ~torch.isnan(least_N)
    else:
        assert now.slope_N is not None and now.bend_N is not None
        values[:, tokens_C] = _odds_values(batch, now.slope_N, now.bend_N, tokens_C, rules.chunk_numel)
        return (*odds_signs(now.slope_N, now.bend_N, vocab, rules.semidefinite), known_N, *values)
    slack_N = rules.semidefinite * torch.maximum(least_N.abs(), most_N.abs())
    return (least_N >= -slack_N, most_N <= slack_N, known_N, *values)


def _odds_values(batch: TokenBatch, slope_N: Tensor, bend_N: Tensor, tokens_C: Tensor, chunk_numel: int) -> Tensor:
    """Smallest and largest eigenvalue and the error 0 of some tokens, [3, C]."""
    found = [slope_N.new_empty(3, 0)]
    for chosen in chunks(tokens_C.numel(), batch.logits_NV.shape[-1], chunk_numel):
        index_C = tokens_C[chosen.to(tokens_C.device)]
        part = take(batch, index_C)
        r_CV, _ = others(part.logits_NV, part.actions_N)
        least_C, most_C = odds_extremes(r_CV, part.actions_N, slope_N[index_C], bend_N[index_C])
        found.append(torch.stack([least_C, most_C, torch.zeros_like(least_C)]))
    return torch.cat(found, dim=-1)
