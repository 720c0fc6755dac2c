"""One pass over the tokens in chunks: each chunk's logits go to a kernel, its gradients are added up in place.

No [N, V] tensor exists. Matrix products are written into given buffers and accumulated in fp32 or better.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cvxrl.objectives.linear.head import LinearHead

# Size of all [C, V] buffers where the caller names no chunk size: large enough that the matrix products run at full
# speed, small beside the output matrix of a model with such a vocabulary.
_BUFFER_BYTES = 160 * 2**20
_FEWEST_TOKENS = 16


@dataclass(frozen=True)
class Frozen:
    """Where the logits of another, fixed policy come from: its hidden states at the same tokens, and its head.

    Stored rollout hidden states with `LinearHead.frozen` of the rollout's head, or a frozen copy of the policy.
    """

    hidden_NH: Tensor
    head: LinearHead


@dataclass(frozen=True)
class Chunk:
    """Some consecutive tokens. A kernel owns both buffers and may overwrite them.

    Attributes:
        rows: which tokens.
        logits_CV: their logits, fp32 or better.
        old_logits_CV: their logits under the frozen policy, if there is one.
    """

    rows: slice
    logits_CV: Tensor
    old_logits_CV: Tensor | None


# From a chunk to per-token values [C] and, if asked for, the gradient of the weighted loss in the logits [C, V].
Kernel = Callable[[Chunk, bool], tuple[dict[str, Tensor], Tensor | None]]


@dataclass(frozen=True)
class Inputs:
    """The tensors that gradients may be wanted for: pairs of factors whose products sum up, and the bias."""

    head: LinearHead
    lefts: tuple[Tensor, ...]
    rights: tuple[Tensor, ...]
    bias_V: Tensor | None

    @classmethod
    def of(cls, head: LinearHead, hidden_NH: Tensor) -> Inputs:
        """Inputs from hidden states [N, H].

        Raises:
            ValueError: no token, or the hidden states do not fit the head.
        """
        width = head.weight_VH.shape[1]
        if hidden_NH.ndim != 2 or hidden_NH.shape[1] != width:
            raise ValueError(f"hidden states must have shape (N, {width}), got {tuple(hidden_NH.shape)}")
        if hidden_NH.shape[0] == 0:
            raise ValueError("the batch has no response token: every position is masked or every response is empty")
        return cls(head, tuple(head.lefts(hidden_NH)), tuple(head.rights()), head.bias_V)

    @classmethod
    def detached(cls, head: LinearHead, tensors: Sequence[Tensor | None]) -> Inputs:
        """Inputs without autograd from what `tensors` returned."""
        factors = [t.detach() for t in tensors[:-1] if t is not None]
        bias_V = None if tensors[-1] is None else tensors[-1].detach()
        return cls(head, tuple(factors[: len(factors) // 2]), tuple(factors[len(factors) // 2 :]), bias_V)

    @property
    def tensors(self) -> tuple[Tensor | None, ...]:
        """All of them in one fixed order."""
        return (*self.lefts, *self.rights, self.bias_V)

    @property
    def dtype(self) -> torch.dtype:
        """What is computed in."""
        return accumulation_dtype([t for t in self.tensors if t is not None])


def default_chunk(vocab: int, dtype: torch.dtype = torch.float32, buffers: int = 1) -> int:
    """Tokens per chunk where the caller names none: as many as keep all [C, V] buffers within 160 MiB, at least 16."""
    return max(_FEWEST_TOKENS, _BUFFER_BYTES // (vocab * dtype.itemsize * buffers))


def split(num_tokens: int, chunk_tokens: int | None, default: int) -> list[slice]:
    """Consecutive chunks of ``chunk_tokens``, or of ``default`` if None; the last may be shorter."""
    size = default if chunk_tokens is None else chunk_tokens
    if size < 1:
        raise ValueError(f"chunk_tokens must be at least 1, got {size}")
    return [slice(start, min(start + size, num_tokens)) for start in range(0, num_tokens, size)]


@dataclass
class Gradients:
    """Gradient buffers in the dtype of the computation, None where no gradient is wanted."""

    lefts: list[Tensor | None]
    rights: list[Tensor | None]
    bias_V: Tensor | None

    @classmethod
    def zeros(cls, inputs: Inputs, wanted: Sequence[bool]) -> Gradients:
        """Buffers for those of ``inputs.tensors`` that are wanted."""
        made = [
            torch.zeros_like(tensor, dtype=inputs.dtype) if want and tensor is not None else None
            for tensor, want in zip(inputs.tensors, wanted, strict=True)
        ]
        pairs = len(inputs.lefts)
        return cls(made[:pairs], made[pairs : 2 * pairs], made[-1])

    def add(self, inputs: Inputs, rows: slice, grad_CV: Tensor) -> None:
        """Push the gradient in a chunk's matrix products back to the factors and the bias."""
        slope = inputs.head.slope
        for i, (left, right) in enumerate(zip(inputs.lefts, inputs.rights, strict=True)):
            to_left, to_right = self.lefts[i], self.rights[i]
            if to_left is not None:
                to_left_(to_left[rows], grad_CV, right, slope)
            if to_right is not None:
                to_right_(to_right, grad_CV, left[rows], slope)
        if self.bias_V is not None:
            self.bias_V.add_(grad_CV.sum(dim=0), alpha=slope)

    def in_dtypes_of(self, tensors: Sequence[Tensor | None]) -> tuple[Tensor | None, ...]:
        """Cast to the dtypes of the inputs, in the order of `Inputs.tensors`."""
        mine = (*self.lefts, *self.rights, self.bias_V)
        return tuple(None if g is None or t is None else g.to(t.dtype) for g, t in zip(mine, tensors, strict=True))


