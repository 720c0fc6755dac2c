"""Weighted losses from hidden states, whose gradients are formed chunk by chunk in the forward pass."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from cvxrl.objectives.linear.head import LinearHead
from cvxrl.objectives.linear.kernels import (
    PerAction,
    PerChunk,
    Tilt,
    action_kernel,
    any_kernel,
    kld_kernel,
    on_policy_kld_kernel,
)
from cvxrl.objectives.linear.sweep import Frozen, Gradients, Inputs, Kernel, inputs_of, sweep


@dataclass(frozen=True)
class LinearLoss:
    """A reduced loss and what it was made of.

    Attributes:
        loss: sum of weight * loss over the tokens, with gradient.
        loss_N: loss of each token, without gradient.
        logprobs_N: log-probability of each sampled token, without gradient.
        entropy_N: entropy of the policy at each token in nats, without gradient.
        metrics: what else the objective reports, [N] each, without gradient.
    """

    loss: Tensor
    loss_N: Tensor
    logprobs_N: Tensor
    entropy_N: Tensor
    metrics: Mapping[str, Tensor]


def fused_loss(
    hidden_NH: Tensor,
    head: LinearHead,
    actions_N: Tensor,
    weights_N: Tensor,
    per_chunk: PerChunk,
    *,
    frozen: Frozen | None = None,
    chunk_tokens: int | None = None,
) -> LinearLoss:
    """Any objective with per-token terms: sum of weight * loss(logits), no [N, V] tensor.

    The weights are known beforehand, so the gradients are final when a chunk's loss is, and one projection per token
    serves the loss and both gradients. They live in buffers as large as the parameters' gradients from the forward
    pass on.

    Args:
        hidden_NH: hidden states that predict the sampled tokens.
        head: output layer.
        actions_N: sampled token ids.
        weights_N: weight of each token in the loss, without gradient (`objectives.reduce`).
        per_chunk: losses of a chunk from its logits [C, V], the frozen policy's logits [C, V] or None, and the slice of
            tokens; autograd differentiates it, so the peak memory is what it keeps for C tokens.
        frozen: another policy whose logits the objective needs.
        chunk_tokens: tokens per chunk C; None for `sweep.default_chunk`.

    Raises:
        ValueError: no token, or shapes that do not fit.
    """
    return _weighted(hidden_NH, head, weights_N, any_kernel(actions_N, per_chunk, weights_N), frozen, chunk_tokens)


def action_loss(
    hidden_NH: Tensor,
    head: LinearHead,
    actions_N: Tensor,
    weights_N: Tensor,
    per_action: PerAction,
    *,
    chunk_tokens: int | None = None,
) -> LinearLoss:
    """As `fused_loss`, for objectives that need only log pi(a): one [C, V] buffer and nothing else.

    ``per_action`` receives the log-probabilities of a chunk's sampled tokens [C] and their slice. Each loss may depend
    on its own token only; for losses of whole sequences take `action_log_probs_of`.
    """
    return _weighted(hidden_NH, head, weights_N, action_kernel(actions_N, per_action, weights_N), None, chunk_tokens)


def on_policy_kld_loss(
    hidden_NH: Tensor,
    head: LinearHead,
    actions_N: Tensor,
    weights_N: Tensor,
    tilt: Tilt | Tensor,
    *,
    chunk_tokens: int | None = None,
) -> LinearLoss:
    """LCO-KLD where the current policy is the one that sampled: closed form, one projection, one [C, V] buffer.

    ``tilt`` is the shift of the sampled token's logit [N], or a function of the log-odds of its probability and the
    slice of tokens (docs/method.md, 2).
    """
    kernel = on_policy_kld_kernel(actions_N, _as_function(tilt), weights_N)
    return _weighted(hidden_NH, head, weights_N, kernel, None, chunk_tokens)


def kld_loss(
    hidden_NH: Tensor,
    head: LinearHead,
    actions_N: Tensor,
    weights_N: Tensor,
    tilt_N: Tensor,
    frozen: Frozen,
    *,
    chunk_tokens: int | None = None,
) -> LinearLoss:
    """LCO-KLD off-policy, exact over the vocabulary: the target from a frozen policy, two [C, V] buffers."""
    kernel = kld_kernel(actions_N, tilt_N, weights_N)
    return _weighted(hidden_NH, head, weights_N, kernel, frozen, chunk_tokens)


def _as_function(tilt: Tilt | Tensor) -> Tilt:
    if not isinstance(tilt, Tensor):
        return tilt
    fixed_N = tilt
    return lambda log_odds_C, rows: fixed_N[rows].to(log_odds_C.dtype)


@dataclass
class _Job:
    """A sweep to do, and the per-token values that it found."""

    head: LinearHead
    kernel: Kernel
    frozen: Frozen | None
    chunk_tokens: int | None
    wanted: tuple[bool, ...]
    values: dict[str, Tensor] = field(default_factory=dict)

    def run(self, tensors: tuple[Tensor | None, ...]) -> Gradients:
        """Sweep over ``tensors``, which are in the order of `Inputs.tensors`."""
        pairs = (len(tensors) - 1) // 2
        factors = [t for t in tensors[:-1] if t is not None]
        inputs = Inputs(self.head, tuple(factors[:pairs]), tuple(factors[pairs:]), tensors[-1])
        self.values, gradients = sweep(inputs.detached(), self.kernel, self.chunk_tokens, self.wanted, self.frozen)
        return gradients


def _weighted(
    hidden_NH: Tensor,
    head: LinearHead,
    weights_N: Tensor,
    kernel: Kernel,
    frozen: Frozen | None,
    chunk_tokens: int | None,
) -> LinearLoss:
    tensors = inputs_of(head, hidden_NH).tensors
    if tuple(weights_N.shape) != (hidden_NH.shape[0],) or weights_N.requires_grad:
        raise ValueError(f"weights_N must have shape {(hidden_NH.shape[0],)} and no gradient")
    wanted = tuple(torch.is_grad_enabled() and t is not None and t.requires_grad for t in tensors)
    job = _Job(head, kernel, frozen, chunk_tokens, wanted)
    loss = _Fused.apply(job, weights_N, *tensors)  # type: ignore[no-untyped-call]
    rest = dict(job.values)
    return LinearLoss(loss, rest.pop("loss"), rest.pop("logprob"), rest.pop("entropy"), rest)


class _Fused(torch.autograd.Function):
    """The weighted sum; its gradients are ready when its value is."""

    @staticmethod
    def forward(ctx: Any, job: _Job, weights_N: Tensor, *tensors: Tensor | None) -> Tensor:
        gradients = job.run(tensors)
        ctx.save_for_backward(*tensors)
        ctx.job = job
        ctx.ready = gradients.in_dtypes_of(tensors)
        loss_N = job.values["loss"]
        return (weights_N.to(loss_N.dtype) * loss_N).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
        ready, ctx.ready = ctx.ready, None
        if ready is None:
            # The first backward pass gave its buffers away, and whoever got them may have added to them.
            ready = ctx.job.run(ctx.saved_tensors).in_dtypes_of(ctx.saved_tensors)
        scale = float(grad_loss)
        if scale != 1.0:
            ready = tuple(None if g is None else g.mul_(scale) for g in ready)
        return (None, None, *ready)
