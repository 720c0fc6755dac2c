"""From rewards to advantages. Shapes: P prompts, G samples per prompt."""

from __future__ import annotations

import torch
from torch import Tensor

from cvxrl.recipe.objective import (
    AdvantageSpec,
    GroupAdvantage,
    GroupCenteredAdvantage,
    RewardAdvantage,
    RlooAdvantage,
)


def compute_advantages(rewards_PG: Tensor, spec: AdvantageSpec) -> Tensor:
    """Advantage of every completion, [P, G]; all tokens of a completion share it.

    Args:
        rewards_PG: float rewards; row p holds the samples of prompt p.
        spec: which estimator; see the spec classes for formulas and papers.
    """
    match spec:
        case RewardAdvantage():
            return rewards_PG.clone()
        case GroupAdvantage():
            centered_PG = _centered(rewards_PG)
            return centered_PG / (rewards_PG.std(dim=1, keepdim=True) + spec.eps)
        case GroupCenteredAdvantage():
            return _centered(rewards_PG)
        case RlooAdvantage():
            # R_i - mean of the others = (R_i - mean of all) * G / (G - 1)
            num_samples = rewards_PG.shape[1]
            return _centered(rewards_PG) * (num_samples / (num_samples - 1))


def _centered(rewards_PG: Tensor) -> Tensor:
    """Reward minus group mean, exactly zero where the whole group agrees (a mean of equal floats may round)."""
    agree_P1 = (rewards_PG == rewards_PG[:, :1]).all(dim=1, keepdim=True)
    return torch.where(agree_P1, 0.0, rewards_PG - rewards_PG.mean(dim=1, keepdim=True))
