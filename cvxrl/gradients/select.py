"""Parts of a batch of tokens: some of its rows, another precision, other logits, or two logits in place of all."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from cvxrl.objectives.batch import DenseAdvantages, TokenBatch
from cvxrl.recipe.objective import ObjectiveSpec

_FLOATS = (
    "logits_NV",
    "advantages_N",
    "old_logits_NV",
    "old_logprobs_N",
    "reference_logprobs_N",
    "group_advantages_NG",
)


def units(batch: TokenBatch, spec: ObjectiveSpec) -> Tensor:
    """Which tokens an objective couples: tokens with different numbers never meet in a loss. Shape [N], int64.

    Read from the spec's coupling: whole groups of sequences, whole sequences, or nothing beyond the token.
    """
    if spec.coupling == "group":
        return batch.require("group_S")[batch.require("sequence_N")]
    if spec.coupling == "sequence":
        return batch.require("sequence_N")
    return torch.arange(batch.actions_N.numel(), device=batch.actions_N.device)


def position_in_unit(units_N: Tensor) -> Tensor:
    """Number of each token within its unit, counted from 0. Shape [N]."""
    order_N = torch.argsort(units_N, stable=True)
    counts = torch.bincount(units_N)
    starts = counts.cumsum(0) - counts
    positions_N = torch.empty_like(units_N)
    positions_N[order_N] = torch.arange(units_N.numel(), device=units_N.device) - starts[units_N[order_N]]
    return positions_N


def take(batch: TokenBatch, index_C: Tensor, dtype: torch.dtype = torch.float64) -> TokenBatch:
    """The rows ``index_C`` of a batch in another precision, without gradients; sequences and groups renumbered."""
    parts: dict[str, Tensor | DenseAdvantages | None] = {"actions_N": batch.actions_N[index_C]}
    for name in _FLOATS:
        tensor: Tensor | None = getattr(batch, name)
        parts[name] = None if tensor is None else tensor.detach()[index_C].to(dtype)
    if batch.dense is not None:
        parts["dense"] = DenseAdvantages(batch.dense.ids_NK[index_C], batch.dense.values_NK[index_C].to(dtype))
    if batch.sequence_N is not None:
        kept_S, parts["sequence_N"] = torch.unique(batch.sequence_N[index_C], return_inverse=True)
        if batch.group_S is not None:
            parts["group_S"] = torch.unique(batch.group_S[kept_S], return_inverse=True)[1]
    return replace(batch, **parts)  # type: ignore[arg-type]


def without_vocabulary(batch: TokenBatch) -> TokenBatch:
    """All rows in float64 with one zero for logits: for functions that put their own in place (`two_logits`)."""
    stub_N1 = torch.zeros(batch.actions_N.numel(), 1, device=batch.actions_N.device)
    old_N1 = None if batch.old_logits_NV is None else stub_N1
    stubbed = replace(batch, logits_NV=stub_N1, old_logits_NV=old_N1, dense=None)
    return take(stubbed, torch.arange(batch.actions_N.numel(), device=batch.actions_N.device))


def fewer_columns(batch: TokenBatch, columns_NK: Tensor) -> TokenBatch:
    """The batch on a smaller vocabulary, another one per token; the sampled token must be the first column."""
    old_NV = batch.old_logits_NV
    return replace(
        batch,
        logits_NV=batch.logits_NV.gather(-1, columns_NK),
        actions_N=torch.zeros_like(batch.actions_N),
        old_logits_NV=None if old_NV is None else old_NV.gather(-1, columns_NK),
        dense=None,
    )


def two_logits(batch: TokenBatch, falling_N: Tensor, old_log_odds_N: Tensor | None) -> TokenBatch:
    """The batch on a made-up vocabulary of two: the sampled token with logit 0, all others with ``falling_N``.

    ``falling_N`` is minus the log-odds of the sampled token. As a variable it keeps the digits of its derivatives where
    the sampled probability is near 1, which the log-odds would not (there the softmax of the first column rounds to 1).
    """
    zeros_N = torch.zeros_like(falling_N)
    old_N2 = None if old_log_odds_N is None else torch.stack([zeros_N, -old_log_odds_N.to(falling_N.dtype)], dim=-1)
    return replace(
        batch,
        logits_NV=torch.stack([zeros_N, falling_N], dim=-1),
        actions_N=torch.zeros_like(batch.actions_N),
        old_logits_NV=old_N2,
        dense=None,
    )
