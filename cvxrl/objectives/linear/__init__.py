"""Objectives straight from hidden states and the output matrix, in chunks: no [tokens, vocabulary] tensor."""

from __future__ import annotations

from cvxrl.objectives.linear.batch import HiddenBatch
from cvxrl.objectives.linear.from_model import head_of
from cvxrl.objectives.linear.fused import LinearLoss
from cvxrl.objectives.linear.gathered import gathered_logits
from cvxrl.objectives.linear.head import LinearHead, LowRank
from cvxrl.objectives.linear.objective import linear_objective
from cvxrl.objectives.linear.statistics import Statistics, linear_statistics
from cvxrl.objectives.linear.sweep import Frozen

__all__ = [
    "Frozen",
    "HiddenBatch",
    "LinearHead",
    "LinearLoss",
    "LowRank",
    "Statistics",
    "gathered_logits",
    "head_of",
    "linear_objective",
    "linear_statistics",
]
