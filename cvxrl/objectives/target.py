"""The optimum pi* of E_pi[A] - beta KL(pi || pi_old) for one sampled token, and comparisons with it on fewer tokens.

arXiv 2603.00963; docs/method.md, 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from cvxrl.objectives.statistics import action_log_odds, gather_actions
from cvxrl.recipe.lco import LcoSpec, TopKFillSupport

# Halvings of the bracket; its width falls from at most 2e3 (|A| / beta up to 1e3) to below float64's resolution of it.
_BISECTIONS = 64


def tilt(advantages: Tensor, beta: float, negative_beta_scale: float = 1.0) -> Tensor:
    """How far the target moves a token's logit: A / beta, or A / (scale * beta) where A < 0. Any shape."""
    # Divided first: torch.where of two plain numbers would round them to fp32.
    return torch.where(advantages < 0, advantages / (beta * negative_beta_scale), advantages / beta)


def tilted_probability(old_logprobs_N: Tensor, tilt_N: Tensor) -> Tensor:
    """Probability of the sampled token under pi*: q = sigmoid(logit(p0) + tilt). Shape [N]."""
    # logit(p0) = log p0 - log(1 - p0); expm1 keeps the digits of 1 - p0 near p0 = 1.
    old_logit_N = old_logprobs_N - torch.log(-torch.expm1(old_logprobs_N))
    return torch.sigmoid(old_logit_N + tilt_N)


def target_logits(old_logits_NV: Tensor, actions_N: Tensor, tilt_N: Tensor) -> Tensor:
    """Target of the sampled token's logit: z*_a = z_old,a + tilt. Shape [N]."""
    return gather_actions(old_logits_NV, actions_N) + tilt_N


def target_log_probs(old_logits_NV: Tensor, actions_N: Tensor, tilt_N: Tensor) -> Tensor:
    """Log of the target pi* ~ pi_old exp(tilt e_a) over the whole vocabulary. Shape [N, V]."""
    tilted_NV = old_logits_NV.scatter_add(-1, actions_N.unsqueeze(-1), tilt_N.unsqueeze(-1).to(old_logits_NV.dtype))
    return torch.log_softmax(tilted_NV, dim=-1)


def linear_tilt(slope_N: Tensor, log_odds_N: Tensor, margin: float) -> Tensor:
    """Logit shift whose probability is linear in the advantage: q = clip(p0 + slope (1 - p0)). Ours, not the paper's.

    On-policy the KLD gradient's weight is then (q - p0) / (1 - p0) = A / b, so zero-mean advantages do not drift where
    nothing is clipped; at small p0 negative ones are.

    Args:
        slope_N: A / b.
        log_odds_N: logit of p0.
        margin: q stays within [margin, 1 - margin], or at p0 where p0 itself lies outside.
    """
    # q / p0 = 1 + slope (1 - p0) / p0 and (1 - q) / (1 - p0) = 1 - slope: no difference of probabilities near 1.
    up_N = torch.log1p((slope_N * torch.exp(-log_odds_N)).clamp(min=-1.0))
    tilt_N = up_N - torch.log1p(-slope_N.clamp(max=1.0))
    edge = math.log(margin) - math.log1p(-margin)
    low_N, high_N = (edge - log_odds_N).clamp(max=0.0), (-edge - log_odds_N).clamp(min=0.0)
    return torch.where(slope_N == 0, 0.0, torch.minimum(torch.maximum(tilt_N, low_N), high_N))


def drift_free_shift(spec: LcoSpec, tilts_NG: Tensor, log_odds_N: Tensor) -> Tensor:
    """Shift c of a group's tilts so that their pulls on a token cancel, [N]. Ours, not the paper's.

    A token that has nothing to do with the reward meets every advantage of its group; its gradient is then zero on
    average over the group: mean_i sigmoid(logit p0 + t_i + c) = p0 for KLD, mean_i tanh(t_i + c) = 0 for log-cosh,
    mean_i (t_i + c) = 0 for MSE. A linear tilt is taken of t_i + c.

    Args:
        spec: divergence and tilt.
        tilts_NG: scaled advantages t of the whole group.
        log_odds_N: logit of p0.
    """
    log_odds_N1 = log_odds_N.unsqueeze(-1)

    def pull(c_N1: Tensor) -> Tensor:
        moved_NG = tilts_NG + c_N1
        if spec.tilt == "linear":
            moved_NG = linear_tilt(moved_NG, log_odds_N1, spec.linear_margin)
        match spec.kind:
            case "lco-mse":
                return moved_NG.sum(-1, keepdim=True)
            case "lco-lch":
                return _sum_of_tanh(moved_NG)
            case _:
                return _sum_of_gains(moved_NG, log_odds_N1)

    return _bisect(pull, tilts_NG)


def _sum_of_tanh(x_NG: Tensor) -> Tensor:
    """Something with the sign of sum_i tanh(x_i) that never rounds to zero, [N, 1]."""
    total_N1 = torch.tanh(x_NG).sum(-1, keepdim=True)
    # Far out all terms are +1 or -1. Where those cancel, the tails 1 - |tanh| decide, and only their logarithms live.
    tails_NG = logsigmoid(-2.0 * x_NG.abs())
    above_N1, below_N1 = (
        tails_NG.masked_fill(~side_NG, -torch.inf).logsumexp(-1, keepdim=True) for side_NG in (x_NG >= 0, x_NG < 0)
    )
    return torch.where(total_N1 == 0, below_N1 - above_N1, total_N1)


