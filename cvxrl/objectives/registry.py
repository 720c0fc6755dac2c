"""The loss of every token: which function computes which objective, and the terms added to any of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from cvxrl.objectives.batch import ObjectiveOutput, TokenBatch
from cvxrl.objectives.callable import call_objective
from cvxrl.objectives.lco import lco_kld, lco_lch, lco_mse
from cvxrl.objectives.policy_gradient import awr, cispo, grpo, gspo, reinforce
from cvxrl.objectives.preference import dpo, qrm, sft
from cvxrl.objectives.regression import dro, gvpo, pmd, rebel, tpo
from cvxrl.objectives.statistics import action_log_probs, entropy, k3
from cvxrl.recipe.objective import CallableObjective, Estimator, ObjectiveSpec, RegularizerSpec


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
    logprobs_N = action_log_probs(batch.logits_NV, batch.actions_N) if spec.kl_coefficient else None
    entropy_N = entropy(batch.logits_NV) if spec.entropy_coefficient else None
    return penalties(batch.actions_N, logprobs_N, entropy_N, batch.reference_logprobs_N, spec)


def penalties(
    actions_N: Tensor,
    logprobs_N: Tensor | None,
    entropy_N: Tensor | None,
    reference_logprobs_N: Tensor | None,
    spec: RegularizerSpec,
) -> tuple[Tensor, dict[str, Tensor]]:
    """As `regularization`, from what it needs of the logits: log-probabilities for the KL, entropies for the bonus."""
    loss_N = torch.zeros(actions_N.shape, device=actions_N.device)
    metrics: dict[str, Tensor] = {}
    if spec.kl_coefficient:
        assert logprobs_N is not None and reference_logprobs_N is not None
        log_ratio_N = logprobs_N - reference_logprobs_N
        loss_N = loss_N + spec.kl_coefficient * kl_estimate(log_ratio_N, spec.kl_estimator)
        metrics["policy/reference_kl"] = k3(-log_ratio_N.detach())
    if spec.entropy_coefficient:
        assert entropy_N is not None
        loss_N = loss_N - spec.entropy_coefficient * entropy_N
    return loss_N, metrics


# Each function takes its own spec class; the tag guarantees the match, which the type system cannot express.
OBJECTIVES: dict[str, Callable[[TokenBatch, Any], ObjectiveOutput]] = {
    "lco-kld": lco_kld,
    "lco-mse": lco_mse,
    "lco-lch": lco_lch,
    "grpo": grpo,
    "gspo": gspo,
    "cispo": cispo,
    "reinforce": reinforce,
    "awr": awr,
    "tpo": tpo,
    "pmd": pmd,
    "dro": dro,
    "rebel": rebel,
    "gvpo": gvpo,
    "sft": sft,
    "dpo": dpo,
    "qrm": qrm,
}


def compute(batch: TokenBatch, spec: ObjectiveSpec) -> ObjectiveOutput:
    """Per-token losses of ``batch`` under the objective that ``spec`` names."""
    if isinstance(spec, CallableObjective):
        return call_objective(batch, spec)
    return OBJECTIVES[spec.kind](batch, spec)
