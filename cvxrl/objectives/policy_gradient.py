"""Policy-gradient objectives, and the loss of the critic that PPO trains beside one."""

from __future__ import annotations

import torch
from torch import Tensor

from cvxrl.objectives.batch import ObjectiveOutput, TokenBatch
from cvxrl.objectives.statistics import (
    action_log_probs,
    probability_ratio,
    sequence_advantages,
    sequence_lengths,
    sequence_log_ratio,
    to_tokens,
)
from cvxrl.recipe.objective import AwrSpec, CispoSpec, GrpoSpec, GspoSpec, ReinforceSpec


def reinforce(batch: TokenBatch, spec: ReinforceSpec) -> ObjectiveOutput:
    """Plain policy gradient, -A log pi(a) per token (Williams 1992). Needs ``advantages_N``."""
    log_probs_N = action_log_probs(batch.logits_NV, batch.actions_N)
    return ObjectiveOutput(-batch.require("advantages_N") * log_probs_N)


def grpo(batch: TokenBatch, spec: GrpoSpec) -> ObjectiveOutput:
    """Clipped surrogate -min(r A, clip(r) A) per token (arXiv 1707.06347, eq. 7; arXiv 2402.03300, eq. 3).

    Needs ``old_logprobs_N`` and ``advantages_N``. ``grpo/clipped`` is 1 where the clip is what stops the gradient.
    """
    log_ratio_N = action_log_probs(batch.logits_NV, batch.actions_N) - batch.require("old_logprobs_N")
    loss_N, stopped_N, ratio_N = clipped_surrogate(
        log_ratio_N, batch.require("advantages_N"), spec.clip_low, spec.clip_high
    )
    return ObjectiveOutput(loss_N, {"grpo/clipped": stopped_N, "grpo/ratio": ratio_N})


def gspo(batch: TokenBatch, spec: GspoSpec) -> ObjectiveOutput:
    """Clipped surrogate of s = exp(mean_t log r_t), repeated on the tokens (arXiv 2507.18071, eq. 5 and 7).

    Needs ``old_logprobs_N``, ``advantages_N`` and ``sequence_N``. The paper averages over sequences: reduction
    `sequence-mean`.
    """
    lengths_S = sequence_lengths(batch.require("sequence_N"))
    log_ratio_S = sequence_log_ratio(batch, batch.require("old_logprobs_N")) / lengths_S
    outcome = clipped_surrogate(log_ratio_S, sequence_advantages(batch), spec.clip_low, spec.clip_high)
    loss_N, stopped_N, ratio_N = (to_tokens(values_S, batch) for values_S in outcome)
    return ObjectiveOutput(loss_N, {"gspo/clipped": stopped_N, "gspo/ratio": ratio_N})


def cispo(batch: TokenBatch, spec: CispoSpec) -> ObjectiveOutput:
    """-stopgrad(min(r, ratio_max)) A log pi(a) per token (arXiv 2506.13585, eq. 4): no token loses its gradient.

    Needs ``old_logprobs_N`` and ``advantages_N``.
    """
    log_probs_N = action_log_probs(batch.logits_NV, batch.actions_N)
    ratio_N = probability_ratio(log_probs_N.detach() - batch.require("old_logprobs_N"))
    loss_N = -ratio_N.clamp(max=spec.ratio_max) * batch.require("advantages_N") * log_probs_N
    capped_N = (ratio_N > spec.ratio_max).to(loss_N.dtype)
    return ObjectiveOutput(loss_N, {"cispo/capped": capped_N, "cispo/ratio": ratio_N})


def awr(batch: TokenBatch, spec: AwrSpec) -> ObjectiveOutput:
    """-min(exp(A / beta), weight_max) log pi(a) per token (arXiv 1910.00177, eq. 11). Needs ``advantages_N``."""
    # Capped in the exponent: exp of a large advantage would overflow before a minimum could cap it.
    weight_max = torch.as_tensor(spec.weight_max, dtype=batch.logits_NV.dtype, device=batch.logits_NV.device)
    weight_N = (batch.require("advantages_N") / spec.beta).minimum(weight_max.log()).exp()
    log_probs_N = action_log_probs(batch.logits_NV, batch.actions_N)
    return ObjectiveOutput(-weight_N * log_probs_N, {"awr/weight": weight_N})


def clipped_surrogate(log_ratio: Tensor, advantages: Tensor, low: float, high: float) -> tuple[Tensor, Tensor, Tensor]:
    """PPO's loss -min(r A, clip(r, 1 - low, 1 + high) A) for ratios of any shape.

    Returns:
        The loss; 1 where the clip stops the gradient, else 0; and the ratio. The last two without gradient.
    """
    ratio = probability_ratio(log_ratio)
    clipped = ratio.clamp(1.0 - low, 1.0 + high)
    loss = -torch.minimum(ratio * advantages, clipped * advantages)
    stopped = (clipped * advantages < ratio * advantages).to(loss.dtype)
    return loss, stopped.detach(), ratio.detach()


def value_loss(values_N: Tensor, old_values_N: Tensor, returns_N: Tensor, clip: float | None) -> Tensor:
    """Half the squared error to the returns, [N]; with ``clip`` the larger one of it and that of the clipped value.

    The clipped value stays within ``clip`` of what the critic said at rollout time, as in PPO's reference code.
    """
    loss_N = (values_N - returns_N).square()
    if clip is not None:
        clipped_N = old_values_N + (values_N - old_values_N).clamp(-clip, clip)
        loss_N = torch.maximum(loss_N, (clipped_N - returns_N).square())
    return 0.5 * loss_N
