"""LCO where a trainer hands over log-probabilities alone: the Bernoulli form, which is not the exact loss."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from cvxrl.integrations.sections import LossSections, check_sections
from cvxrl.objectives.batch import TokenBatch
from cvxrl.objectives.registry import compute
from cvxrl.recipe.lco import LcoSpec


def bernoulli_lco(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    objective: str | Mapping[str, Any] = "lco-kld",
    group_advantages: Tensor | None = None,
) -> Tensor:
    """Loss of every token under the two-token policy "the sampled token, or another".

    The vocabulary is not at hand, so the policy is taken for a Bernoulli variable with the sampled token's probability,
    and the logit that `lco-mse` and `lco-lch` compare for its log-odds. What that is, and is not:

    - With a vocabulary of two tokens it is `lco-kld` itself, value and gradient.
    - At the policy that sampled, its gradient in all logits is that of `lco-kld`: equal for one optimizer step.
    - Later it is a lower bound of `lco-kld` (merging tokens never raises a KL), and it no longer holds the other tokens
      in their old proportions: what they do among themselves costs nothing. It is convex in the log-odds and not in the
      logits of a larger vocabulary, so the theorem on which LCO rests does not hold for it.
    - `lco-mse` and `lco-lch` on log-odds are other losses than on logits, also at the first step.

    Args:
        logprobs: log-probability of each sampled token under the current policy, any shape, with gradient; at the
            sampling temperature, whatever dtype (computed in fp32 or better).
        old_logprobs: the same under the policy that sampled.
        advantages: of the sampled tokens, same shape.
        objective: the recipe's section of an LCO objective, such as `{"kind": "lco-kld", "beta": 1.0}`, with target
            `frozen` and support `exact`.
        group_advantages: advantages of all G samples of each token's prompt, shape (..., G); for `shift: drift-free`.

    Returns:
        Losses in the shape of ``logprobs``; neither masked nor reduced.

    Raises:
        UserError: the objective is not one of LCO's, or asks for what is not here.
        ValueError: shapes that do not fit.
    """
    spec = check_sections({"objective": objective}, _two_point).objective
    wide = torch.promote_types(logprobs.dtype, torch.float32)
    shape = logprobs.shape
    if old_logprobs.shape != shape or advantages.shape != shape:
        raise ValueError(f"shapes differ: {tuple(shape)}, {tuple(old_logprobs.shape)}, {tuple(advantages.shape)}")
    now_N, old_N = (_log_odds(values.to(wide).reshape(-1)) for values in (logprobs, old_logprobs.detach()))
    groups_NG = None
    if group_advantages is not None:
        groups_NG = group_advantages.to(wide).reshape(now_N.shape[0], -1)
    batch = TokenBatch(
        logits_NV=_two_columns(now_N),
        old_logits_NV=_two_columns(old_N),
        actions_N=torch.zeros_like(now_N, dtype=torch.long),
        advantages_N=advantages.detach().to(wide).reshape(-1),
        old_logprobs_N=old_logprobs.detach().to(wide).reshape(-1),
        group_advantages_NG=groups_NG,
    )
    return compute(batch, spec).loss_N.reshape(shape)


def _two_point(sections: LossSections) -> list[str]:
    """Lines of the form `key: what is wrong; remedy`."""
    spec = sections.objective
    if not isinstance(spec, LcoSpec):
        return [f"objective.kind: `{spec.kind}` has no Bernoulli form; name lco-kld, lco-mse or lco-lch"]
    support = getattr(getattr(spec, "support", None), "kind", "exact")
    wrong = [f"objective.support: `{support}` chooses among logits, which are not here; leave it out"]
    return wrong if support != "exact" else []


def _log_odds(logprobs_N: Tensor) -> Tensor:
    """Logarithm of p / (1 - p); of a probability that rounds to 1, that of the next smaller number."""
    least = torch.finfo(logprobs_N.dtype).eps
    safe_N = logprobs_N.clamp(max=-least)
    # Two ways to log(1 - exp(x)), each where it keeps its digits (Maechler 2012).
    near_N = torch.log(-torch.expm1(safe_N.clamp(min=-0.6931)))
    far_N = torch.log1p(-torch.exp(safe_N.clamp(max=-0.6931)))
    return safe_N - torch.where(safe_N > -0.6931, near_N, far_N)


def _two_columns(log_odds_N: Tensor) -> Tensor:
    return torch.stack([log_odds_N, torch.zeros_like(log_odds_N)], dim=-1)
