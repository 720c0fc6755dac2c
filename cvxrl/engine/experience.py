"""Where a step's training data comes from: the policy's own rollouts, or the task's demonstrations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from cvxrl.advantages import compute_advantages
from cvxrl.errors import Problem, UserError
from cvxrl.policy.model import Policy
from cvxrl.recipe.schema import Recipe
from cvxrl.rollout.episode import Episode
from cvxrl.rollout.generators import generator_for
from cvxrl.rollout.prompts import encode_examples
from cvxrl.rollout.sampler import Sampling, sample_episodes
from cvxrl.tasks import Example, Grade, Grader, Task


@dataclass(frozen=True)
class Experience:
    """The sequences of one step.

    Attributes:
        prompts, responses: token ids, S sequences each.
        advantages_S: one advantage per sequence (fp32, CPU), or None for demonstrations.
        logprobs: what the sampler reported for each response token, or None for demonstrations.
        metrics: what to log about the data, e.g. `reward/mean`.
    """

    prompts: list[list[int]]
    responses: list[list[int]]
    advantages_S: Tensor | None
    logprobs: list[Tensor] | None
    metrics: dict[str, float]


class Collector(Protocol):
    """Makes the experience of a step; the same step gives the same prompts and the same random numbers."""

    def check(self) -> None:
        """Raise UserError if the first step's examples cannot be used; costs no forward pass."""
        ...

    def collect(self, step: int) -> Experience:
        """Experience of step ``step`` (from 1)."""
        ...


@dataclass(frozen=True)
class RolloutCollector:
    """Samples completions, grades them and turns rewards into advantages."""

    recipe: Recipe
    policy: Policy
    task: Task
    grader: Grader

    def check(self) -> None:
        """Render and encode the first step's prompts."""
        examples = step_examples(self.recipe, self.task, 1)
        encode_prompts(self.recipe, self.policy, examples, self.recipe.rollout.max_new_tokens)

    def collect(self, step: int) -> Experience:
        """Prompts -> rollouts -> rewards -> advantages."""
        spec = self.recipe.rollout
        examples = step_examples(self.recipe, self.task, step)
        prompts = encode_prompts(self.recipe, self.policy, examples, spec.max_new_tokens)
        sampling = Sampling(spec.max_new_tokens, spec.temperature, spec.top_p, spec.batch)
        generator = generator_for(self.recipe.seed, "sampling", step)
        episodes = sample_episodes(self.policy, prompts, spec.samples, sampling, generator)
        grades = grade_episodes(self.policy, self.grader, examples, episodes, spec.samples)
        rewards_PG = torch.tensor([grade.reward for grade in grades]).view(spec.prompts, spec.samples)
        advantages_PG = compute_advantages(rewards_PG, self.recipe.advantage)
        return Experience(
            prompts=[e.prompt_ids for e in episodes],
            responses=[e.response_ids for e in episodes],
            advantages_S=advantages_PG.flatten(),
            logprobs=[e.logprobs for e in episodes if e.logprobs is not None],
            metrics=_rollout_metrics(episodes, grades, rewards_PG, advantages_PG),
        )


@dataclass(frozen=True)
class DemonstrationCollector:
    """Encodes the task's demonstrations, each followed by the end token."""

    recipe: Recipe
    policy: Policy
    task: Task

    def check(self) -> None:
        """Encode the first step's demonstrations."""
        self.collect(1)

    def collect(self, step: int) -> Experience:
        """Prompts with their demonstrations; no sampling, no reward."""
        examples = step_examples(self.recipe, self.task, step)
        missing = next((e for e in examples if e.demonstration is None), None)
        if missing is not None:
            raise UserError(
                Problem(
                    f"the task has no demonstration for example `{missing.id}`",
                    "objective.kind",
                    remedy="supervised training needs a task with demonstrations, e.g. task.source.kind: arithmetic",
                )
            )
        end = int(self.policy.tokenizer.eos_token_id)
        responses = [[*ids, end] for ids in self.policy.encode([e.demonstration or "" for e in examples])]
        prompts = encode_prompts(self.recipe, self.policy, examples, max(map(len, responses)))
        mean_length = sum(map(len, responses)) / len(responses)
        return Experience(prompts, responses, None, None, {"response/length": mean_length})


def step_examples(recipe: Recipe, task: Task, step: int) -> list[Example]:
    """Training examples of step ``step`` (from 1): consecutive indices, so that no step repeats another's."""
    count = recipe.rollout.prompts
    return [task.train((step - 1) * count + i) for i in range(count)]


def encode_prompts(
    recipe: Recipe, policy: Policy, examples: Sequence[Example], response_tokens: int
) -> list[list[int]]:
    """Render and encode prompts as the recipe's task says; see `encode_examples`."""
    return encode_examples(recipe.task, policy, examples, response_tokens)


def grade_episodes(
    policy: Policy, grader: Grader, examples: Sequence[Example], episodes: Sequence[Episode], samples: int
) -> list[Grade]:
    """Grade every completion against its own prompt's example."""
    texts = policy.decode([e.response_ids for e in episodes])
    return grader.grade(texts, [example for example in examples for _ in range(samples)])


def _rollout_metrics(
    episodes: Sequence[Episode], grades: Sequence[Grade], rewards_PG: Tensor, advantages_PG: Tensor
) -> dict[str, float]:
    count = len(episodes)
    return {
        "reward/mean": float(rewards_PG.mean()),
        "reward/std": float(rewards_PG.std()) if rewards_PG.numel() > 1 else 0.0,
        "reward/zero_variance_groups": float((rewards_PG == rewards_PG[:, :1]).all(dim=1).float().mean()),
        "reward/correct": sum(g.correct for g in grades) / count,
        "reward/grader_errors": sum(g.error is not None for g in grades) / count,
        "advantage/min": float(advantages_PG.min()),
        "advantage/max": float(advantages_PG.max()),
        "advantage/mean": float(advantages_PG.mean()),
        "response/length": sum(len(e.response_ids) for e in episodes) / count,
        "response/truncated": sum(e.truncated for e in episodes) / count,
    }
