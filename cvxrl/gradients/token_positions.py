"""Where each token stands between the rollout policy, the current one and its target. The same for all objectives."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from cvxrl.gradients.select import take
from cvxrl.objectives.batch import TokenBatch
from cvxrl.objectives.statistics import gather_actions
from cvxrl.objectives.target import sampled_tilt, tilt
from cvxrl.recipe.lco import LcoKldSpec


@dataclass(frozen=True)
class TokenPositions:
    """Per-token numbers, float64 [N]. r is the policy's softmax over all tokens but the sampled one, w = e_a - r.

    Attributes:
        log_odds_N: log p - log(1 - p) of the sampled token under the current policy.
        old_log_odds_N: the same under the rollout policy.
        width_N: w . w under the current policy.
        old_width_N: w . w under the rollout policy.
        along_N: w . (z* - z).
        reach_N: norm of z* - z after subtracting its mean.
        distance_N: total variation between the current policy and the target pi*.
        old_distance_N: total variation between the rollout policy and pi*.
        directed_N: whether there is a direction: the tilt and z* - z (up to a constant) are not zero.
        on_policy: whether the current logits equal the rollout's.
    """

    log_odds_N: Tensor
    old_log_odds_N: Tensor
    width_N: Tensor
    old_width_N: Tensor
    along_N: Tensor
    reach_N: Tensor
    distance_N: Tensor
    old_distance_N: Tensor
    directed_N: Tensor
    on_policy: bool


def chunks(num_tokens: int, vocab: int, chunk_numel: int) -> Iterator[Tensor]:
    """Indices of consecutive tokens, so many that tokens times vocabulary stays within ``chunk_numel``."""
    size = max(1, chunk_numel // vocab)
    for start in range(0, num_tokens, size):
        yield torch.arange(start, min(start + size, num_tokens))


@torch.no_grad()
def token_positions(batch: TokenBatch, yardstick: LcoKldSpec, *, chunk_numel: int = 2**18) -> TokenPositions:
    """Measure every token against pi* of ``yardstick``, built on the rollout's logits whatever its `target` says.

    Args:
        batch: needs ``old_logits_NV`` and ``advantages_N`` or ``dense``.
        yardstick: beta, sign scale, tilt and shift of the target. Its support does not matter.
        chunk_numel: numbers per working buffer; bounds the memory, changes nothing.

    Raises:
        ValueError: something that the target needs is missing.
    """
    old_NV = batch.require("old_logits_NV")
    num_tokens, vocab = old_NV.shape
    rows = [_positions_of_chunk(take(batch, index_C), yardstick) for index_C in chunks(num_tokens, vocab, chunk_numel)]
    columns = {
        field.name: torch.cat(column)
        for field, column in zip(fields(TokenPositions), zip(*rows, strict=True), strict=False)
    }
    return TokenPositions(**columns, on_policy=torch.equal(batch.logits_NV, old_NV.to(batch.logits_NV.dtype)))


def target_shift(batch: TokenBatch, yardstick: LcoKldSpec) -> tuple[Tensor, Tensor]:
    """Token ids whose logits the target moves, and by how much: [N, 1] for sampled advantages, [N, K] for dense."""
    old_NV = batch.require("old_logits_NV")
    if batch.dense is not None:
        return batch.dense.ids_NK, tilt(batch.dense.values_NK, yardstick.beta, yardstick.negative_beta_scale)
    advantages_N = batch.require("advantages_N")
    if yardstick.shift == "drift-free":
        batch.require("group_advantages_NG")
    shift_N = sampled_tilt(yardstick, old_NV, batch.actions_N, advantages_N, batch.group_advantages_NG)
    return batch.actions_N.unsqueeze(-1), shift_N.unsqueeze(-1)


def others(logits_NV: Tensor, actions_N: Tensor) -> tuple[Tensor, Tensor]:
    """Softmax over all tokens but the sampled one, [N, V], and the log-odds of the sampled one, [N]."""
    rest_NV = logits_NV.scatter(-1, actions_N.unsqueeze(-1), -torch.inf)
    total_N = torch.logsumexp(rest_NV, dim=-1)
    return rest_NV.sub_(total_N.unsqueeze(-1)).exp_(), gather_actions(logits_NV, actions_N) - total_N


def _positions_of_chunk(part: TokenBatch, yardstick: LcoKldSpec) -> tuple[Tensor, ...]:
    old_NV = part.require("old_logits_NV")
    ids_NK, shift_NK = target_shift(part, yardstick)
    r_NV, log_odds_N = others(part.logits_NV, part.actions_N)
    old_r_NV, old_log_odds_N = (r_NV, log_odds_N)
    if not torch.equal(part.logits_NV, old_NV):
        old_r_NV, old_log_odds_N = others(old_NV, part.actions_N)
    away_NV = (old_NV - part.logits_NV).scatter_add_(-1, ids_NK, shift_NK)
    # Centred first: the products below do not see a constant, but they would lose digits to a large one.
    away_NV -= away_NV.mean(-1, keepdim=True)
    reach_N = away_NV.norm(dim=-1)
    if part.dense is None:
        tilted_N = old_log_odds_N + shift_NK.squeeze(-1)
        distances = [_apart(r_NV, log_odds_N, old_r_NV, tilted_N), _apart(old_r_NV, old_log_odds_N, old_r_NV, tilted_N)]
    else:
        target_NV = torch.softmax(old_NV.scatter_add(-1, ids_NK, shift_NK), dim=-1)
        distances = [0.5 * (torch.softmax(z, -1) - target_NV).abs().sum(-1) for z in (part.logits_NV, old_NV)]
    return (
        log_odds_N,
        old_log_odds_N,
        1.0 + r_NV.norm(dim=-1).square(),
        1.0 + old_r_NV.norm(dim=-1).square(),
        gather_actions(away_NV, part.actions_N) - torch.linalg.vecdot(r_NV, away_NV),
        reach_N,
        *distances,
        (shift_NK != 0).any(-1) & (reach_N > 1e-12 * part.logits_NV.abs().amax(-1)),
    )


def _apart(r_NV: Tensor, log_odds_N: Tensor, other_r_NV: Tensor, other_log_odds_N: Tensor) -> Tensor:
    """Total variation between two policies, each given by the sampled token's log-odds and the rest's proportions."""
    sampled_N = (torch.sigmoid(log_odds_N) - torch.sigmoid(other_log_odds_N)).abs()
    if other_r_NV is r_NV:
        return sampled_N
    rest_N1, other_rest_N1 = (torch.sigmoid(-x).unsqueeze(-1) for x in (log_odds_N, other_log_odds_N))
    return 0.5 * (sampled_N + (rest_N1 * r_NV).sub_(other_rest_N1 * other_r_NV).abs_().sum(-1))
