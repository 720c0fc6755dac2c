"""Sequences that the task gives: demonstrations, or pairs of a chosen and a rejected response."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from cvxrl.engine.collectors import Experience, foreseeable_examples, step_examples
from cvxrl.engine.sequences import Sequences
from cvxrl.engine.world import SingleProcess, World, share
from cvxrl.errors import Problem, UserError
from cvxrl.policy.model import Policy
from cvxrl.recipe.schema import Recipe
from cvxrl.rollout.prompts import encode_examples, end_of_reply, require_writable
from cvxrl.tasks import Example, Task


@dataclass(frozen=True)
class DemonstrationCollector:
    """Encodes the task's responses, each followed by what ends a reply."""

    recipe: Recipe
    policy: Policy
    task: Task
    world: World = field(default_factory=SingleProcess)

    def check(self) -> None:
        """Encode the prompts and responses that can be foreseen."""
        self._encode(foreseeable_examples(self.recipe, self.task))

    def collect(self, step: int) -> Experience:
        """This process's prompts with their demonstrations, or with the chosen and the rejected response of each."""
        mine = share(self.world, self.recipe.rollout.prompts)
        examples = step_examples(self.recipe, self.task, step)[mine.start : mine.stop]
        prompts, responses = self._encode(examples)
        size = self.recipe.group_size
        total = int(self.world.sum(torch.tensor([sum(map(len, responses))])))
        sequences = Sequences.of(
            [prompt for prompt in prompts for _ in range(size)],
            responses,
            size,
            [example.id for example in examples for _ in range(size)],
            mine.start,
        )
        return Experience(sequences, total, {"response/length": total / self.recipe.sequences_per_step})

    def _encode(self, examples: Sequence[Example]) -> tuple[list[list[int]], list[list[int]]]:
        """One prompt an example, and its responses one after another.

        Raises:
            UserError: an example has no response, or does not fit the policy's context with its longest one.
        """
        recipe, policy, size = self.recipe, self.policy, self.recipe.group_size
        texts = [text for example in examples for text in _responses(example, recipe)]
        named = [(examples[i // size].id, text) for i, text in enumerate(texts)]
        require_writable(recipe.task, policy, "reply to learn from", named)
        end = end_of_reply(recipe.task, policy)
        responses = [[*ids, *end] for ids in policy.encode(texts)]
        longest = [max(map(len, responses[i : i + size])) for i in range(0, len(responses), size)]
        return encode_examples(recipe.task, policy, examples, longest), responses


def _responses(example: Example, recipe: Recipe) -> tuple[str, ...]:
    """Texts that the objective learns from.

    Raises:
        UserError: the task has none.
    """
    if recipe.data == "preferences":
        if example.preference is None:
            raise _missing("preference pair", example, "name task.source.chosen_field and rejected_field")
        return example.preference
    if example.demonstration is None:
        raise _missing("demonstration", example, "name task.source.demonstration_field")
    return (example.demonstration,)


def _missing(what: str, example: Example, remedy: str) -> UserError:
    return UserError(
        Problem(
            f"the task has no {what} for example `{example.id}`",
            "objective.kind",
            remedy=f"{remedy}, or take a task that has them, e.g. task.source.kind: arithmetic",
        )
    )
