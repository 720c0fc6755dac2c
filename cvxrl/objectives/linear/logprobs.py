"""Log-probabilities and entropies from hidden states, differentiable, with logits recomputed chunk by chunk."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from cvxrl.objectives.linear.head import LinearHead
from cvxrl.objectives.linear.softmax import kl_both, others_
from cvxrl.objectives.linear.sweep import Chunk, Frozen, Inputs, inputs_of, sweep


@dataclass(frozen=True)
class Statistics:
    """What a policy says at each token, [N] each.

    Attributes:
        logprobs_N: log-probability of the sampled token.
        entropy_N: entropy in nats.
        lse_N: logsumexp of the logits.
        log_odds_N: logit of the sampled token's probability, with its digits where that is near 1; no gradient.
        kl_to_frozen_N: KL(policy || frozen), exact, if a frozen policy was given; no gradient.
        kl_from_frozen_N: KL(frozen || policy), likewise.
    """

    logprobs_N: Tensor
    entropy_N: Tensor
    lse_N: Tensor
    log_odds_N: Tensor
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

    For objectives that compare tokens of a sequence or of a group. The backward pass projects once more, so where the
    loss has per-token terms `fused.action_loss` is faster by a quarter.

    Raises:
        ValueError: no token, or shapes that do not fit.
    """
    tensors = inputs_of(head, hidden_NH).tensors
    job = _Job(head, actions_N, frozen, chunk_tokens)
    return Statistics(*_Statistics.apply(job, *tensors))  # type: ignore[no-untyped-call]


def linear_action_log_probs(
    hidden_NH: Tensor, head: LinearHead, actions_N: Tensor, *, chunk_tokens: int | None = None
) -> Tensor:
    """Differentiable log-probabilities of the sampled tokens, [N]."""
    return linear_statistics(hidden_NH, head, actions_N, chunk_tokens=chunk_tokens).logprobs_N


@dataclass(frozen=True)
class _Job:
    head: LinearHead
    actions_N: Tensor
    frozen: Frozen | None
    chunk_tokens: int | None

    def inputs(self, tensors: tuple[Tensor | None, ...]) -> Inputs:
        pairs = (len(tensors) - 1) // 2
        factors = [t for t in tensors[:-1] if t is not None]
        return Inputs(self.head, tuple(factors[:pairs]), tuple(factors[pairs:]), tensors[-1]).detached()

    def forward(self, chunk: Chunk, gradient: bool) -> tuple[dict[str, Tensor], None]:
        kls: dict[str, Tensor] = {}
        if chunk.old_logits_CV is not None:
            kls["to"], kls["from"] = kl_both(chunk.logits_CV, chunk.old_logits_CV)
        others = others_(chunk.logits_CV, self.actions_N[chunk.rows])
        values = {"logprob": others.logprobs_C, "entropy": others.entropy_C, "lse": others.lse_C}
        return {**values, "log_odds": others.log_odds_C, **kls}, None


@dataclass(frozen=True)
class _Pullback:
    """Gradient in the logits from those in log pi(a), the entropy H and the logsumexp, where given.

    d log p_a / dz = e_a - p,   dH / dz = -p (log p + H),   d lse / dz = p.
    """

    actions_N: Tensor
    logprobs_N: Tensor
    entropy_N: Tensor
    lse_N: Tensor
    grad_logprobs_N: Tensor
    grad_entropy_N: Tensor | None
    grad_lse_N: Tensor

    def __call__(self, chunk: Chunk, gradient: bool) -> tuple[dict[str, Tensor], Tensor]:
        rows = chunk.rows
        index_C1 = self.actions_N[rows].unsqueeze(-1)
        slope_C = self.grad_logprobs_N[rows]
        log_probs_CV = chunk.logits_CV.sub_(self.lse_N[rows].unsqueeze(-1))
        factor = (self.grad_lse_N[rows] - slope_C).unsqueeze(-1)
        sampled_C = self.logprobs_N[rows]
        # 1 - p_a from log p_a: the difference would lose its digits near p_a = 1.
        at_action_C = -slope_C * torch.expm1(sampled_C) + self.grad_lse_N[rows] * sampled_C.exp()
        if self.grad_entropy_N is None:
            grad_CV = log_probs_CV.exp_().mul_(factor)
        else:
            bonus_C1, entropy_C1 = (t[rows].unsqueeze(-1) for t in (self.grad_entropy_N, self.entropy_N))
            factor = factor - bonus_C1 * entropy_C1
            grad_CV = torch.exp(log_probs_CV).mul_(factor - bonus_C1 * log_probs_CV)
            own_C = (sampled_C + entropy_C1.squeeze(-1)) * sampled_C.exp()
            at_action_C = at_action_C - bonus_C1.squeeze(-1) * own_C
        return {}, grad_CV.scatter_(-1, index_C1, at_action_C.unsqueeze(-1))


class _Statistics(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, job: _Job, *tensors: Tensor | None) -> tuple[Tensor | None, ...]:
        found, _ = sweep(job.inputs(tensors), job.forward, job.chunk_tokens, [False] * len(tensors), job.frozen)
        ctx.job, ctx.count = job, len(tensors)
        ctx.save_for_backward(*tensors, found["logprob"], found["entropy"], found["lse"])
        ctx.set_materialize_grads(False)
        free = [found["log_odds"], *(found[name] for name in ("to", "from") if name in found)]
        ctx.mark_non_differentiable(*free)
        return (found["logprob"], found["entropy"], found["lse"], found["log_odds"], found.get("to"), found.get("from"))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        saved, job = ctx.saved_tensors, ctx.job
        tensors, (logprobs_N, entropy_N, lse_N) = saved[: ctx.count], saved[ctx.count :]
        zeros_N = torch.zeros_like(logprobs_N)
        kernel = _Pullback(
            job.actions_N,
            logprobs_N,
            entropy_N,
            lse_N,
            grad_logprobs_N=zeros_N if grads[0] is None else grads[0],
            grad_entropy_N=grads[1],
            grad_lse_N=zeros_N if grads[2] is None else grads[2],
        )
        _, gradients = sweep(job.inputs(tensors), kernel, job.chunk_tokens, ctx.needs_input_grad[1:])
        return (None, *gradients.in_dtypes_of(tensors))
