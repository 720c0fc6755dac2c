"""Log-probabilities, entropies and KLs from hidden states, differentiable, logits recomputed chunk by chunk."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import logsigmoid

from cvxrl.objectives.linear.head import LinearHead
from cvxrl.objectives.linear.softmax import kl_both_, others_, pull_back_with_entropy_
from cvxrl.objectives.linear.sweep import Chunk, Frozen, Inputs, sweep


@dataclass(frozen=True)
class Statistics:
    """What a policy says at each token, [N] each.

    Attributes:
        logprobs_N: log-probability of the sampled token.
        log_odds_N: log p - log(1 - p) of it, which keeps its digits near p = 1.
        entropy_N: entropy in nats.
        kl_to_frozen_N: KL(policy || frozen), exact, if a frozen policy was given; no gradient.
        kl_from_frozen_N: KL(frozen || policy), likewise.
    """

    logprobs_N: Tensor
    log_odds_N: Tensor
    entropy_N: Tensor
    kl_to_frozen_N: Tensor | None = None
    kl_from_frozen_N: Tensor | None = None


def linear_statistics(
    hidden_NH: Tensor,
    head: LinearHead,
    actions_N: Tensor,
    *,
    frozen: Frozen | None = None,
    chunk_tokens: int | None = None,
) -> Statistics:
    """Statistics of the policy at every token; those of the first three fields carry gradients.

    For losses that compare tokens of a sequence or of a group, or that use the entropy. The backward pass projects once
    more: four matrix products where `fused.fused_loss` needs three.

    Raises:
        ValueError: no token, or shapes that do not fit.
    """
    job = _Job(head, actions_N, frozen, chunk_tokens)
    outputs = _Statistics.apply(job, *Inputs.of(head, hidden_NH).tensors)  # type: ignore[no-untyped-call]
    return Statistics(logsigmoid(outputs[0]), *outputs)


@dataclass(frozen=True)
class _Job:
    head: LinearHead
    actions_N: Tensor
    frozen: Frozen | None
    chunk_tokens: int | None

    def read(self, chunk: Chunk, gradient: bool) -> tuple[dict[str, Tensor], None]:
        kls: dict[str, Tensor] = {}
        if chunk.old_logits_CV is not None:
            kls["to"], kls["from"] = kl_both_(chunk.logits_CV, chunk.old_logits_CV)
        others = others_(chunk.logits_CV, self.actions_N[chunk.rows])
        return {"log_odds": others.log_odds_C, "entropy": others.entropy_C, **kls}, None


class _Statistics(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, job: _Job, *tensors: Tensor | None) -> tuple[Tensor | None, ...]:
        inputs = Inputs.detached(job.head, tensors)
        found, _ = sweep(inputs, job.read, job.chunk_tokens, [False] * len(tensors), job.frozen)
        ctx.job = job
        ctx.save_for_backward(*tensors, found["log_odds"], found["entropy"])
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*(found[name] for name in ("to", "from") if name in found))
        return (found["log_odds"], found["entropy"], found.get("to"), found.get("from"))

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, slopes_N: Tensor | None, bonus_N: Tensor | None, *_: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        job: _Job = ctx.job
        *tensors, log_odds_N, entropy_N = ctx.saved_tensors
        slopes_N = torch.zeros_like(log_odds_N) if slopes_N is None else slopes_N

        def kernel(chunk: Chunk, gradient: bool) -> tuple[dict[str, Tensor], Tensor]:
            rows, actions_C = chunk.rows, job.actions_N[chunk.rows]
            if bonus_N is None:
                return {}, others_(chunk.logits_CV, actions_C).pull_back_(slopes_N[rows], actions_C)
            at_C = (t[rows] for t in (log_odds_N, entropy_N, slopes_N, bonus_N))
            return {}, pull_back_with_entropy_(chunk.logits_CV, actions_C, *at_C)

        inputs = Inputs.detached(job.head, tensors)
        gradients = sweep(inputs, kernel, job.chunk_tokens, ctx.needs_input_grad[1:])[1]
        return (None, *gradients.in_dtypes_of(tensors))
