"""Policy-gradient objectives."""

from __future__ import annotations

import torch

from cvxrl.objectives.batch import ObjectiveOutput, TokenBatch
from cvxrl.objectives.statistics import action_log_probs
from cvxrl.recipe.objective import GrpoSpec, ReinforceSpec


def reinforce(batch: TokenBatch, spec: ReinforceSpec) -> ObjectiveOutput:
    """Plain policy gradient, -A log pi(a) per token (Williams 1992). Needs ``advantages_N``."""
    log_probs_N = action_log_probs(batch.logits_NV, batch.actions_N)
    return ObjectiveOutput(-batch.require("advantages_N") * log_probs_N)


def grpo(batch: TokenBatch, spec: GrpoSpec) -> ObjectiveOutput:
    """Clipped surrogate -min(r A, clip(r) A) per token (arXiv 1707.06347, eq. 7; arXiv 2402.03300, eq. 3).

    Needs ``old_logprobs_N`` and ``advantages_N``. ``grpo/clipped`` is 1 where the clip is what stops the gradient.
    """
    advantages_N = batch.require("advantages_N")
    log_ratio_N = action_log_probs(batch.logits_NV, batch.actions_N) - batch.require("old_logprobs_N")
    ratio_N = log_ratio_N.exp()
    clipped_N = ratio_N.clamp(1.0 - spec.clip_low, 1.0 + spec.clip_high)
    loss_N = -torch.minimum(ratio_N * advantages_N, clipped_N * advantages_N)
    stopped_N = (clipped_N * advantages_N < ratio_N * advantages_N).to(loss_N.dtype)
    return ObjectiveOutput(loss_N, {"grpo/clipped": stopped_N.detach(), "grpo/ratio": ratio_N.detach()})
