"""Spurious stationary points: tokens whose gradient is gone although the target is not near."""

from __future__ import annotations

import torch
from torch import Tensor

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
