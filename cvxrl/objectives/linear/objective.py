"""Every objective of the registry from hidden states and the output matrix, by the cheapest exact way."""

from __future__ import annotations

import torch
from torch import Tensor

from cvxrl.objectives.linear.batch import HiddenBatch
from cvxrl.objectives.linear.fused import LinearLoss, fused_loss
from cvxrl.objectives.linear.gathered import gathered_logits
from cvxrl.objectives.linear.kernels import kld_kernel, odds_kernel, whole_kernel
from cvxrl.objectives.linear.statistics import linear_statistics
from cvxrl.objectives.linear.sweep import Frozen
from cvxrl.objectives.registry import compute
from cvxrl.recipe.objective import LcoKldSpec, LcoLchSpec, LcoMseSpec, ObjectiveSpec


def linear_objective(
    batch: HiddenBatch, spec: ObjectiveSpec, weights_N: Tensor, *, chunk_tokens: int | None = None
) -> LinearLoss:
    """Sum of weight * loss under the objective that ``spec`` names; no [N, V] tensor exists at any time.

    Equal to `objectives.registry.compute` on the full logits, gradients included. `lco-mse` and `lco-lch` read rows of
    the output matrix and project nothing (docs/linear.md).

    Args:
        batch: hidden states, output layer and what the objective needs besides.
        spec: the objective.
        weights_N: weight of each token, without gradient (`objectives.reduce`).
        chunk_tokens: tokens per chunk; None for `sweep.default_chunk`.

    Raises:
        ValueError: no token, shapes that do not fit, or something that the objective needs is missing.
    """
    if isinstance(spec, LcoMseSpec | LcoLchSpec):
        return _gathered(batch, spec, weights_N, chunk_tokens)
    if spec.coupling != "token":
        return _of_sequences(batch, spec, weights_N, chunk_tokens)
    kernel, frozen = odds_kernel(batch, spec, weights_N), None
    if isinstance(spec, LcoKldSpec):
        frozen = _base(batch, spec)
        if batch.dense is not None or spec.support.kind != "exact":
            kernel = whole_kernel(batch, spec, weights_N)
        elif frozen is not None:
            kernel = kld_kernel(batch, spec, weights_N)
    return fused_loss(batch.hidden_NH, batch.head, weights_N, kernel, frozen=frozen, chunk_tokens=chunk_tokens)


def _base(batch: HiddenBatch, spec: LcoKldSpec | LcoMseSpec | LcoLchSpec) -> Frozen | None:
    """The policy that the target is built on; None if it is the current one, detached."""
    return None if batch.on_policy or spec.target == "moving" else batch.require_frozen()


def _gathered(
    batch: HiddenBatch, spec: LcoMseSpec | LcoLchSpec, weights_N: Tensor, chunk_tokens: int | None
) -> LinearLoss:
    """Losses of z_a - z*_a from the sampled tokens' or the candidates' logits alone."""
    ids_NK = batch.actions_N.unsqueeze(-1) if batch.dense is None else batch.dense.ids_NK
    now_NK = gathered_logits(batch.hidden_NH, batch.head, ids_NK, chunk_tokens=chunk_tokens)
    frozen = _base(batch, spec)
    old_NK = now_NK.detach()
    if frozen is not None:
        with torch.no_grad():
            old_NK = gathered_logits(frozen.hidden_NH, frozen.head, ids_NK, chunk_tokens=chunk_tokens).to(now_NK.dtype)
    if spec.tilt == "linear" and batch.dense is None:
        # A second column that gives the base policy the log-odds that this tilt asks for.
        log_odds_N = batch.old_log_odds_N if frozen is not None or batch.on_policy else None
        if log_odds_N is None:
            source = frozen or Frozen(batch.hidden_NH, batch.head)
            log_odds_N = _log_odds(source, batch.actions_N, chunk_tokens)
        others_N1 = old_NK - log_odds_N.to(old_NK.dtype).unsqueeze(-1)
        now_NK, old_NK = torch.cat([now_NK, others_N1], -1), torch.cat([old_NK, others_N1], -1)
    output = compute(batch.with_columns(now_NK, old_NK), spec)
    return _reduced(output.loss_N, weights_N, dict(output.metrics))


@torch.no_grad()
def _log_odds(policy: Frozen, actions_N: Tensor, chunk_tokens: int | None) -> Tensor:
    return linear_statistics(policy.hidden_NH, policy.head, actions_N, chunk_tokens=chunk_tokens).log_odds_N


def _of_sequences(batch: HiddenBatch, spec: ObjectiveSpec, weights_N: Tensor, chunk_tokens: int | None) -> LinearLoss:
    """Losses that compare tokens of a sequence or of a group: their gradient needs a second pass over the chunks."""
    found = linear_statistics(batch.hidden_NH, batch.head, batch.actions_N, chunk_tokens=chunk_tokens)
    output = compute(batch.with_log_odds(found.log_odds_N), spec)
    return _reduced(output.loss_N, weights_N, dict(output.metrics), found.logprobs_N.detach(), found.entropy_N.detach())


def _reduced(loss_N: Tensor, weights_N: Tensor, metrics: dict[str, Tensor], *read: Tensor) -> LinearLoss:
    loss = (weights_N.to(loss_N.dtype) * loss_N).sum()
    return LinearLoss(loss, loss_N.detach(), {name: value.detach() for name, value in metrics.items()}, *read)
