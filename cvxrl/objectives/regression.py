"""Objectives that regress the policy's log-ratios onto the KL-regularised optimum: TPO, PMD, DRO, REBEL, GVPO.

All but DRO are defined per sequence; their papers average over sequences, which is reduction `sequence-mean`.
"""

from __future__ import annotations

import torch

from cvxrl.objectives.batch import ObjectiveOutput, TokenBatch
from cvxrl.objectives.statistics import (
    action_log_probs,
    by_group,
    per_sequence,
    sequence_advantages,
    sequence_log_ratio,
    to_tokens,
)
from cvxrl.recipe.objective import DroSpec, GvpoSpec, PmdSpec, RebelSpec, TpoSpec


def tpo(batch: TokenBatch, spec: TpoSpec) -> ObjectiveOutput:
    """Cross-entropy from q ~ p_old exp(A / eta) to p over the G samples of a prompt (arXiv 2604.06159).

    p = softmax over the samples of log pi(y). The value -G q_i log p_i stands on the tokens of sample i, so that the
    mean over sequences is the mean cross-entropy over prompts. Needs whole groups.
    """
    sequence_N = batch.require("sequence_N")
    log_probs_N = action_log_probs(batch.logits_NV, batch.actions_N)
    log_p_PG = torch.log_softmax(by_group(per_sequence(log_probs_N, sequence_N), batch), dim=-1)
    old_PG = by_group(per_sequence(batch.require("old_logprobs_N"), sequence_N), batch)
    q_PG = torch.softmax(old_PG + by_group(sequence_advantages(batch), batch) / spec.eta, dim=-1)
    loss_PG = -q_PG.shape[-1] * q_PG * log_p_PG
    return ObjectiveOutput(to_tokens(loss_PG, batch), {"tpo/target": to_tokens(q_PG, batch)})


def pmd(batch: TokenBatch, spec: PmdSpec) -> ObjectiveOutput:
    """Loss tau / 2 (A / tau - log w)^2 per sequence, log w = sum_t log r_t (arXiv 2501.12599, eq. 3).

    With `group-centered` rewards as A, the mean reward stands for tau log Z.
    """
    log_w_S = sequence_log_ratio(batch, batch.require("old_logprobs_N"))
    loss_S = 0.5 * spec.tau * (sequence_advantages(batch) / spec.tau - log_w_S).square()
    return ObjectiveOutput(to_tokens(loss_S, batch), {"pmd/log_ratio": to_tokens(log_w_S.detach(), batch)})


def dro(batch: TokenBatch, spec: DroSpec) -> ObjectiveOutput:
    """-A log pi(a) + beta / 2 (log r)^2 per token (arXiv 2405.19107, token form)."""
    log_probs_N = action_log_probs(batch.logits_NV, batch.actions_N)
    log_ratio_N = log_probs_N - batch.require("old_logprobs_N")
    loss_N = -batch.require("advantages_N") * log_probs_N + 0.5 * spec.beta * log_ratio_N.square()
    return ObjectiveOutput(loss_N, {"dro/log_ratio": log_ratio_N.detach()})


def rebel(batch: TokenBatch, spec: RebelSpec) -> ObjectiveOutput:
    """Mean over the other samples j of ((log w_i - log w_j) - eta (A_i - A_j))^2 (arXiv 2404.16767, eq. 1).

    Any baseline cancels in A_i - A_j. Needs whole groups of at least two.
    """
    log_w_S = sequence_log_ratio(batch, batch.require("old_logprobs_N"))
    error_PG = by_group(log_w_S - spec.eta * sequence_advantages(batch), batch)
    loss_PG = (error_PG.unsqueeze(-1) - error_PG.unsqueeze(-2)).square().sum(-1) / (error_PG.shape[-1] - 1)
    return ObjectiveOutput(to_tokens(loss_PG, batch), {"rebel/log_ratio": to_tokens(log_w_S.detach(), batch)})


def gvpo(batch: TokenBatch, spec: GvpoSpec) -> ObjectiveOutput:
    """G / (2 (G - 1)) ((beta log w_i - its mean) - (A_i - its mean))^2 (arXiv 2504.19599, eq. 9).

    The mean over a group is half the sample variance of beta log w - A. Needs whole groups of at least two.
    """
    log_w_S = sequence_log_ratio(batch, batch.require("old_logprobs_N"))
    error_PG = by_group(spec.beta * log_w_S - sequence_advantages(batch), batch)
    size = error_PG.shape[-1]
    loss_PG = size / (2 * (size - 1)) * (error_PG - error_PG.mean(-1, keepdim=True)).square()
    return ObjectiveOutput(to_tokens(loss_PG, batch), {"gvpo/log_ratio": to_tokens(log_w_S.detach(), batch)})
