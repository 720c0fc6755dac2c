"""Advantages from rewards. Shapes: P prompts, G samples per prompt, T response tokens, K candidate tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from cvxrl.errors import Problem, UserError
from cvxrl.imports import import_function
from cvxrl.recipe.advantage import (
    AdvantageSpec,
    BatchAdvantage,
    CallableAdvantage,
    GroupAdvantage,
    GroupCenteredAdvantage,
    RewardAdvantage,
    RlooAdvantage,
)


def compute_advantages(rewards_PG: Tensor, spec: AdvantageSpec) -> Tensor:
    """Advantage of every completion, [P, G]; all tokens of a completion share it.

    Args:
        rewards_PG: float rewards; row p holds the samples of prompt p.
        spec: an estimator with credit `sequence`; see the spec classes for formulas and papers.

    Raises:
        TypeError: the estimator gives every token its own advantage.
        UserError: a function of the user's cannot be imported, or returns something else than advantages.
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
        case BatchAdvantage():
            return _centered(rewards_PG.view(1, -1)).view_as(rewards_PG) / (rewards_PG.std() + spec.eps)
        case CallableAdvantage():
            return _by_function(rewards_PG, spec)
        case _:
            raise TypeError(f"advantage `{spec.kind}` is per token")


def find_advantage(spec: CallableAdvantage) -> Callable[..., Any]:
    """The function that ``spec`` names.

    Raises:
        UserError: it cannot be imported or called.
    """
    return import_function(spec.function, "advantage.function")


def generalized_advantages(reward: float, values_T: Tensor, gamma: float, lam: float) -> Tensor:
    """Generalised advantage estimation of one response whose reward arrives at its last token, [T].

    A_t = sum_l (gamma lam)^l delta_{t+l}, delta_t = r_t + gamma V_{t+1} - V_t, V after the last token 0 (arXiv
    1506.02438, eq. 16). The return that a critic learns is A_t + V_t.

    Args:
        reward: reward of the response.
        values_T: critic's value before each response token.
        gamma: discount per token.
        lam: 0 is one-step, 1 is Monte Carlo.
    """
    next_T = torch.cat([values_T[1:], values_T.new_zeros(1)])
    delta_T = gamma * next_T - values_T
    delta_T[-1] += reward
    advantages_T = torch.empty_like(values_T)
    running = values_T.new_zeros(())
    for t in range(len(values_T) - 1, -1, -1):
        running = delta_T[t] + gamma * lam * running
        advantages_T[t] = running
    return advantages_T


def candidates(logits_TV: Tensor, actions_T: Tensor, k: int) -> Tensor:
    """Ids of the k most probable tokens of each position, the sampled one among them, [T, K].

    A sampled token outside the top k takes the place of the k-th.
    """
    ids_TK = logits_TV.topk(min(k, logits_TV.shape[-1]), dim=-1).indices
    missing_T = (ids_TK != actions_T.unsqueeze(-1)).all(dim=-1)
    ids_TK[missing_T, -1] = actions_T[missing_T]
    return ids_TK


def standardise(scores_TK: Tensor, center: bool, eps: float) -> Tensor:
    """Scores of the candidates over their standard deviation (n - 1 in it), centred or not, [T, K]."""
    mean_T1 = scores_TK.mean(dim=-1, keepdim=True) if center else 0.0
    return (scores_TK - mean_T1) / (scores_TK.std(dim=-1, keepdim=True) + eps)


def _by_function(rewards_PG: Tensor, spec: CallableAdvantage) -> Tensor:
    """Advantages by the user's function, in this process; what it raises keeps its traceback."""
    made = find_advantage(spec)(rewards_PG.clone(), **spec.options)
    shape = tuple(made.shape) if isinstance(made, Tensor) else None
    if shape != tuple(rewards_PG.shape):
        returned = f"shape {shape}" if shape is not None else type(made).__name__
        message = f"`{spec.function}` returned {returned} for rewards of shape {tuple(rewards_PG.shape)}"
        remedy = "return a tensor of the shape of the rewards: a row per prompt, a column per sample"
        raise UserError(Problem(message, "advantage.function", remedy=remedy))
    advantages_PG: Tensor = made.detach().to(rewards_PG)
    return advantages_PG


def _centered(rewards_PG: Tensor) -> Tensor:
    """Reward minus row mean, exactly zero where the whole row agrees (a mean of equal floats may round)."""
    agree_P1 = (rewards_PG == rewards_PG[:, :1]).all(dim=1, keepdim=True)
    return torch.where(agree_P1, 0.0, rewards_PG - rewards_PG.mean(dim=1, keepdim=True))
