"""Held-out accuracy during training: fixed prompts, own random numbers, the same grader."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cvxrl.engine.experience import encode_prompts
from cvxrl.errors import Problem, UserError
from cvxrl.evaluation.answers import Answer, judge
from cvxrl.evaluation.estimators import clustered_error
from cvxrl.policy.model import Policy
from cvxrl.recipe.schema import Recipe
from cvxrl.rollout.generator import Generator, Sampling
from cvxrl.rollout.randomness import completion_keys
from cvxrl.tasks import Example, Grader, Task

# What a readable sample shows, in this order.
_SHOWN = ("id", "prompt", "completion", "answer", "extracted", "correct", "reward", "error", "truncated")


@dataclass(frozen=True)
class Evaluation:
    """Samples of one evaluation.

    Attributes:
        correct_PG: 0/1 per prompt and sample, so that pass@k can be recomputed for any k.
        truncated: share of completions that reached the length limit.
        errors: share of completions the grader could not judge.
        samples: prompt, completion, gold answer, extracted answer and verdict of every completion, prompt by prompt.
    """

    correct_PG: Tensor
    truncated: float
    errors: float
    samples: list[dict[str, object]]

    @classmethod
    def of(cls, answers: list[Answer], samples: int) -> Evaluation:
        """Evaluation of ``samples`` adjacent completions per prompt."""
        return cls(
            correct_PG=torch.tensor([float(a.correct) for a in answers]).view(-1, samples),
            truncated=sum(a.truncated for a in answers) / len(answers),
            errors=sum(a.error is not None for a in answers) / len(answers),
            samples=[{name: getattr(a, name) for name in _SHOWN} for a in answers],
        )

    @property
    def accuracy(self) -> float:
        """Share of correct completions."""
        return float(self.correct_PG.mean())

    @property
    def standard_error(self) -> float:
        """Standard error of the accuracy, clustered by prompt; NaN for a single prompt."""
        return clustered_error(self.correct_PG.mean(dim=1).numpy())


def evaluate(recipe: Recipe, policy: Policy, generator: Generator, task: Task, grader: Grader) -> Evaluation:
    """Sample and grade the recipe's held-out prompts; draws nothing from any training generator.

    Raises:
        UserError: see `held_out_prompts`.
    """
    spec, rollout = recipe.eval, recipe.rollout
    examples, prompts = held_out_prompts(recipe, policy, task)
    sampling = Sampling(rollout.max_new_tokens, spec.temperature, spec.top_p)
    keys = completion_keys(spec.seed, "evaluation", prompts=range(len(prompts)), samples=spec.samples)
    episodes = generator.generate(prompts, keys, sampling)
    each = [example for example in examples for _ in range(spec.samples)]
    return Evaluation.of(judge(recipe.task, policy, grader, each, episodes), spec.samples)


def held_out_prompts(recipe: Recipe, policy: Policy, task: Task) -> tuple[list[Example], list[list[int]]]:
    """The examples that every evaluation of a run asks, and their prompts as token ids.

    Raises:
        UserError: the task has no held-out example, or a prompt does not fit the policy's context.
    """
    spec = recipe.eval
    size = task.held_out_size
    count = spec.prompts if size is None else min(spec.prompts, size)
    if count == 0:
        raise UserError(
            Problem("the task has no held-out examples", "eval.every", remedy="set eval.every to 0, or hold some out")
        )
    examples = [task.held_out(i) for i in range(count)]
    return examples, encode_prompts(recipe, policy, examples, recipe.rollout.max_new_tokens)
