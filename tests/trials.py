"""One update of a small policy under a step control, and what of it is looked at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

import torch
from helpers import tiny
from torch import Tensor

from cvxrl.engine.credit import with_group_advantages
from cvxrl.engine.sequences import Sequences
from cvxrl.engine.trainer import Trainer
from cvxrl.recipe.schema import Recipe

SMALL = ("rollout.prompts=2", "rollout.max_new_tokens=12", "eval.every=0")
SEARCH = "step.kind=line-search"
ALLOWED = "step={kind: line-search, allow_unbounded: true}"
REGION = "step.kind=trust-region"
FAR = "optim.lr=1e-2"  # a whole step raises the loss


@cache
def sampled(name: str, *overrides: str) -> Sequences:
    """A step's sequences, with advantages of our own where a response has one; those of the last group are zero."""
    recipe = tiny(name, *SMALL, *overrides)
    sequences = Trainer.build(recipe).collector.collect(1).sequences
    generator = torch.Generator().manual_seed(0)
    if sequences.values is not None:
        given = [torch.randn(length, generator=generator) for length in sequences.lengths]
        return replace(sequences, advantages=given, returns=given)
    if sequences.group_advantages is None:
        return sequences
    given_PG = torch.randn(recipe.rollout.prompts, recipe.rollout.samples, generator=generator)
    given_PG[-1] = 0.0
    return with_group_advantages(sequences, given_PG)


def trainables(trainer: Trainer) -> list[Tensor]:
    modules = [trainer.policy.model, *([trainer.critic] if trainer.critic else [])]
    return [p for module in modules for p in module.parameters() if p.requires_grad]


def weights(trainer: Trainer) -> list[Tensor]:
    return [p.detach().clone() for p in trainables(trainer)]


def put(trainer: Trainer, values: Sequence[Tensor]) -> None:
    with torch.no_grad():
        for parameter, value in zip(trainables(trainer), values, strict=True):
            parameter.copy_(value)


@dataclass(frozen=True)
class Stepped:
    """One update: what was logged, and the parameters before and after it."""

    trainer: Trainer
    metrics: dict[str, float]
    before: list[Tensor]
    after: list[Tensor]


def stepped(recipe: Recipe, sequences: Sequences, steps: int = 1) -> Stepped:
    trainer = Trainer.build(recipe)
    before = weights(trainer)
    for step in range(1, steps + 1):
        metrics = trainer.updater.update(sequences, step)
    return Stepped(trainer, metrics, before, weights(trainer))
