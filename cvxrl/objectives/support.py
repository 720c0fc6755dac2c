"""Target and policy compared on fewer tokens than the vocabulary: named approximations of the exact KLD."""

from __future__ import annotations

import torch
from torch import Tensor

from cvxrl.objectives.target import target_log_probs
from cvxrl.recipe.lco import TopKFillSupport


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
