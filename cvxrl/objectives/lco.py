"""Logits-convex objectives: a frozen target and a divergence (arXiv 2603.00963; docs/method.md, section 1)."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import softplus

from cvxrl.objectives.batch import ObjectiveOutput, TokenBatch
from cvxrl.objectives.statistics import gather_actions
from cvxrl.objectives.target import target_log_probs, target_logits, tilt
from cvxrl.recipe.objective import LcoKldSpec, LcoLchSpec, LcoMseSpec, LcoSpec


def lco_kld(batch: TokenBatch, spec: LcoKldSpec) -> ObjectiveOutput:
    """KL(pi* || pi) per token; gradient pi - pi*, Hessian diag(pi) - pi pi^T: convex in the logits.

    Needs ``old_logits_NV`` and ``advantages_N``. Losses are >= 0 and 0 exactly at the target.
    """
    tilt_N = _tilt(batch, spec)
    target_NV = target_log_probs(batch.require("old_logits_NV"), batch.actions_N, tilt_N)
    log_probs_NV = torch.log_softmax(batch.logits_NV, dim=-1)
    loss_N = (target_NV.exp() * (target_NV - log_probs_NV)).sum(dim=-1)
    return ObjectiveOutput(loss_N, {"lco/tilt_abs": tilt_N.abs()})


def lco_mse(batch: TokenBatch, spec: LcoMseSpec) -> ObjectiveOutput:
    """(z_a - z*_a)^2 per token; gradient 2 (z_a - z*_a) on the sampled logit: convex in the logits.

    Needs ``old_logits_NV`` and ``advantages_N``. Not invariant to adding a constant to all logits.
    """
    distance_N, tilt_N = _distance(batch, spec)
    return ObjectiveOutput(distance_N.square(), {"lco/tilt_abs": tilt_N.abs()})


def lco_lch(batch: TokenBatch, spec: LcoLchSpec) -> ObjectiveOutput:
    """Log cosh(z_a - z*_a) per token; gradient tanh(z_a - z*_a), bounded by 1: convex in the logits.

    Needs ``old_logits_NV`` and ``advantages_N``. Not invariant to adding a constant to all logits.
    """
    distance_N, tilt_N = _distance(batch, spec)
    return ObjectiveOutput(log_cosh(distance_N), {"lco/tilt_abs": tilt_N.abs()})


def log_cosh(x: Tensor) -> Tensor:
    """Elementwise log(cosh(x)) without overflow: x + softplus(-2x) - log 2, whose gradient is tanh(x) also at 0."""
    # softplus's default threshold drops exp(-2x) below 1e-9, which float64 tests would see.
    return x + softplus(-2.0 * x, threshold=50.0) - math.log(2.0)


def _tilt(batch: TokenBatch, spec: LcoSpec) -> Tensor:
    return tilt(batch.require("advantages_N"), spec.beta, spec.negative_beta_scale)


def _distance(batch: TokenBatch, spec: LcoSpec) -> tuple[Tensor, Tensor]:
    """Signed distance z_a - z*_a of the sampled logit and the tilt, both [N]."""
    tilt_N = _tilt(batch, spec)
    target_N = target_logits(batch.require("old_logits_NV"), batch.actions_N, tilt_N)
    return gather_actions(batch.logits_NV, batch.actions_N) - target_N, tilt_N
