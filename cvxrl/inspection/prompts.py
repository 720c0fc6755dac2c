"""Intervals over the prompts of a rollout: of a share, a mean and a sum over tokens that come in prompts."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cvxrl.engine.sequences import Sequences
from cvxrl.inspection.metrics import Range
from cvxrl.stats.bootstrap import Interval
from cvxrl.stats.clusters import ratio_interval, share_interval

CONFIDENCE = 0.95  # of what is said in words


@dataclass(frozen=True)
class Prompts:
    """Which prompt each token belongs to, numbered from 0 in the order of the rollouts.

    Attributes:
        number: of each prompt, by the group of its sequences.
    """

    number: dict[int, int]

    @classmethod
    def of(cls, sequences: Sequences) -> Prompts:
        """The prompts of these sequences."""
        return cls({group: k for k, group in enumerate(dict.fromkeys(sequences.groups))})

    def __len__(self) -> int:
        """How many there are."""
        return len(self.number)

    def of_sequences(self, sequences: Sequences) -> Tensor:
        """Number of the prompt of every sequence, [S], on the CPU."""
        return torch.tensor([self.number[group] for group in sequences.groups])

    def of_tokens(self, sequences: Sequences) -> Tensor:
        """Number of the prompt of every response token, sequence after sequence, [N], on the CPU."""
        return self.of_sequences(sequences).repeat_interleave(torch.tensor(sequences.lengths))


def interval_of_share(chosen_N: Tensor, of_N: Tensor, prompt_N: Tensor) -> Range | None:
    """Of the share of the tokens ``of_N`` that ``chosen_N`` names."""
    hits_P, counts_P = _sums(chosen_N & of_N, prompt_N), _sums(of_N, prompt_N)
    return as_range(share_interval(hits_P.numpy(), counts_P.numpy(), CONFIDENCE))


def interval_of_mean(values_N: Tensor, prompt_N: Tensor, weights_N: Tensor | None = None) -> Range | None:
    """Of the mean over tokens (or sequences), weighted if there are weights."""
    weights_N = torch.ones_like(values_N) if weights_N is None else weights_N
    sums_P, counts_P = _sums(weights_N * values_N, prompt_N), _sums(weights_N, prompt_N)
    return as_range(ratio_interval(sums_P.numpy(), counts_P.numpy(), CONFIDENCE))


def interval_of_sum(parts_P: Tensor) -> Range | None:
    """Of a sum of what each prompt adds."""
    mean = ratio_interval(parts_P.numpy(), torch.ones_like(parts_P).numpy(), CONFIDENCE)
    return None if mean is None else Range(low=mean.low * len(parts_P), high=mean.high * len(parts_P))


def as_range(interval: Interval | None) -> Range | None:
    """An interval as the record has it; None where there are not two prompts."""
    return None if interval is None else Range(low=interval.low, high=interval.high)


def _sums(values_N: Tensor, prompt_N: Tensor) -> Tensor:
    return torch.bincount(prompt_N.cpu(), weights=values_N.cpu().double())
