"""Weights of the token losses, whose weighted sum is the loss of an optimizer step."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Reduction = Literal["token-mean", "sequence-mean", "constant"]


def sequence_weights(
    lengths_S: Tensor,
    reduction: Reduction,
    max_new_tokens: int,
    num_tokens: int | None = None,
    num_sequences: int | None = None,
) -> Tensor:
    """Weight of each token of each sequence, so that the loss is the weighted sum over tokens.

    Computed once over all sequences of an optimizer step; splitting the step into micro-batches then cannot change
    the gradient.

    Args:
        lengths_S: response tokens of every sequence of the optimizer step.
        reduction: `token-mean`: 1 / all tokens (DAPO, arXiv 2503.14476); `sequence-mean`: 1 / (S * own length) (GRPO,
            arXiv 2402.03300); `constant`: 1 / (S * max_new_tokens) (Dr. GRPO, arXiv 2503.20783).
        max_new_tokens: longest completion the recipe allows; used by `constant`.
        num_tokens: of the whole optimizer step, where ``lengths_S`` are those of one process.
        num_sequences: likewise.

    Returns:
        Float64 weights of shape [S].

    Raises:
        ValueError: there is no token at all.
    """
    lengths = lengths_S.to(torch.float64)
    total = lengths.sum() if num_tokens is None else lengths.new_tensor(num_tokens)
    if total == 0:
        raise ValueError("the optimizer step has no response token to learn from")
    num_sequences = num_sequences or lengths.numel()
    match reduction:
        case "token-mean":
            return torch.full_like(lengths, 1.0) / total
        case "sequence-mean":
            return torch.where(lengths > 0, 1.0 / (num_sequences * lengths.clamp(min=1.0)), 0.0)
        case "constant":
            return torch.full_like(lengths, 1.0 / (num_sequences * max_new_tokens))
