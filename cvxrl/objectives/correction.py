"""Importance weights for rollouts of a sampler that is not quite the policy (docs/method.md, section 5)."""

from __future__ import annotations

import torch
from torch import Tensor

from cvxrl.objectives.statistics import per_sequence, probability_ratio
from cvxrl.recipe.mismatch import CorrectMismatch


def importance_weights(log_ratio_N: Tensor, sequence_N: Tensor, spec: CorrectMismatch) -> tuple[Tensor, Tensor]:
    """Ratio of the policy's probability to the sampler's, and what of it weighs the loss.

    Truncated importance sampling (Ionides 2008; Espeholt et al., arXiv 1802.01561; for a sampler of another
    implementation Yao et al. 2025, "On the Rollout-Training Mismatch in Modern RL Systems") or, with `outside: drop`,
    the masks of IcePop (Ling team, arXiv 2510.18855).

    Args:
        log_ratio_N: log pi(a) - log mu(a) of every token: the policy that sampled as the trainer computes it, and what
            the sampler said.
        sequence_N: index of each token's sequence, from 0.
        spec: level and bounds.

    Returns:
        Ratios and weights, one per token, [N]; at level `sequence` those of a response are equal.
    """
    if spec.level == "sequence":
        log_ratio_N = per_sequence(log_ratio_N, sequence_N)[sequence_N]
    ratio_N = probability_ratio(log_ratio_N)
    cap = torch.inf if spec.cap is None else spec.cap
    if spec.outside == "truncate":
        return ratio_N, ratio_N.clamp(max=cap)
    return ratio_N, torch.where((ratio_N >= spec.floor) & (ratio_N <= cap), ratio_N, 0.0)
