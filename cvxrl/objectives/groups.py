"""From tokens to the sequences they belong to, and from sequences to the samples of a prompt."""

from __future__ import annotations

import torch
from torch import Tensor

from cvxrl.objectives.batch import TokenBatch
from cvxrl.objectives.statistics import action_log_probs, per_sequence, sequence_lengths


def sequence_log_ratio(batch: TokenBatch, reference_N: Tensor) -> Tensor:
    """Sum over tokens of log pi(a) - ``reference_N``: the log-ratio log w of each sequence, [S]."""
    log_ratio_N = action_log_probs(batch.logits_NV, batch.actions_N) - reference_N
    return per_sequence(log_ratio_N, batch.require("sequence_N"))


def sequence_advantages(batch: TokenBatch) -> Tensor:
    """Advantage of each sequence, which all its tokens share, [S]."""
    sequence_N = batch.require("sequence_N")
    return per_sequence(batch.require("advantages_N"), sequence_N) / sequence_lengths(sequence_N)


def by_group(values_S: Tensor, batch: TokenBatch) -> Tensor:
    """Values of the samples of each prompt side by side, [P, G].

    Raises:
        ValueError: the batch does not hold whole groups of one size, numbered in order.
    """
    group_S = batch.require("group_S")
    num_groups = int(group_S.max()) + 1
    size, rest = divmod(group_S.numel(), num_groups)
    whole = torch.arange(num_groups, device=group_S.device).repeat_interleave(size)
    if rest or not torch.equal(whole, group_S):
        raise ValueError(f"group_S must hold whole groups of one size, numbered in order; got {group_S.tolist()}")
    return values_S.view(num_groups, size)


def to_tokens(values_S: Tensor, batch: TokenBatch) -> Tensor:
    """Repeat one value per sequence on each of its tokens, [N]."""
    return values_S.reshape(-1)[batch.require("sequence_N")]