def _sum_of_gains(x_NG: Tensor, log_odds_N1: Tensor) -> Tensor:
    """Sum_i sigmoid(logit p0 + x_i) - p0, [N, 1], on the side of the sigmoid away from 1, where its digits are."""
    sign_N1 = torch.where(log_odds_N1 > 0, -1.0, 1.0)
    wanted_N1 = torch.sigmoid(sign_N1 * log_odds_N1)
    return sign_N1 * (torch.sigmoid(sign_N1 * (log_odds_N1 + x_NG)) - wanted_N1).sum(-1, keepdim=True)


def _bisect(excess: Callable[[Tensor], Tensor], tilts_NG: Tensor) -> Tensor:
    """Largest c that leaves a rising function at or below zero; it lies between -max t and -min t.

    The lower end of the last bracket, not its middle: where the linear tilt is steep, c = -max t must be hit exactly.
    """
    low, high = -tilts_NG.amax(-1, keepdim=True), -tilts_NG.amin(-1, keepdim=True)
    for _ in range(_BISECTIONS):
        middle = 0.5 * (low + high)
        above = excess(middle) > 0
        low, high = torch.where(above, low, middle), torch.where(above, middle, high)
    return low.squeeze(-1)


def sampled_tilt(
    spec: LcoSpec, base_NV: Tensor, actions_N: Tensor, advantages_N: Tensor, group_NG: Tensor | None
) -> Tensor:
    """Tilt of the sampled token's logit under a spec: scaling, shift, then exponential or linear. Shape [N].

    Args:
        spec: beta, sign scale, tilt and shift; the divergence decides what `drift-free` means.
        base_NV: logits that the target is built on, without gradient.
        actions_N: sampled tokens.
        advantages_N: their advantages.
        group_NG: advantages of the whole group; needed by `drift-free`.
    """
    tilt_N = tilt(advantages_N, spec.beta, spec.negative_beta_scale)
    if spec.shift == "drift-free":
        assert group_NG is not None, "drift-free needs the group's advantages"
        tilt_N = tilt_N + _group_shift(spec, tilt(group_NG, spec.beta, spec.negative_beta_scale), base_NV, actions_N)
    if spec.tilt == "linear":
        return linear_tilt(tilt_N, action_log_odds(base_NV, actions_N), spec.linear_margin)
    return tilt_N


def _group_shift(spec: LcoSpec, tilts_NG: Tensor, base_NV: Tensor, actions_N: Tensor) -> Tensor:
    if spec.tilt == "exponential" and spec.kind == "lco-mse":
        return -tilts_NG.mean(-1)
    if spec.tilt == "exponential" and spec.kind == "lco-lch":
        # Needs no odds, so nothing is projected to the vocabulary for them (docs/linear.md).
        return drift_free_shift(spec, tilts_NG, tilts_NG.new_zeros(tilts_NG.shape[0]))
    return drift_free_shift(spec, tilts_NG, action_log_odds(base_NV, actions_N))


def log_tail(log_probs_NV: Tensor, kept_NV: Tensor) -> Tensor:
    """Log of the probability mass outside the kept tokens, [N]; -inf where everything is kept."""
    return torch.logsumexp(log_probs_NV.masked_fill(kept_NV, -torch.inf), dim=-1)


def top_k_kld(logits_NV: Tensor, base_NV: Tensor, actions_N: Tensor, tilt_N: Tensor, k: int) -> Tensor:
    """KL over the k most probable base tokens, the sampled one, and one bucket for all others. Shape [N].

    Equals the exact KL when everything is kept. The bucket makes it non-convex in the logits (docs/method.md, 1).
    """
    kept_NV = torch.zeros_like(base_NV, dtype=torch.bool)
    kept_NV.scatter_(-1, base_NV.topk(min(k, base_NV.shape[-1]), dim=-1).indices, True)
    kept_NV.scatter_(-1, actions_N.unsqueeze(-1), True)
    target_NV = target_log_probs(base_NV, actions_N, tilt_N)
    log_probs_NV = torch.log_softmax(logits_NV, dim=-1)
    terms_NV = target_NV.exp() * (target_NV - log_probs_NV)
    loss_N = torch.where(kept_NV, terms_NV, 0.0).sum(dim=-1)
    if bool(kept_NV.all()):
        return loss_N
    tail_target_N, tail_N = log_tail(target_NV, kept_NV), log_tail(log_probs_NV, kept_NV)
    return loss_N + torch.where(tail_target_N == -torch.inf, 0.0, tail_target_N.exp() * (tail_target_N - tail_N))


def fill_outside_top_k(base_NV: Tensor, spec: TopKFillSupport) -> Tensor:
    """Base logits with all but the k largest replaced, as the authors' code does; [N, V]."""
    kept = base_NV.topk(min(spec.k, base_NV.shape[-1]), dim=-1)
    values_NK = kept.values.half().to(base_NV.dtype) if spec.half else kept.values
    return torch.full_like(base_NV, spec.fill).scatter(-1, kept.indices, values_NK)
