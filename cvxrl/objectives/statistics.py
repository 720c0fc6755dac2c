"""Per-token statistics of a policy given by its logits."""

from __future__ import annotations

import torch
from torch import Tensor


def gather_actions(values_NV: Tensor, actions_N: Tensor) -> Tensor:
    """Pick each row's value at its sampled token: [N, V], [N] -> [N]."""
    return values_NV.gather(-1, actions_N.unsqueeze(-1)).squeeze(-1)


def action_log_probs(logits_NV: Tensor, actions_N: Tensor) -> Tensor:
    """Log-probability of the sampled tokens, [N], without a log-softmax of the whole row."""
    return gather_actions(logits_NV, actions_N) - torch.logsumexp(logits_NV, dim=-1)


def entropy(logits_NV: Tensor) -> Tensor:
    """Entropy of the policy at each position in nats, [N]."""
    log_probs_NV = torch.log_softmax(logits_NV, dim=-1)
    return -(log_probs_NV.exp() * log_probs_NV).sum(dim=-1)


def k3(log_ratio_N: Tensor) -> Tensor:
    """Schulman's estimator of KL(old || new), [N] >= 0: r - 1 - log r with r = new / old on tokens sampled from old."""
    return torch.expm1(log_ratio_N) - log_ratio_N
