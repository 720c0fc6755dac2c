"""Terms added to any objective's token loss: KL to a reference policy, and an entropy bonus."""

from __future__ import annotations

import torch
from torch import Tensor

from cvxrl.objectives.batch import TokenBatch
from cvxrl.objectives.statistics import action_log_probs, entropy, k3
from cvxrl.recipe.regularizer import Estimator, RegularizerSpec


def kl_estimate(log_ratio_N: Tensor, estimator: Estimator) -> Tensor:
    """Estimate of KL(pi || reference) from tokens sampled by pi, with log_ratio = log pi(a) - log reference(a), [N].

    k1 = log ratio (unbiased; as a loss its expected gradient is zero), k2 = half its square (its gradient is the KL's),
    k3 = 1 / ratio - 1 + log ratio (unbiased, never negative; as a loss it pulls towards the reference by the reverse
    weight). See Schulman, "Approximating KL divergence" (2020).
    """
    match estimator:
        case "k1":
            return log_ratio_N
        case "k2":
            return 0.5 * log_ratio_N.square()
        case "k3":
            return k3(-log_ratio_N)


def regularization(batch: TokenBatch, spec: RegularizerSpec) -> tuple[Tensor, dict[str, Tensor]]:
    """Per-token regularisation loss and its diagnostics, [N]; zero coefficients cost nothing."""
    loss_N = torch.zeros_like(batch.actions_N, dtype=batch.logits_NV.dtype)
    metrics: dict[str, Tensor] = {}
    if spec.kl_coefficient:
        log_ratio_N = action_log_probs(batch.logits_NV, batch.actions_N) - batch.require("reference_logprobs_N")
        kl_N = kl_estimate(log_ratio_N, spec.kl_estimator)
        loss_N = loss_N + spec.kl_coefficient * kl_N
        metrics["policy/reference_kl"] = k3(-log_ratio_N.detach())
    if spec.entropy_coefficient:
        loss_N = loss_N - spec.entropy_coefficient * entropy(batch.logits_NV)
    return loss_N, metrics
