"""Held-out accuracy during training: fixed prompts, own random numbers, the same grader."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cvxrl.engine.experience import encode_prompts, grade_episodes
from cvxrl.rollout.generators import generator_for
from cvxrl.errors import Problem, UserError
from cvxrl.policy.model import Policy
from cvxrl.recipe.schema import Recipe
from cvxrl.rollout.sampler import Sampling, sample_episodes
from cvxrl.tasks import Grader, Task


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

    @property
    def accuracy(self) -> float:
        """Share of correct completions."""
        return float(self.correct_PG.mean())

    @property
    def standard_error(self) -> float:
        """Standard error of the accuracy, clustered by prompt (arXiv 2411.00640, eq. 4): completions share prompts."""
        num_prompts = self.correct_PG.shape[0]
        if num_prompts < 2:
            return float("nan")
        return float(self.correct_PG.mean(dim=1).std() / num_prompts**0.5)


def evaluate(recipe: Recipe, policy: Policy, task: Task, grader: Grader) -> Evaluation:
    """Sample and grade the recipe's held-out prompts; draws nothing from any training generator.

    Raises:
        UserError: the task has no held-out example.
    """
    spec = recipe.eval
    size = task.held_out_size
    count = spec.prompts if size is None else min(spec.prompts, size)
    if count == 0:
        raise UserError(
            Problem("the task has no held-out examples", "eval.every", remedy="set eval.every to 0, or hold some out")
        )
    examples = [task.held_out(i) for i in range(count)]
    prompts = encode_prompts(recipe, policy, examples, recipe.rollout.max_new_tokens)
    sampling = Sampling(recipe.rollout.max_new_tokens, spec.temperature, spec.top_p, recipe.rollout.batch)
    episodes = sample_episodes(policy, prompts, spec.samples, sampling, generator_for(spec.seed, "evaluation"))
    grades = grade_episodes(policy, grader, examples, episodes, spec.samples)
    texts = policy.decode([e.response_ids for e in episodes])
    samples: list[dict[str, object]] = [
        {
            "id": examples[i // spec.samples].id,
            "prompt": examples[i // spec.samples].prompt,
            "completion": texts[i],
            "answer": examples[i // spec.samples].answer,
            "extracted": grade.extracted,
            "correct": grade.correct,
            "reward": grade.reward,
            "error": grade.error,
            "truncated": episodes[i].truncated,
        }
        for i, grade in enumerate(grades)
    ]
    return Evaluation(
        correct_PG=torch.tensor([float(g.correct) for g in grades]).view(count, spec.samples),
        truncated=sum(e.truncated for e in episodes) / len(episodes),
        errors=sum(g.error is not None for g in grades) / len(grades),
        samples=samples,
    )
