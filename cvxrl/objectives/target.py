"""The optimum of E_pi[A] - beta KL(pi || pi_old) for one sampled token (arXiv 2603.00963; docs/method.md, 1)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from cvxrl.objectives.statistics import action_log_odds, gather_actions
from cvxrl.recipe.lco import LcoSpec

# Halvings of the bracket; its width falls from at most 2e3 (|A| / beta up to 1e3) to below float64's resolution of it.
_BISECTIONS = 64


def tilt(advantages: Tensor, beta: float, negative_beta_scale: float = 1.0) -> Tensor:
    """How far the target moves a token's logit: A / beta, or A / (scale * beta) where A < 0. Any shape."""
    scale = torch.where(advantages < 0, beta * negative_beta_scale, beta)
    return advantages / scale.to(advantages.dtype)


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

    On-policy the KLD gradient's weight is then (q - p0) / (1 - p0) = A / b, so zero-mean advantages do not drift.

    Args:
        slope_N: A / b.
        log_odds_N: logit of p0.
        margin: q stays within [margin, 1 - margin], or at p0 where p0 itself lies outside.
    """
    p0_N = torch.sigmoid(log_odds_N)
    free_N = torch.sigmoid(-log_odds_N)  # 1 - p0, with its digits
    q_N = p0_N + slope_N * free_N
    low_N, high_N = p0_N.clamp(max=margin), p0_N.clamp(min=1.0 - margin)
    q_N = torch.minimum(torch.maximum(q_N, low_N), high_N)
    return torch.where((slope_N == 0) | (q_N == p0_N), 0.0, torch.logit(q_N) - log_odds_N)


def drift_free_shift_kld(tilts_NG: Tensor, log_odds_N: Tensor) -> Tensor:
    """Shift c with mean_i sigmoid(logit p0 + t_i + c) = p0 over the group, [N]. Ours, not the paper's.

    A token that has nothing to do with the reward then keeps its probability on average over the group. Solved on the
    side of the sigmoid that is away from 1, where its digits are.
    """
    sign_N1 = -torch.sign(log_odds_N).unsqueeze(-1)
    sign_N1 = torch.where(sign_N1 == 0, 1.0, sign_N1)
    wanted_N1 = torch.sigmoid(sign_N1 * log_odds_N.unsqueeze(-1))

    def excess(c_N1: Tensor) -> Tensor:
        moved = torch.sigmoid(sign_N1 * (log_odds_N.unsqueeze(-1) + tilts_NG + c_N1)).mean(-1, keepdim=True)
        return sign_N1 * (moved - wanted_N1)

    return _bisect(excess, tilts_NG)


def drift_free_shift_lch(tilts_NG: Tensor) -> Tensor:
    """Shift c with mean_i tanh(t_i + c) = 0 over the group, [N]. Ours, not the paper's."""
    return _bisect(lambda c_N1: torch.tanh(tilts_NG + c_N1).mean(-1, keepdim=True), tilts_NG)


def _bisect(excess: Callable[[Tensor], Tensor], tilts_NG: Tensor) -> Tensor:
    """Root of a function that rises with c; it is not above zero at c = -max t and not below at c = -min t."""
    low, high = -tilts_NG.amax(-1, keepdim=True), -tilts_NG.amin(-1, keepdim=True)
    for _ in range(_BISECTIONS):
        middle = 0.5 * (low + high)
        above = excess(middle) > 0
        low, high = torch.where(above, low, middle), torch.where(above, middle, high)
    return (0.5 * (low + high)).squeeze(-1)


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
    # Where the gradient is linear in the tilt, centring it is the whole cure.
    if spec.tilt == "linear" or spec.kind == "lco-mse":
        return -tilts_NG.mean(-1)
    if spec.kind == "lco-lch":
        return drift_free_shift_lch(tilts_NG)
    return drift_free_shift_kld(tilts_NG, action_log_odds(base_NV, actions_N))
