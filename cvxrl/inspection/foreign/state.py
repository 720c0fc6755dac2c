"""What a foreign checkpoint gives the measured step: optimizer state and learning rate, and how sure that is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from cvxrl.advantages import compute_advantages
from cvxrl.inspection.foreign.checkpoint import ForeignCheckpoint
from cvxrl.inspection.foreign.moments import Moments, as_our_state, likeness, read_moments
from cvxrl.inspection.foreign.settings import next_rate
from cvxrl.inspection.objectives import NamedObjective
from cvxrl.inspection.rollouts import FrozenRollouts
from cvxrl.policy.locate import is_adapter
from cvxrl.policy.model import Policy
from cvxrl.recipe.advantage import CallableAdvantage
from cvxrl.recipe.schema import Recipe

# Stored advantages are in single precision.
_SAME = 1e-3


@dataclass(frozen=True)
class Left:
    """What another trainer's optimizer left.

    Attributes:
        moments: by parameter; None where they were not read.
        state: the same for our optimizer, under `optimizer`; None for a fresh one.
        rate: learning rate of the next step; None where the recipe's holds.
        notes: a sentence each.
    """

    moments: Moments | None
    state: dict[str, Any] | None
    rate: float | None
    notes: list[str]

    def at_its_rate(self, named: NamedObjective) -> NamedObjective:
        """An objective under the learning rate of the checkpoint's next step."""
        if self.rate is None:
            return named
        changes = {"lr": self.rate, "schedule": "constant", "warmup_steps": 0}
        optim = named.recipe.optim.model_copy(update=changes)
        return replace(named, recipe=named.recipe.model_copy(update={"optim": optim}))


def read_optimizer(
    checkpoint: ForeignCheckpoint, policy: Policy, critic: nn.Module | None, recipe: Recipe, *, own_rate: bool
) -> Left:
    """Read a checkpoint's optimizer, if it has one that a recipe's can go on from.

    Args:
        checkpoint: names the file.
        policy: whose parameters it stepped.
        critic: trained beside the policy, without a state there.
        recipe: names the optimizer.
        own_rate: whether the checkpoint says the learning rate, and not the recipe.

    Raises:
        UserError: the file is damaged, or of another policy.
    """
    moments, note = _moments(checkpoint, policy, recipe)
    notes = [note]
    rate = None
    if own_rate:
        rate, said = next_rate(checkpoint, None if moments is None else moments.rate)
        notes.append(said)
    if moments is None:
        return Left(None, None, rate, notes)
    others = [critic] if critic is not None else []
    return Left(moments, {"optimizer": as_our_state(moments, policy.model, others, recipe.optim)}, rate, notes)


def _moments(checkpoint: ForeignCheckpoint, policy: Policy, recipe: Recipe) -> tuple[Moments | None, str]:
    fresh = "so that the step is that of a fresh optimizer"
    file = checkpoint.optimizer
    if file is None:
        return None, f"the optimizer's state is not in the checkpoint (one file for all parameters), {fresh}"
    if recipe.train.reset_optimizer:
        return None, f"{file.name} was not read: train.reset_optimizer is on, {fresh}"
    if is_adapter(checkpoint.path):
        return None, f"{file.name} is of an adapter's matrices, which are merged into the weights here, {fresh}"
    moments = read_moments(file, policy.model)
    if not moments.by_name or not moments.fits(recipe.optim):
        kept = sorted({key for state in moments.by_name.values() for key in state})
        return (
            None,
            f"{file.name} keeps {', '.join(kept) or 'nothing'}, which {recipe.optim.kind} does not go on from, {fresh}",
        )
    missing = sum(p.requires_grad for p in policy.model.parameters()) - len(moments.by_name)
    without = f"; {missing} parameters had never been stepped" if missing else ""
    return moments, (
        f"{file.name}: moments of {len(moments.by_name)} parameters after {moments.steps} steps, told apart "
        f"{moments.how}, shapes all fit{without}"
    )


def likeness_notes(moments: Moments, gradients: Mapping[str, Tensor]) -> list[str]:
    """Whether matrices of one shape may have been exchanged, which shapes cannot tell."""
    hits, of = likeness(moments, gradients)
    if not of:
        return []
    found = f"{hits} of {of} matrices that share a shape have moments that resemble their own gradient most"
    if 2 * hits < of:
        return [f"{found}: the state may belong to other parameters, or to another loss; do not trust the step"]
    return [f"{found}, so that they are hardly exchanged"]


def credit_notes(recipe: Recipe, rollouts: FrozenRollouts) -> list[str]:
    """Where advantages come from, and whether the recipe's estimator would give the same."""
    if rollouts.logprobs is not None:
        return []
    if rollouts.advantages is None:
        return [f"advantages are made of the rewards, by the recipe's `{recipe.advantage.kind}`"]
    source = "advantages are the stored ones"
    if recipe.advantage.credit != "sequence" or isinstance(recipe.advantage, CallableAdvantage):
        return [source]
    stored_PG = torch.tensor(rollouts.advantages)
    apart = float((compute_advantages(rollouts.rewards_PG, recipe.advantage) - stored_PG).abs().max())
    if apart <= _SAME * max(1.0, float(stored_PG.abs().max())):
        return [f"{source}, which are those that `{recipe.advantage.kind}` makes of the stored rewards"]
    return [f"{source}; `{recipe.advantage.kind}` of the stored rewards would differ by up to {apart:.3g}"]


def gradients_of(named: Sequence[tuple[str, Tensor]]) -> dict[str, Tensor]:
    """What a backward pass left at parameters, taken away from them."""
    found = {}
    for name, parameter in named:
        if parameter.grad is not None:
            found[name], parameter.grad = parameter.grad, None
    return found
