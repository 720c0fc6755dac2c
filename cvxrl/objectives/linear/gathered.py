"""Logits of a few tokens per position, from rows of the output matrix: no projection to the vocabulary at all."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from cvxrl.objectives.linear.head import LinearHead
from cvxrl.objectives.linear.products import accumulation_dtype
from cvxrl.objectives.linear.sweep import Inputs

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
    products = _Gathered.apply(ids.reshape(hidden_NH.shape[0], -1), chunk_tokens, *tensors)  # type: ignore[no-untyped-call]
    return head.finish(products.reshape(ids.shape))


class _Gathered(torch.autograd.Function):
    """Sum over pairs of left . right[id], plus bias[id]: [N, K]."""

    @staticmethod
    def forward(ctx: Any, ids_NK: Tensor, chunk_tokens: int | None, *tensors: Tensor | None) -> Tensor:
        dtype = accumulation_dtype([t for t in tensors if t is not None])
        lefts, rights, bias_V = _split(tensors)
        ctx.save_for_backward(ids_NK, *tensors)
        ctx.size = chunk_tokens or _default_chunk(ids_NK, rights, dtype)
        ctx.dtype = dtype
        products_NK = torch.zeros(ids_NK.shape, dtype=dtype, device=ids_NK.device)
        for start in range(0, ids_NK.shape[0], ctx.size):
            rows = slice(start, start + ctx.size)
            for left, right in zip(lefts, rights, strict=True):
                products_NK[rows] += (right[ids_NK[rows]].to(dtype) * left[rows].to(dtype).unsqueeze(1)).sum(dim=-1)
        return products_NK if bias_V is None else products_NK.add_(bias_V[ids_NK])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_NK: Tensor) -> tuple[Tensor | None, ...]:
        ids_NK, *tensors = ctx.saved_tensors
        wanted = ctx.needs_input_grad[2:]
        lefts, rights, _ = _split(tensors)
        # Sums of many tokens' gradients in half precision would lose most of them.
        sums = [
            torch.zeros_like(t, dtype=ctx.dtype) if want and t is not None else None
            for t, want in zip(tensors, wanted, strict=True)
        ]
        for start in range(0, ids_NK.shape[0], ctx.size):
            rows = slice(start, start + ctx.size)
            ids_CK, grad_CK1 = ids_NK[rows], grad_NK[rows].unsqueeze(-1)
            for i, (left, right) in enumerate(zip(lefts, rights, strict=True)):
                to_left, to_right = sums[i], sums[len(lefts) + i]
                if to_left is not None:
                    to_left[rows] = (grad_CK1 * right[ids_CK].to(ctx.dtype)).sum(dim=1)
                if to_right is not None:
                    outer_CKH = grad_CK1 * left[rows].to(ctx.dtype).unsqueeze(1)
                    to_right.index_add_(0, ids_CK.flatten(), outer_CKH.flatten(0, 1))
        if sums[-1] is not None:
            sums[-1].index_add_(0, ids_NK.flatten(), grad_NK.flatten())
        cast = (None if g is None else g.to(t.dtype) for g, t in zip(sums, tensors, strict=True))
        return (None, None, *cast)


def _split(tensors: Any) -> tuple[list[Tensor], list[Tensor], Tensor | None]:
    pairs = (len(tensors) - 1) // 2
    return list(tensors[:pairs]), list(tensors[pairs : 2 * pairs]), tensors[-1]


def _default_chunk(ids_NK: Tensor, rights: list[Tensor], dtype: torch.dtype) -> int:
    width = max(right.shape[1] for right in rights)
    return max(1, _ROWS_BYTES // (max(1, ids_NK.shape[1]) * width * dtype.itemsize))
