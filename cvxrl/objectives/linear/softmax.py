"""Softmax statistics of a chunk of logits, computed in its own memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, softplus

# Columns handled at a time: temporaries then stay in the processor's cache.
_COLUMNS = 4096
# Stands for minus infinity below: its exponential is zero in every dtype, and zero times it is zero.
_NOTHING = -1e4


@dataclass(frozen=True)
class Others:
    """Softmax of a chunk with the sampled token a kept apart, so that neither p_a -> 1 nor p_a -> 0 loses digits.

    Attributes:
        weights_CV: exp(z_v - max over v != a), and 0 at v = a. Lives in the buffer that held the logits.
        rest_C: sum of ``weights_CV``, at least 1.
        log_odds_C: l = log p_a - log(1 - p_a).
        entropy_C: entropy in nats.
    """

    weights_CV: Tensor
    rest_C: Tensor
    log_odds_C: Tensor
    entropy_C: Tensor

    def pull_back_(self, slopes_C: Tensor, actions_C: Tensor) -> Tensor:
        """Turn the buffer into slope * dl / dz, [C, V]: 1 at a, minus the softmax over the others elsewhere."""
        self.weights_CV.mul_((-slopes_C / self.rest_C).unsqueeze(-1))
        return self.weights_CV.scatter_(-1, actions_C.unsqueeze(-1), slopes_C.unsqueeze(-1))


def others_(logits_CV: Tensor, actions_C: Tensor) -> Others:
    """Softmax of a chunk, in place: ``logits_CV`` is lost."""
    index_C1 = actions_C.unsqueeze(-1)
    sampled_C1 = logits_CV.gather(-1, index_C1)
    top_C1 = logits_CV.scatter_(-1, index_C1, -torch.inf).amax(dim=-1, keepdim=True)
    logits_CV.sub_(top_C1).scatter_(-1, index_C1, _NOTHING)
    rest_C, products_C = torch.zeros_like(top_C1[:, 0]), torch.zeros_like(top_C1[:, 0])
    for (part,) in _columns(logits_CV):
        exp = part.exp()
        rest_C += exp.sum(dim=-1)
        products_C += part.mul_(exp).sum(dim=-1)
        part.copy_(exp)
    log_odds_C = (sampled_C1 - top_C1).squeeze(-1) - rest_C.log()
    # Entropy of "a or not", plus that of the others where it is not a.
    free_C = torch.sigmoid(-log_odds_C)
    own_C = torch.sigmoid(log_odds_C) * softplus(-log_odds_C) + free_C * softplus(log_odds_C)
    return Others(logits_CV, rest_C, log_odds_C, own_C + free_C * (rest_C.log() - products_C / rest_C))


def pull_back_with_entropy_(
    logits_CV: Tensor, actions_C: Tensor, log_odds_C: Tensor, entropy_C: Tensor, slopes_C: Tensor, bonus_C: Tensor
) -> Tensor:
    """Gradient slope * dl / dz + bonus * dH / dz with dH / dz = -p (log p + H), in the memory of the logits, [C, V]."""
    log_probs_CV = log_softmax_(logits_CV)
    free_C1, log_free_C1 = torch.sigmoid(-log_odds_C).unsqueeze(-1), logsigmoid(-log_odds_C).unsqueeze(-1)
    entropy_C1, slopes_C1, bonus_C1 = (t.unsqueeze(-1) for t in (entropy_C, slopes_C, bonus_C))
    for (part,) in _columns(log_probs_CV):
        among_others = (part - log_free_C1).exp_()
        part.add_(entropy_C1).mul_(-bonus_C1 * free_C1).sub_(slopes_C1).mul_(among_others)
    log_p_C = logsigmoid(log_odds_C)
    sampled_C = slopes_C - bonus_C * log_p_C.exp() * (log_p_C + entropy_C)
    return log_probs_CV.scatter_(-1, actions_C.unsqueeze(-1), sampled_C.unsqueeze(-1))


def log_softmax_(logits_CV: Tensor) -> Tensor:
    """Log-softmax in place, and returned."""
    # Top first: with a large common offset, subtracting the logsumexp at once would lose the log of the sum.
    logits_CV.sub_(logits_CV.amax(dim=-1, keepdim=True))
    total_C1 = torch.zeros_like(logits_CV[:, :1])
    for (part,) in _columns(logits_CV):
        total_C1 += part.exp().sum(dim=-1, keepdim=True)
    return logits_CV.sub_(total_C1.log_())


def kl_(log_p_CV: Tensor, log_q_CV: Tensor) -> Tensor:
    """KL(p || q) from log-probabilities, [C]; leaves p in the memory of ``log_p_CV``."""
    total_C = log_p_CV.new_zeros(log_p_CV.shape[0])
    for log_p, log_q in _columns(log_p_CV, log_q_CV):
        difference = log_p - log_q
        total_C += difference.mul_(log_p.exp_()).sum(dim=-1)
    return total_C


def entropy_and_exp_(log_probs_CV: Tensor) -> Tensor:
    """Entropy in nats from log-probabilities, [C]; leaves probabilities in the memory of ``log_probs_CV``."""
    total_C = log_probs_CV.new_zeros(log_probs_CV.shape[0])
    for (part,) in _columns(log_probs_CV):
        probs = part.exp()
        total_C -= part.mul_(probs).sum(dim=-1)
        part.copy_(probs)
    return total_C


def kl_both_(logits_CV: Tensor, other_CV: Tensor) -> tuple[Tensor, Tensor]:
    """KL(policy || other) and KL(other || policy) from logits, [C] each; leaves log-probabilities in both buffers."""
    total_C = logits_CV.new_zeros(logits_CV.shape[0])
    back_C = torch.zeros_like(total_C)
    for log_p, log_q in _columns(log_softmax_(logits_CV), log_softmax_(other_CV)):
        difference = log_p - log_q
        total_C += (log_p.exp() * difference).sum(dim=-1)
        back_C -= (log_q.exp() * difference).sum(dim=-1)
    return total_C, back_C


def _columns(*tensors_CV: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The same block of columns of each tensor, block after block."""
    return zip(*(torch.split(tensor, _COLUMNS, -1) for tensor in tensors_CV), strict=True)
