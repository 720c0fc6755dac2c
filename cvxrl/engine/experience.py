"""What a step trains on, and the making of its prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from cvxrl.objectives.batch import DenseAdvantages
from cvxrl.policy.model import Policy
from cvxrl.recipe.schema import Recipe
from cvxrl.rollout.episode import Episode
from cvxrl.rollout.prompts import encode_examples
from cvxrl.tasks import Example, Grade, Grader, Task


@dataclass(frozen=True)
class Credit:
    """Who gets how much of the reward; lists hold one entry per sequence, [T] unless said otherwise.

    Attributes:
        advantages: advantage of every response token.
        group_PG: advantages of the samples of each prompt, where a response has one advantage.
        dense: advantages of candidate tokens, from a verifier.
        values, returns: what the critic said and what it is to learn.
    """

    advantages: list[Tensor]
    group_PG: Tensor | None = None
    dense: list[DenseAdvantages] | None = None
    values: list[Tensor] | None = None
    returns: list[Tensor] | None = None

    def metrics(self) -> dict[str, float]:
        """Range of the advantages: of the responses where they share one, else of the tokens."""
        values = torch.cat(self.advantages) if self.group_PG is None else self.group_PG
        return {
            "advantage/min": float(values.min()),
            "advantage/max": float(values.max()),
            "advantage/mean": float(values.mean()),
        }


@dataclass(frozen=True)
class Experience:
    """The sequences of one step; those of a prompt are adjacent.

    Attributes:
        prompts, responses: token ids, S sequences each.
        group_size: sequences per prompt.
        credit: advantages, or None where responses are given rather than sampled.
        logprobs: what the sampler reported for each response token, or None likewise.
        sampled_tokens: response tokens it took to make this, those that were thrown away included.
        metrics: what to log about the data, e.g. `reward/mean`.
        ids: the task's example that each sequence belongs to; empty if unknown.
        rewards_PG: rewards of the samples of each prompt, or None where responses are given.
    """

    prompts: list[list[int]]
    responses: list[list[int]]
    group_size: int
    credit: Credit | None
    logprobs: list[Tensor] | None
    sampled_tokens: int
    metrics: dict[str, float]
    ids: list[str] = field(default_factory=list)
    rewards_PG: Tensor | None = None


class Collector(Protocol):
    """Makes the experience of a step; the same step gives the same prompts and the same random numbers."""

    def check(self) -> None:
        """Raise UserError if an example that can be foreseen cannot be used; costs no forward pass."""
        ...

    def collect(self, step: int) -> Experience:
        """Experience of step ``step`` (from 1)."""
        ...


def step_examples(recipe: Recipe, task: Task, step: int, round_: int = 0) -> list[Example]:
    """Training examples of a round of step ``step`` (from 1): consecutive indices, so that none repeats another's."""
    count = recipe.rollout.prompts
    start = ((step - 1) * recipe.rollout.rounds + round_) * count
    return [task.train(start + i) for i in range(count)]


def foreseeable_examples(recipe: Recipe, task: Task) -> list[Example]:
    """All training examples of a list; of a task that makes them on demand, those of the first step."""
    if task.train_size is None:
        return step_examples(recipe, task, 1)
    return [task.train(i) for i in range(task.train_size)]


def encode_prompts(
    recipe: Recipe, policy: Policy, examples: Sequence[Example], response_tokens: int | Sequence[int]
) -> list[list[int]]:
    """Render and encode prompts as the recipe's task says; see `encode_examples`."""
    return encode_examples(recipe.task, policy, examples, response_tokens)


def grade_episodes(
    policy: Policy, grader: Grader, examples: Sequence[Example], episodes: Sequence[Episode], samples: int
) -> list[Grade]:
    """Grade every completion against its own prompt's example."""
    texts = policy.decode([e.response_ids for e in episodes])
    return grader.grade(texts, [example for example in examples for _ in range(samples)])
