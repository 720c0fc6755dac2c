"""What is logged of the logits of an optimizer step: shares of tokens whose loss is convex, pulls away or is frozen."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from cvxrl.engine.loss import Loss
from cvxrl.engine.sequences import Sequences
from cvxrl.gradients.logit_space import Rules, logit_space
from cvxrl.objectives.batch import TokenBatch
from cvxrl.objectives.statistics import action_log_probs
from cvxrl.recipe.lco import target_of
from cvxrl.recipe.schema import Recipe

# Signs of the Hessians need no eigenvalues, and those are what costs; one token's is computed all the same.
_RULES = Rules(eigenvalue_tokens=1)


@dataclass(frozen=True)
class _Seen:
    """What one process sees of its tokens.

    Attributes:
        probabilities_N: of the sampled tokens.
        directed: tokens that have a target.
        counts: how many of them are convex, ...
        known: whether all were looked at, as to their convexity.
    """

    probabilities_N: Tensor
    directed: int = 0
    counts: dict[str, int] = field(default_factory=dict)
    known: bool = True


def logit_metrics(loss: Loss, sequences: Sequences) -> dict[str, float]:
    """Shares of the tokens of the step's first group (docs/gradients.md, section 1), and their mean probability.

    Without the shares where no token has a target, or where the rollout's logits are not at hand.

    Args:
        loss: from full logits.
        sequences: this process's of an optimizer step, with advantages.
    """
    world, size = loss.world, loss.recipe.group_size
    first = sorted(position for part in world.gather(sequences.positions) for position in part)[:size]
    mine = sequences.select([i for i, position in enumerate(sequences.positions) if position in first])
    seen: list[_Seen] = world.gather(_look(loss.batch(mine)[0], loss.recipe) if len(mine) else _Seen(torch.empty(0)))
    metrics = {"policy/probability": float(torch.cat([one.probabilities_N for one in seen]).mean())}
    directed = sum(one.directed for one in seen)
    names = next((one.counts for one in seen if one.counts), {})
    for name in names if directed else ():
        if name != "convex" or all(one.known for one in seen):  # one token that was looked at is no share
            metrics[f"logits/{name}"] = sum(one.counts.get(name, 0) for one in seen) / directed
    return metrics


def _look(batch: TokenBatch, recipe: Recipe) -> _Seen:
    probabilities_N = action_log_probs(batch.logits_NV, batch.actions_N).exp().cpu()
    if batch.old_logits_NV is None or batch.advantages_N is None:
        return _Seen(probabilities_N)
    generator = torch.Generator().manual_seed(0)
    target = target_of(recipe.objective)
    space = logit_space(
        batch, recipe.objective, target, rules=_RULES, regularizer=recipe.regularizer, generator=generator
    )
    kinds = {"convex": space.psd_N, "away": space.away_N, "frozen": space.frozen_N}
    counts = {name: int((chosen_N & space.directed_N).sum()) for name, chosen_N in kinds.items()}
    return _Seen(probabilities_N, int(space.directed_N.sum()), counts, bool(space.known_N.all()))
