"""Softmax statistics of a chunk of logits, computed in its own memory."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

# Columns handled at a time: temporaries then stay in the processor's cache.
_COLUMNS = 4096
# Stands for minus infinity below: its exponential is zero in every dtype, and zero times it is zero.
_NOTHING = -1e4


@dataclass(frozen=True)
class Others:
    """Softmax of a chunk, the sampled token a kept apart so that neither p_a -> 1 nor p_a -> 0 loses digits.

    Attributes:
        weights_CV: exp(z_v - max z), and 0 at v = a. Lives in the buffer that held the logits.
        rest_C: sum of ``weights_CV``.
        log_odds_C: logit of p_a.
        normalizer_C: rest_C + exp(z_a - max z), so that p_v = weights / normalizer.
        lse_C: logsumexp of the logits.
        entropy_C: entropy in nats.
    """

    weights_CV: Tensor
    rest_C: Tensor
    log_odds_C: Tensor
    normalizer_C: Tensor
    lse_C: Tensor
    entropy_C: Tensor

    @property
    def logprobs_C(self) -> Tensor:
        """Log-probability of the sampled token."""
        return logsigmoid(self.log_odds_C)

    def policy_gradient_(self, slopes_C: Tensor, actions_C: Tensor) -> Tensor:
        """Turn the buffer into slope * d log p_a / dz = slope * (e_a - p), [C, V]."""
        self.weights_CV.mul_((-slopes_C / self.normalizer_C).unsqueeze(-1))
        sampled_C = slopes_C * (self.rest_C / self.normalizer_C)
        return self.weights_CV.scatter_(-1, actions_C.unsqueeze(-1), sampled_C.unsqueeze(-1))


def others_(logits_CV: Tensor, actions_C: Tensor) -> Others:
    """Softmax of a chunk, in place: ``logits_CV`` is lost."""
    index_C1 = actions_C.unsqueeze(-1)
    top_C1 = logits_CV.amax(dim=-1, keepdim=True)
    shifted_CV = logits_CV.sub_(top_C1)
    sampled_C = shifted_CV.gather(-1, index_C1).squeeze(-1)
    shifted_CV.scatter_(-1, index_C1, _NOTHING)
    rest_C, products_C = torch.zeros_like(sampled_C), torch.zeros_like(sampled_C)
    for part in torch.split(shifted_CV, _COLUMNS, -1):
        exp = part.exp()
        rest_C += exp.sum(dim=-1)
        products_C += part.mul_(exp).sum(dim=-1)
        part.copy_(exp)
    exp_sampled_C = sampled_C.exp()
    normalizer_C = rest_C + exp_sampled_C
    log_normalizer_C = normalizer_C.log()
    entropy_C = log_normalizer_C - (products_C + exp_sampled_C * sampled_C) / normalizer_C
    lse_C = log_normalizer_C + top_C1.squeeze(-1)
    return Others(shifted_CV, rest_C, sampled_C - rest_C.log(), normalizer_C, lse_C, entropy_C)


def log_softmax_(logits_CV: Tensor) -> Tensor:
    """Log-softmax in place, and returned."""
    # Top first: with a large common offset, subtracting the logsumexp at once would lose the log of the sum.
    logits_CV.sub_(logits_CV.amax(dim=-1, keepdim=True))
    return logits_CV.sub_(log_normalizer(logits_CV))


def kl_(log_p_CV: Tensor, log_q_CV: Tensor) -> Tensor:
    """KL(p || q) from log-probabilities, [C]; leaves p in the memory of ``log_p_CV``."""
    total_C = log_p_CV.new_zeros(log_p_CV.shape[0])
    for log_p, log_q in zip(torch.split(log_p_CV, _COLUMNS, -1), torch.split(log_q_CV, _COLUMNS, -1), strict=True):
        difference = log_p - log_q
        total_C += difference.mul_(log_p.exp_()).sum(dim=-1)
    return total_C


def entropy_and_exp_(log_probs_CV: Tensor) -> Tensor:
    """Entropy in nats from log-probabilities, [C]; leaves probabilities in the memory of ``log_probs_CV``."""
    total_C = log_probs_CV.new_zeros(log_probs_CV.shape[0])
    for part in torch.split(log_probs_CV, _COLUMNS, -1):
        probs = part.exp()
        total_C -= part.mul_(probs).sum(dim=-1)
        part.copy_(probs)
    return total_C


def kl_both(logits_CV: Tensor, other_CV: Tensor) -> tuple[Tensor, Tensor]:
    """KL(policy || other) and KL(other || policy) from logits, [C] each; the logits stay."""
    shift_C1, other_shift_C1 = log_normalizer(logits_CV), log_normalizer(other_CV)
    forward_C = logits_CV.new_zeros(logits_CV.shape[0])
    backward_C = torch.zeros_like(forward_C)
    for part, other in zip(torch.split(logits_CV, _COLUMNS, -1), torch.split(other_CV, _COLUMNS, -1), strict=True):
        log_p, log_q = part - shift_C1, other - other_shift_C1
        difference = log_p - log_q
        forward_C += log_p.exp_().mul_(difference).sum(dim=-1)
        backward_C -= log_q.exp_().mul_(difference).sum(dim=-1)
    return forward_C, backward_C


def log_normalizer(logits_CV: Tensor) -> Tensor:
    """Logsumexp of each row, [C, 1], without a temporary as large as the logits."""
    top_C1 = logits_CV.amax(dim=-1, keepdim=True)
    total_C1 = torch.zeros_like(top_C1)
    for part in torch.split(logits_CV, _COLUMNS, -1):
        total_C1 += (part - top_C1).exp_().sum(dim=-1, keepdim=True)
    return top_C1 + total_C1.log_()