@torch.no_grad()
def sweep(
    inputs: Inputs, kernel: Kernel, chunk_tokens: int | None, wanted: Sequence[bool], frozen: Frozen | None = None
) -> tuple[dict[str, Tensor], Gradients]:
    """Run ``kernel`` over all tokens.

    Args:
        inputs: factors and bias, detached.
        kernel: what to make of a chunk's logits.
        chunk_tokens: tokens per chunk; None for `default_chunk`.
        wanted: which of ``inputs.tensors`` need a gradient. If none does, the kernel is not asked for one.
        frozen: another policy whose logits the kernel needs.

    Returns:
        Per-token values [N] by name, and gradients.
    """
    num_tokens, vocab = inputs.lefts[0].shape[0], inputs.head.vocab
    bends = inputs.head.softcap is not None and any(wanted)
    buffers = 1 + bends + (frozen is not None)
    chunks = split(num_tokens, chunk_tokens, default_chunk(vocab, inputs.dtype, buffers))
    gradients = Gradients.zeros(inputs, wanted)
    logits_CV = torch.empty((chunks[0].stop, vocab), dtype=inputs.dtype, device=inputs.lefts[0].device)
    bent_CV = torch.empty_like(logits_CV) if bends else None
    old_inputs = None if frozen is None else _old_inputs(frozen, num_tokens, vocab)
    old_CV = None if frozen is None else torch.empty_like(logits_CV)
    found: dict[str, list[Tensor]] = {}
    with torch.autocast(logits_CV.device.type, enabled=False):
        for rows in chunks:
            count = rows.stop - rows.start
            new, old, bent = (None if b is None else b[:count] for b in (logits_CV, old_CV, bent_CV))
            assert new is not None
            _logits_(new, inputs, rows, bent)
            if old is not None and old_inputs is not None:
                _logits_(old, old_inputs, rows, None)
            values, grad_CV = kernel(Chunk(rows, new, old), any(wanted))
            for name, value in values.items():
                found.setdefault(name, []).append(value)
            if grad_CV is not None:
                gradients.add(inputs, rows, grad_CV if bent is None else grad_CV.mul_(bent))
    return {name: torch.cat(parts) for name, parts in found.items()}, gradients


def _old_inputs(frozen: Frozen, num_tokens: int, vocab: int) -> Inputs:
    shape = (frozen.hidden_NH.shape[0], frozen.head.vocab)
    if shape != (num_tokens, vocab):
        raise ValueError(f"the frozen policy must say {vocab} logits at {num_tokens} tokens, got {shape[::-1]}")
    return Inputs.detached(frozen.head, Inputs.of(frozen.head, frozen.hidden_NH).tensors)


def _logits_(out_CV: Tensor, inputs: Inputs, rows: slice, bent_CV: Tensor | None) -> None:
    """Overwrite ``out_CV`` with the logits of ``rows``, and ``bent_CV`` with the slope of the soft cap there."""
    head = inputs.head
    project_(out_CV, [left[rows] for left in inputs.lefts], inputs.rights, inputs.bias_V)
    if head.softcap is None:
        if head.slope != 1.0:
            out_CV.mul_(head.slope)
        return
    out_CV.mul_(head.scale / head.softcap).tanh_()
    if bent_CV is not None:
        torch.mul(out_CV, out_CV, out=bent_CV).neg_().add_(1.0)
    out_CV.mul_(head.softcap / head.temperature)


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
