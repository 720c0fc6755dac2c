"""Weighted losses from hidden states, whose gradients are formed chunk by chunk in the forward pass."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from cvxrl.objectives.linear.head import LinearHead
from cvxrl.objectives.linear.sweep import Frozen, Gradients, Inputs, Kernel, sweep


@dataclass(frozen=True)
class LinearLoss:
    """A reduced loss and what it was made of.

    Attributes:
        loss: sum of weight * loss over the tokens, with gradient.
        loss_N: loss of each token, without gradient.
        metrics: what else the objective reports, [N] each, without gradient.
        logprobs_N: log-probability of each sampled token, without gradient; None where nothing was projected.
        entropy_N: entropy of the policy at each token in nats, likewise.
    """

    loss: Tensor
    loss_N: Tensor
    metrics: Mapping[str, Tensor]
    logprobs_N: Tensor | None = None
    entropy_N: Tensor | None = None


def fused_loss(
    hidden_NH: Tensor,
    head: LinearHead,
    weights_N: Tensor,
    kernel: Kernel,
    *,
    frozen: Frozen | None = None,
    chunk_tokens: int | None = None,
) -> LinearLoss:
    """Sum of weight * loss over the tokens, with one projection per token and no [N, V] tensor.

    The weights are known beforehand, so a chunk's gradients are final when its loss is, and one projection serves the
    loss and both gradients: three matrix products, as in the plain path. They live in buffers as large as the
    parameters' gradients from the forward pass on.

    Args:
        hidden_NH: hidden states that predict the sampled tokens.
        head: output layer.
        weights_N: weight of each token in the loss, without gradient (`objectives.reduce`).
        kernel: per-token ``loss``, ``logprob``, ``entropy`` and metrics of a chunk, and the gradient in its logits of
            the weighted loss (those of `objective`).
        frozen: another policy whose logits the kernel needs.
        chunk_tokens: tokens per chunk C; None for `sweep.default_chunk`.

    Raises:
        ValueError: no token, or shapes that do not fit.
    """
    tensors = Inputs.of(head, hidden_NH).tensors
    if tuple(weights_N.shape) != (hidden_NH.shape[0],) or weights_N.requires_grad:
        raise ValueError(f"weights_N must have shape {(hidden_NH.shape[0],)} and no gradient")
    wanted = tuple(torch.is_grad_enabled() and t is not None and t.requires_grad for t in tensors)
    job = _Job(head, kernel, frozen, chunk_tokens, wanted)
    loss = _Fused.apply(job, weights_N, *tensors)  # type: ignore[no-untyped-call]
    rest = dict(job.values)
    loss_N, logprobs_N, entropy_N = (rest.pop(name) for name in ("loss", "logprob", "entropy"))
    return LinearLoss(loss, loss_N, rest, logprobs_N, entropy_N)


@dataclass
class _Job:
    """The arguments of a sweep, and the per-token values that it returned."""

    head: LinearHead
    kernel: Kernel
    frozen: Frozen | None
    chunk_tokens: int | None
    wanted: tuple[bool, ...]
    values: dict[str, Tensor] = field(default_factory=dict)

    def run(self, tensors: tuple[Tensor | None, ...]) -> Gradients:
        inputs = Inputs.detached(self.head, tensors)
        self.values, gradients = sweep(inputs, self.kernel, self.chunk_tokens, self.wanted, self.frozen)
        return gradients


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
