"""Logits-convex objectives: a target and a divergence (arXiv 2603.00963; docs/method.md, section 1)."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import softplus

from cvxrl.objectives.batch import ObjectiveOutput, Objectives, TokenBatch
from cvxrl.objectives.statistics import gather_actions
from cvxrl.objectives.target import fill_outside_top_k, sampled_tilt, target_log_probs, target_logits, tilt, top_k_kld
from cvxrl.recipe.lco import LcoKldSpec, LcoLchSpec, LcoMseSpec, LcoSpec, TopKFillSupport, TopKSupport


def lco_kld(batch: TokenBatch, spec: LcoKldSpec) -> ObjectiveOutput:
    """KL(pi* || pi) per token; gradient pi - pi*, Hessian diag(pi) - pi pi^T: convex in the logits.

    Needs ``old_logits_NV`` (target `frozen`) and ``advantages_N`` or ``dense``. Losses are >= 0 and 0 exactly at the
    target. With ``dense`` the target is restricted to the candidates.
    """
    base_NV = _base(batch, spec)
    if batch.dense is not None:
        return _dense_kld(batch, spec, base_NV)
    if isinstance(spec.support, TopKFillSupport):
        base_NV = fill_outside_top_k(base_NV, spec.support)
    tilt_N = _tilt(batch, spec, base_NV)
    if isinstance(spec.support, TopKSupport):
        loss_N = top_k_kld(batch.logits_NV, base_NV, batch.actions_N, tilt_N, spec.support.k)
    else:
        loss_N = _kl(target_log_probs(base_NV, batch.actions_N, tilt_N), torch.log_softmax(batch.logits_NV, dim=-1))
    return ObjectiveOutput(loss_N, {"lco/tilt_abs": tilt_N.abs()})


def lco_mse(batch: TokenBatch, spec: LcoMseSpec) -> ObjectiveOutput:
    """(z_a - z*_a)^2 per token, summed over the candidates if ``dense``: convex in the logits.

    Needs ``old_logits_NV`` (target `frozen`) and ``advantages_N`` or ``dense``. The gradient is 2 (z_a - z*_a). Not
    invariant to adding a constant to all logits.
    """
    distance, tilts = _distance(batch, spec)
    return _sum_candidates(distance.square(), tilts)


def lco_lch(batch: TokenBatch, spec: LcoLchSpec) -> ObjectiveOutput:
    """Log cosh(z_a - z*_a) per token, summed over the candidates if ``dense``: convex in the logits.

    Needs ``old_logits_NV`` (target `frozen`) and ``advantages_N`` or ``dense``. The gradient is tanh(z_a - z*_a),
    bounded by 1. Not invariant to adding a constant to all logits.
    """
    distance, tilts = _distance(batch, spec)
    return _sum_candidates(log_cosh(distance), tilts)


def log_cosh(x: Tensor) -> Tensor:
    """Elementwise log(cosh(x)) without overflow: x + softplus(-2x) - log 2, whose gradient is tanh(x) also at 0."""
    # softplus's default threshold drops exp(-2x) below 1e-9, which float64 tests would see.
    return x + softplus(-2.0 * x, threshold=50.0) - math.log(2.0)


def _base(batch: TokenBatch, spec: LcoSpec) -> Tensor:
    """Logits that the target is built on, without gradient."""
    return batch.require("old_logits_NV") if spec.target == "frozen" else batch.logits_NV.detach()


def _tilt(batch: TokenBatch, spec: LcoSpec, base_NV: Tensor) -> Tensor:
    advantages_N = batch.require("advantages_N")
    return sampled_tilt(spec, base_NV, batch.actions_N, advantages_N, batch.group_advantages_NG)


def _distance(batch: TokenBatch, spec: LcoSpec) -> tuple[Tensor, Tensor]:
    """Signed distance z - z* and tilt of the sampled token ([N]) or of the candidates ([N, K])."""
    base_NV = _base(batch, spec)
    if batch.dense is not None:
        tilts_NK = tilt(batch.dense.values_NK, spec.beta, spec.negative_beta_scale)
        ids_NK = batch.dense.ids_NK
        return batch.logits_NV.gather(-1, ids_NK) - (base_NV.gather(-1, ids_NK) + tilts_NK), tilts_NK
    tilt_N = _tilt(batch, spec, base_NV)
    return gather_actions(batch.logits_NV, batch.actions_N) - target_logits(base_NV, batch.actions_N, tilt_N), tilt_N


def _sum_candidates(loss: Tensor, tilts: Tensor) -> ObjectiveOutput:
    if loss.ndim == 2:
        return ObjectiveOutput(loss.sum(dim=-1), {"lco/tilt_abs": tilts.abs().mean(dim=-1)})
    return ObjectiveOutput(loss, {"lco/tilt_abs": tilts.abs()})


def _dense_kld(batch: TokenBatch, spec: LcoKldSpec, base_NV: Tensor) -> ObjectiveOutput:
    """KL(pi*_S || pi): the target lives on the candidates S, the policy on the whole vocabulary."""
    assert batch.dense is not None
    tilts_NK = tilt(batch.dense.values_NK, spec.beta, spec.negative_beta_scale)
    target_NK = torch.log_softmax(base_NV.gather(-1, batch.dense.ids_NK) + tilts_NK, dim=-1)
    log_probs_NK = torch.log_softmax(batch.logits_NV, dim=-1).gather(-1, batch.dense.ids_NK)
    return ObjectiveOutput(_kl(target_NK, log_probs_NK), {"lco/tilt_abs": tilts_NK.abs().mean(dim=-1)})


def _kl(target: Tensor, log_probs: Tensor) -> Tensor:
    """KL(target || policy) from log-probabilities, summed over the last axis."""
    return (target.exp() * (target - log_probs)).sum(dim=-1)


OBJECTIVES: Objectives = {"lco-kld": lco_kld, "lco-mse": lco_mse, "lco-lch": lco_lch}
