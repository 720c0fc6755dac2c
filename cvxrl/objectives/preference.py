"""Objectives on demonstrations (SFT) and on pairs of a chosen and a rejected reply (DPO, QRM)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from cvxrl.objectives.batch import ObjectiveOutput, TokenBatch
from cvxrl.objectives.statistics import (
    action_log_probs,
    by_group,
    per_sequence,
    sequence_lengths,
    sequence_log_ratio,
    to_tokens,
)
from cvxrl.recipe.objective import DpoSpec, QrmSpec, SftSpec


def sft(batch: TokenBatch, spec: SftSpec) -> ObjectiveOutput:
    """Cross-entropy -log pi(a) per token of a demonstration."""
    return ObjectiveOutput(-action_log_probs(batch.logits_NV, batch.actions_N))


def dpo(batch: TokenBatch, spec: DpoSpec) -> ObjectiveOutput:
    """-log sigmoid(beta (log w_chosen - log w_rejected)) per pair (arXiv 2305.18290, eq. 7).

    log w is the sequence's log-ratio to the reference. Groups are pairs: chosen, then rejected. The pair's value stands
    on the tokens of both, so that reduction `sequence-mean` is the mean over pairs.
    """
    log_w_P2 = by_group(sequence_log_ratio(batch, batch.require("reference_logprobs_N")), batch)
    margin_P = spec.beta * (log_w_P2[:, 0] - log_w_P2[:, 1])
    return _of_pairs(-logsigmoid(margin_P), margin_P, batch)


def qrm(batch: TokenBatch, spec: QrmSpec) -> ObjectiveOutput:
    """Reference-free preference loss on mean log-probabilities with a margin, plus cross-entropy of the chosen.

    -log sigmoid(beta (m_chosen - m_rejected) - gamma) - sft_coefficient m_chosen, m the mean token log-probability
    (docs/method.md, section 2). Groups are pairs: chosen, then rejected.
    """
    sequence_N = batch.require("sequence_N")
    total_S = per_sequence(action_log_probs(batch.logits_NV, batch.actions_N), sequence_N)
    mean_P2 = by_group(total_S / sequence_lengths(sequence_N), batch)
    margin_P = spec.beta * (mean_P2[:, 0] - mean_P2[:, 1])
    loss_P = -logsigmoid(margin_P - spec.gamma) - spec.sft_coefficient * mean_P2[:, 0]
    return _of_pairs(loss_P, margin_P, batch)


def _of_pairs(loss_P: Tensor, margin_P: Tensor, batch: TokenBatch) -> ObjectiveOutput:
    def spread(values_P: Tensor) -> Tensor:
        return to_tokens(values_P.repeat_interleave(2), batch)

    right_P = (margin_P > 0).to(margin_P.dtype)
    with torch.no_grad():
        metrics = {"preference/margin": spread(margin_P), "preference/accuracy": spread(right_P)}
    return ObjectiveOutput(spread(loss_P), metrics)
