"""The matrix products of an output layer, written into given buffers and accumulated in fp32 or better."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

# Rows of a bf16 matrix that are converted at a time, so that no second copy of it in fp32 ever exists.
_CONVERTED_ROWS = 8192


def accumulation_dtype(tensors: Sequence[Tensor]) -> torch.dtype:
    """float64 if any tensor is; float32 otherwise, whatever half precision the tensors have."""
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32


def project_(out_CV: Tensor, lefts: Sequence[Tensor], rights: Sequence[Tensor], bias_V: Tensor | None) -> None:
    """Overwrite ``out_CV`` with the sum of left @ right^T over all pairs, plus the bias."""
    for i, (left_CK, right_VK) in enumerate(zip(lefts, rights, strict=True)):
        left_CK = left_CK.to(out_CV.dtype)
        for rows, part_VK in _converted(right_VK, out_CV.dtype):
            out_CV[:, rows].addmm_(left_CK, part_VK.T, beta=0.0 if i == 0 else 1.0)
    if bias_V is not None:
        out_CV.add_(bias_V)


def to_left_(out_CK: Tensor, grad_CV: Tensor, right_VK: Tensor, factor: float) -> None:
    """Overwrite ``out_CK`` with factor * grad @ right: the gradient of a left factor."""
    for i, (rows, part_VK) in enumerate(_converted(right_VK, grad_CV.dtype)):
        out_CK.addmm_(grad_CV[:, rows], part_VK, beta=0.0 if i == 0 else 1.0, alpha=factor)


def to_right_(sum_VK: Tensor, grad_CV: Tensor, left_CK: Tensor, factor: float) -> None:
    """Add factor * grad^T @ left to ``sum_VK``: the gradient of a right factor."""
    sum_VK.addmm_(grad_CV.T, left_CK.to(grad_CV.dtype), alpha=factor)


def _converted(right_VK: Tensor, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
    """Row blocks of a matrix in ``dtype``: the whole of it if it has that type already."""
    if right_VK.dtype == dtype:
        yield slice(None), right_VK
        return
    for start in range(0, right_VK.shape[0], _CONVERTED_ROWS):
        rows = slice(start, start + _CONVERTED_ROWS)
        yield rows, right_VK[rows].to(dtype)
