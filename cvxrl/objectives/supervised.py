"""Supervised objectives."""

from __future__ import annotations

from cvxrl.objectives.batch import ObjectiveOutput, TokenBatch
from cvxrl.objectives.statistics import action_log_probs
from cvxrl.recipe.objective import SftSpec


def sft(batch: TokenBatch, spec: SftSpec) -> ObjectiveOutput:
    """Cross-entropy -log pi(a) per token of a demonstration."""
    return ObjectiveOutput(-action_log_probs(batch.logits_NV, batch.actions_N))
