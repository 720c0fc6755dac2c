"""What is logged of a step beside its loss: gradient norms, the logits' geometry, and how far the policy moved."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from cvxrl.engine.readers import Reader
from cvxrl.engine.sequences import Sequences
from cvxrl.gradients.logit_space import Rules, logit_space
from cvxrl.gradients.parameters import norms
from cvxrl.objectives.batch import TokenBatch
from cvxrl.objectives.statistics import action_log_probs, k3
from cvxrl.recipe.lco import target_of
from cvxrl.recipe.schema import Recipe

# Signs of the Hessians need no eigenvalues, and those are what costs; one token's is computed all the same.
_RULES = Rules(eigenvalue_tokens=1)


def gradient_metrics(model: nn.Module) -> dict[str, float]:
    """Norms of the accumulated gradient before clipping: by kind of module, and the mean over q, k and v."""
    found = norms({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    return {"grad/qkv": found.attention_mean, **{f"grad/module/{kind}": n for kind, n in found.by_module.items()}}


def logit_metrics(batch: TokenBatch, recipe: Recipe) -> dict[str, float]:
    """Shares of the tokens of a few sequences that are convex, pull away or are frozen (docs/gradients.md, section 1).

    Empty where no token has a target, or where the rollout's logits are not at hand.
    """
    metrics = {"policy/probability": float(action_log_probs(batch.logits_NV, batch.actions_N).exp().mean())}
    if batch.old_logits_NV is None or batch.advantages_N is None:
        return metrics
    generator = torch.Generator().manual_seed(0)
    target = target_of(recipe.objective)
    space = logit_space(
        batch, recipe.objective, target, rules=_RULES, regularizer=recipe.regularizer, generator=generator
    )
    directed_N = space.directed_N & space.known_N
    count = int(directed_N.sum())
    if count:
        shares = (("convex", space.psd_N), ("away", space.away_N), ("frozen", space.frozen_N))
        metrics |= {f"logits/{name}": int((chosen_N & directed_N).sum()) / count for name, chosen_N in shares}
    return metrics


def policy_shift(reader: Reader, sequences: Sequences, num_sequences: int) -> dict[str, float]:
    """KL(rollout policy || policy now), estimated with k3 on the tokens of the first ``num_sequences``."""
    if sequences.sampled_logprobs is None or num_sequences == 0:
        return {}
    few = sequences.select(range(min(num_sequences, len(sequences))))
    assert few.sampled_logprobs is not None
    new = torch.cat(reader.log_probs(few)).cpu()
    return {"policy/kl": float(k3(new - torch.cat(few.sampled_logprobs)).mean())}


def ratio_deviation(reader: Reader, sequences: Sequences, num_sequences: int = 32) -> float:
    """Largest |ratio - 1| between the sampler's and the trainer's probabilities before any update.

    All sequences are checked at the configured micro-batch size, the first ones also at sizes 1 and 4.
    """
    few = sequences.select(range(min(num_sequences, len(sequences))))
    worst = 0.0
    four, one = (replace(reader.limit, sequences=size) for size in (4, 1))
    for part, limit in ((sequences, reader.limit), (few, four), (few, one)):
        assert part.sampled_logprobs is not None
        read = replace(reader, limit=limit).log_probs(part)
        difference = torch.cat(read).cpu() - torch.cat(part.sampled_logprobs)
        worst = max(worst, float(torch.expm1(difference).abs().max()))
    return worst
