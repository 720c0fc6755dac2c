"""Statistics of a policy given by its logits: per token, per sequence, and per sample of a prompt."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from cvxrl.objectives.batch import TokenBatch

# Logits per chunk of `entropy`: 4 MiB in fp32.
_CHUNK_NUMBERS = 1 << 20


def gather_actions(values_NV: Tensor, actions_N: Tensor) -> Tensor:
    """Pick each row's value at its sampled token: [N, V], [N] -> [N]."""
    return values_NV.gather(-1, actions_N.unsqueeze(-1)).squeeze(-1)


def action_log_probs(logits_NV: Tensor, actions_N: Tensor) -> Tensor:
    """Log-probability of the sampled tokens, [N], without a log-softmax of the whole row."""
    return gather_actions(logits_NV, actions_N) - torch.logsumexp(logits_NV, dim=-1)


def entropy(logits_NV: Tensor) -> Tensor:
    """Entropy of the policy at each position in nats, [N].

    A few rows at a time where no gradient is wanted: the temporary tensors are then small enough to stay in the cache.
    """
    if logits_NV.requires_grad and torch.is_grad_enabled():
        return _entropy(logits_NV)
    rows = max(1, _CHUNK_NUMBERS // logits_NV.shape[-1])
    return torch.cat([_entropy(part) for part in torch.split(logits_NV, rows)])


def _entropy(logits_NV: Tensor) -> Tensor:
    log_probs_NV = torch.log_softmax(logits_NV, dim=-1)
    return -(log_probs_NV.exp() * log_probs_NV).sum(dim=-1)


def k3(log_ratio_N: Tensor) -> Tensor:
    """Schulman's estimator of KL(old || new), [N] >= 0: r - 1 - log r with r = new / old on tokens sampled from old."""
    return torch.expm1(log_ratio_N.clamp(max=_largest_exponent(log_ratio_N.dtype))) - log_ratio_N


def probability_ratio(log_ratio: Tensor) -> Tensor:
    """Exponential of the log-ratio; saturates e^10 below its type's largest number, so that products stay finite."""
    return log_ratio.clamp(max=_largest_exponent(log_ratio.dtype)).exp()


def _largest_exponent(dtype: torch.dtype) -> float:
    return math.log(torch.finfo(dtype).max) - 10.0


def action_log_odds(logits_NV: Tensor, actions_N: Tensor) -> Tensor:
    """Logit of the sampled token's probability, log p - log(1 - p), [N]; keeps its digits near p = 0 and p = 1."""
    others_NV = logits_NV.scatter(-1, actions_N.unsqueeze(-1), -torch.inf)
    return gather_actions(logits_NV, actions_N) - torch.logsumexp(others_NV, dim=-1)


def per_sequence(values_N: Tensor, sequence_N: Tensor) -> Tensor:
    """Sum of the token values of each sequence, [S]."""
    num_sequences = int(sequence_N.max()) + 1
    return values_N.new_zeros(num_sequences).index_add(0, sequence_N, values_N)


def sequence_lengths(sequence_N: Tensor) -> Tensor:
    """Number of tokens of each sequence, [S]."""
    return torch.bincount(sequence_N)


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
