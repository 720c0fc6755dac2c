"""Experience that the policy samples itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from cvxrl.engine.credit import CreditAssigner
from cvxrl.engine.experience import Experience, encode_prompts, foreseeable_examples, grade_episodes, step_examples
from cvxrl.engine.micro_batches import Limit
from cvxrl.engine.sequences import Sequences
from cvxrl.policy.model import Policy
from cvxrl.recipe.schema import Recipe
from cvxrl.rollout.generator import Episode, Generator, Sampling
from cvxrl.rollout.randomness import completion_keys
from cvxrl.tasks import Example, Grade, Grader, Task


@dataclass(frozen=True)
class RolloutCollector:
    """Samples completions, grades them and turns rewards into advantages."""

    recipe: Recipe
    policy: Policy
    generator: Generator
    task: Task
    grader: Grader
    assigner: CreditAssigner

    def check(self) -> None:
        """Render and encode the prompts that can be foreseen."""
        self._encode(foreseeable_examples(self.recipe, self.task))

    def collect(self, step: int) -> Experience:
        """Prompts -> rollouts -> rewards -> advantages."""
        groups: list[_Group] = []
        for round_ in range(self.recipe.rollout.rounds):
            groups += self._sample(step, round_)
            if sum(group.contrast for group in groups) >= self.recipe.rollout.prompts:
                break
        # Groups that teach something first; sorting is stable, so nothing else changes their order.
        used = sorted(groups, key=lambda group: not group.contrast)[: self.recipe.rollout.prompts]
        if len(used) == len(groups):
            used = groups
        episodes = [episode for group in used for episode in group.episodes]
        rewards_PG = torch.tensor([[grade.reward for grade in group.grades] for group in used])
        sampled = Sequences.of(
            [e.prompt_ids for e in episodes],
            [e.response_ids for e in episodes],
            self.recipe.rollout.samples,
            [group.id for group in used for _ in group.episodes],
        )
        sampled = replace(
            sampled, sampled_logprobs=[e.logprobs for e in episodes], versions=[e.version for e in episodes]
        )
        sequences = self.assigner.assign(sampled, rewards_PG)
        return Experience(
            sequences,
            sampled_tokens=sum(len(e.response_ids) for group in groups for e in group.episodes),
            metrics=_metrics(groups) | _advantage_metrics(sequences),
            rewards_PG=rewards_PG,
        )

    def _encode(self, examples: Sequence[Example]) -> list[list[int]]:
        """Token ids of the prompts.

        Raises:
            UserError: one does not fit, or may not fit the token budget of a forward pass once it is answered.
        """
        recipe, new_tokens = self.recipe, self.recipe.rollout.max_new_tokens
        prompts = encode_prompts(recipe, self.policy, examples, new_tokens)
        Limit.of(recipe.train).require(recipe.coupled_sequences, max(map(len, prompts)) + new_tokens)
        return prompts

    def _sample(self, step: int, round_: int) -> list[_Group]:
        spec = self.recipe.rollout
        examples = step_examples(self.recipe, self.task, step, round_)
        prompts = self._encode(examples)
        first = round_ * spec.prompts
        numbers = range(first, first + len(prompts))
        keys = completion_keys(self.recipe.seed, "sampling", step, prompts=numbers, samples=spec.samples)
        sampling = Sampling(spec.max_new_tokens, spec.temperature, spec.top_p)
        episodes = self.generator.generate(prompts, keys, sampling)
        grades = grade_episodes(self.policy, self.grader, examples, episodes, spec.samples)
        size = spec.samples
        return [
            _Group(example.id, episodes[i : i + size], grades[i : i + size])
            for example, i in zip(examples, range(0, len(episodes), size), strict=True)
        ]


@dataclass(frozen=True)
class _Group:
    """The samples of one prompt, and the id of its example."""

    id: str
    episodes: Sequence[Episode]
    grades: Sequence[Grade]

    @property
    def contrast(self) -> bool:
        """Whether rewards differ, without which group advantages are zero."""
        return len({grade.reward for grade in self.grades}) > 1


def _metrics(groups: Sequence[_Group]) -> dict[str, float]:
    """Of everything that was sampled, so that choosing groups does not flatter the policy."""
    episodes = [episode for group in groups for episode in group.episodes]
    grades = [grade for group in groups for grade in group.grades]
    rewards_N: Tensor = torch.tensor([grade.reward for grade in grades])
    count = len(episodes)
    return {
        "reward/mean": float(rewards_N.mean()),
        "reward/std": float(rewards_N.std()) if count > 1 else 0.0,
        "reward/zero_variance_groups": sum(not group.contrast for group in groups) / len(groups),
        "reward/correct": sum(g.correct for g in grades) / count,
        "reward/grader_errors": sum(g.error is not None for g in grades) / count,
        "response/length": sum(len(e.response_ids) for e in episodes) / count,
        "response/truncated": sum(e.truncated for e in episodes) / count,
        "rollout/groups": float(len(groups)),
    }


def _advantage_metrics(sequences: Sequences) -> dict[str, float]:
    """Range of the advantages: of the responses where they share one, else of the tokens."""
    assert sequences.advantages is not None
    if sequences.group_advantages is None:
        values = torch.cat(sequences.advantages)
    else:  # every group once
        values = torch.stack([a for i, a in enumerate(sequences.group_advantages) if i % len(a) == 0])
    return {
        "advantage/min": float(values.min()),
        "advantage/max": float(values.max()),
        "advantage/mean": float(values.mean()),
    }
