"""The optimum of E_pi[A] - beta KL(pi || pi_old) for one sampled token (arXiv 2603.00963; docs/method.md, 1)."""

from __future__ import annotations

import torch
from torch import Tensor

from cvxrl.objectives.statistics import gather_actions


def tilt(advantages_N: Tensor, beta: float, negative_beta_scale: float = 1.0) -> Tensor:
    """How far the target moves the sampled token's logit: A / beta, or A / (scale * beta) where A < 0. Shape [N]."""
    scale_N = torch.where(advantages_N < 0, beta * negative_beta_scale, beta)
    return advantages_N / scale_N.to(advantages_N.dtype)


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
