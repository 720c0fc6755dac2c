"""What a step trains on, and the making of its prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from cvxrl.engine.sequences import Sequences
from cvxrl.policy.model import Policy
from cvxrl.recipe.schema import Recipe
from cvxrl.rollout.generator import Episode
from cvxrl.rollout.prompts import encode_examples
from cvxrl.tasks import Example, Grade, Grader, Task


@dataclass(frozen=True)
class Experience:
    """What one step collected.

    Attributes:
        sequences: what is trained on.
        sampled_tokens: response tokens it took to make them, those that were thrown away included.
        metrics: what to log about the data, e.g. `reward/mean`.
        rewards_PG: rewards of the samples of each prompt, or None where responses are given.
    """

    sequences: Sequences
    sampled_tokens: int
    metrics: dict[str, float]
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
