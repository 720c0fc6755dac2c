"""Logits of a few tokens per position, from rows of the output matrix: no projection to the vocabulary at all."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from cvxrl.objectives.linear.head import LinearHead
from cvxrl.objectives.linear.sweep import Gradients, Inputs, split

# Size of the gathered rows of one chunk where the caller names no chunk size.
_ROWS_BYTES = 16 * 2**20


def gathered_logits(hidden_NH: Tensor, head: LinearHead, ids: Tensor, *, chunk_tokens: int | None = None) -> Tensor:
    """Logits z of the tokens ``ids`` at each position, with gradient: what LCO-MSE and LCO-LCH compare.

    Both are sums over the sampled token, or over K candidates, of a function of z - z*, and z* = z_old + A / beta needs
    no other logit either (docs/method.md, 1): z_a = h . W[a]. Their losses and gradients are therefore exact from here,
    on-policy and off-policy, for any output layer.

    Args:
        hidden_NH: hidden states.
        head: output layer.
        ids: token ids, [N] or [N, K].
        chunk_tokens: positions per chunk.

    Returns:
        Logits in the shape of ``ids``, fp32 or better.

    Raises:
        ValueError: no token, or shapes that do not fit.
    """
    tensors = Inputs.of(head, hidden_NH).tensors
    if ids.ndim not in (1, 2) or ids.shape[0] != hidden_NH.shape[0]:
        raise ValueError(f"ids must have shape (N,) or (N, K) with N = {hidden_NH.shape[0]}, got {tuple(ids.shape)}")
    flat_NK = ids.reshape(hidden_NH.shape[0], -1)
    products_NK = _Gathered.apply(head, flat_NK, chunk_tokens, *tensors)  # type: ignore[no-untyped-call]
    return head.finish(products_NK.reshape(ids.shape))


class _Gathered(torch.autograd.Function):
    """Sum over pairs of left . right[id], plus bias[id]: [N, K]."""

    @staticmethod
    def forward(ctx: Any, head: LinearHead, ids_NK: Tensor, chunk: int | None, *tensors: Tensor | None) -> Tensor:
        inputs = Inputs.detached(head, tensors)
        ctx.save_for_backward(ids_NK, *tensors)
        ctx.head = head
        ctx.chunks = split(ids_NK.shape[0], chunk, _default_chunk(ids_NK.shape[1], inputs))
        products_NK = torch.zeros(ids_NK.shape, dtype=inputs.dtype, device=ids_NK.device)
        for rows in ctx.chunks:
            for left, right in zip(inputs.lefts, inputs.rights, strict=True):
                terms_CKH = right[ids_NK[rows]].to(inputs.dtype) * left[rows].to(inputs.dtype).unsqueeze(1)
                products_NK[rows] += terms_CKH.sum(dim=-1)
        return products_NK if inputs.bias_V is None else products_NK.add_(inputs.bias_V[ids_NK])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_NK: Tensor) -> tuple[Tensor | None, ...]:
        ids_NK, *tensors = ctx.saved_tensors
        inputs = Inputs.detached(ctx.head, tensors)
        sums = Gradients.zeros(inputs, ctx.needs_input_grad[3:])
        for rows in ctx.chunks:
            ids_CK, grad_CK1 = ids_NK[rows], grad_NK[rows].unsqueeze(-1)
            for i, (left, right) in enumerate(zip(inputs.lefts, inputs.rights, strict=True)):
                to_left, to_right = sums.lefts[i], sums.rights[i]
                if to_left is not None:
                    to_left[rows] = (grad_CK1 * right[ids_CK].to(inputs.dtype)).sum(dim=1)
                if to_right is not None:
                    outer_CKH = grad_CK1 * left[rows].to(inputs.dtype).unsqueeze(1)
                    to_right.index_add_(0, ids_CK.flatten(), outer_CKH.flatten(0, 1))
        if sums.bias_V is not None:
            sums.bias_V.index_add_(0, ids_NK.flatten(), grad_NK.flatten())
        return (None, None, None, *sums.in_dtypes_of(tensors))


def _default_chunk(width: int, inputs: Inputs) -> int:
    hidden = max(right.shape[1] for right in inputs.rights)
    return max(1, _ROWS_BYTES // (max(1, width) * hidden * inputs.dtype.itemsize))
