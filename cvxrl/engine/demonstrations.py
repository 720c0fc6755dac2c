"""Experience that the task gives: demonstrations and preference pairs. No sampling, no reward."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cvxrl.engine.experience import Experience, encode_prompts, foreseeable_examples, step_examples
from cvxrl.engine.sequences import Sequences
from cvxrl.errors import Problem, UserError
from cvxrl.policy.model import Policy
from cvxrl.recipe.schema import Recipe
from cvxrl.tasks import Example, Task


@dataclass(frozen=True)
class DemonstrationCollector:
    """Encodes the task's responses, each followed by the end token."""

    recipe: Recipe
    policy: Policy
    task: Task

    def check(self) -> None:
        """Encode the prompts and responses that can be foreseen."""
        self._encode(foreseeable_examples(self.recipe, self.task))

    def collect(self, step: int) -> Experience:
        """Prompts with their demonstrations, or with the chosen and the rejected response of each."""
        examples = step_examples(self.recipe, self.task, step)
        prompts, responses = self._encode(examples)
        size = self.recipe.group_size
        total = sum(map(len, responses))
        sequences = Sequences.of(
            [prompt for prompt in prompts for _ in range(size)],
            responses,
            size,
            [example.id for example in examples for _ in range(size)],
        )
        return Experience(sequences, total, {"response/length": total / len(responses)})

    def _encode(self, examples: Sequence[Example]) -> tuple[list[list[int]], list[list[int]]]:
        """One prompt an example, and its responses one after another.

        Raises:
            UserError: an example has no response, or does not fit the policy's context with its longest one.
        """
        recipe, policy, size = self.recipe, self.policy, self.recipe.group_size
        texts = [text for example in examples for text in _responses(example, recipe)]
        end = int(policy.tokenizer.eos_token_id)
        responses = [[*ids, end] for ids in policy.encode(texts)]
        longest = [max(map(len, responses[i : i + size])) for i in range(0, len(responses), size)]
        return encode_prompts(recipe, policy, examples, longest), responses


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
