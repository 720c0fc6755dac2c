"""What makes the sequences of a step: here, rollouts that the policy samples; see `demonstrations` for the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from cvxrl.engine.credit import CreditAssigner
from cvxrl.engine.micro_batches import Limit
from cvxrl.engine.sequences import Sequences
from cvxrl.engine.shown import shown_completions
from cvxrl.engine.world import SingleProcess, World, share
from cvxrl.policy.model import Policy
from cvxrl.recipe.reward import NoiseSpec
from cvxrl.recipe.schema import Recipe
from cvxrl.rollout.generator import Episode, Generator, Sampling
from cvxrl.rollout.noise import noisy_rewards
from cvxrl.rollout.prompts import encode_examples, end_of_reply, reply_texts, without_end
from cvxrl.rollout.randomness import completion_keys
from cvxrl.tasks import Example, Grade, Grader, Task


@dataclass(frozen=True)
class Experience:
    """What one step collected.

    Attributes:
        sequences: what is trained on.
        sampled_tokens: response tokens it took to make them, those that were thrown away included.
        metrics: what to log about the data, e.g. `reward/mean`.
        rewards_PG: rewards of the samples of each prompt, or None where responses are given.
        shown: a few of the completions, for a person, where they are wanted.
    """

    sequences: Sequences
    sampled_tokens: int
    metrics: dict[str, float]
    rewards_PG: Tensor | None = None
    shown: Sequence[dict[str, Any]] = ()


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


@dataclass(frozen=True)
class RolloutCollector:
    """Samples completions, grades them and turns rewards into advantages."""

    recipe: Recipe
    policy: Policy
    generator: Generator
    task: Task
    grader: Grader
    assigner: CreditAssigner
    world: World = field(default_factory=SingleProcess)

    def check(self) -> None:
        """Render and encode the prompts that can be foreseen."""
        self._encode(foreseeable_examples(self.recipe, self.task))

    def collect(self, step: int) -> Experience:
        """This process's prompts -> rollouts -> rewards -> advantages; metrics are those of all processes."""
        groups: list[_Group] = []
        tallies: list[_Tally] = []
        for round_ in range(self.recipe.rollout.rounds):
            sampled_now = self._sample(step, round_)
            groups += sampled_now
            tallies += [tally for part in self.world.gather([g.tally for g in sampled_now]) for tally in part]
            if sum(tally.contrast for tally in tallies) >= self.recipe.rollout.prompts:
                break
        used = self._used(groups, tallies)
        episodes = [episode for group in used for episode in group.episodes]
        rewards_PG = torch.tensor([group.rewards for group in used])
        prompts, responses = [e.prompt_ids for e in episodes], [e.response_ids for e in episodes]
        ids = [group.example.id for group in used for _ in group.episodes]
        first = share(self.world, self.recipe.rollout.prompts).start
        sampled = Sequences.of(prompts, responses, self.recipe.rollout.samples, ids, first)
        sampled = replace(
            sampled, sampled_logprobs=[e.logprobs for e in episodes], versions=[e.version for e in episodes]
        )
        sequences = self.assigner.assign(sampled, rewards_PG)
        advantages = torch.cat(self.world.gather(_credited(sequences)))
        return Experience(
            sequences,
            sampled_tokens=sum(sum(tally.lengths) for tally in tallies),
            metrics=_metrics(tallies, self.recipe.task.reward.noise) | _range(advantages),
            rewards_PG=rewards_PG,
            shown=shown_completions(self.recipe, self.policy, step, used, sequences),
        )

    def _used(self, groups: Sequence[_Group], tallies: Sequence[_Tally]) -> Sequence[_Group]:
        """Those of the step's groups that this process trains on, wherever they were sampled.

        Args:
            groups: sampled here.
            tallies: of all groups, by number.
        """
        count = self.recipe.rollout.prompts
        if len(tallies) == count:
            return groups
        # Groups that teach something first; sorting is stable, so nothing else changes their order.
        chosen = sorted(range(len(tallies)), key=lambda number: not tallies[number].contrast)[:count]
        told = self.world.gather([group for group in groups if group.number in chosen])
        by_number = {group.number: group for part in told for group in part}
        return [by_number[chosen[i]] for i in share(self.world, count)]

    def _encode(self, examples: Sequence[Example]) -> list[list[int]]:
        """Token ids of the prompts.

        Raises:
            UserError: one does not fit, or may not fit the token budget of a forward pass once it is answered.
        """
        recipe, new_tokens = self.recipe, self.recipe.rollout.max_new_tokens
        prompts = encode_examples(recipe.task, self.policy, examples, new_tokens)
        Limit.of(recipe.train).require(recipe.coupled_sequences, max(map(len, prompts)) + new_tokens)
        return prompts

    def _sample(self, step: int, round_: int) -> list[_Group]:
        spec = self.recipe.rollout
        mine = share(self.world, spec.prompts)
        examples = step_examples(self.recipe, self.task, step, round_)[mine.start : mine.stop]
        prompts = self._encode(examples)
        numbers = [round_ * spec.prompts + i for i in mine]
        keys = completion_keys(self.recipe.seed, "sampling", step, prompts=numbers, samples=spec.samples)
        stop = end_of_reply(self.recipe.task, self.policy)[-1]
        sampling = Sampling(spec.max_new_tokens, spec.temperature, spec.top_p, (stop,))
        episodes = self.generator.generate(prompts, keys, sampling)
        size = spec.samples
        texts = reply_texts(self.policy, self.recipe.task, without_end(episodes))
        grades = self.grader.grade(texts, [example for example in examples for _ in range(size)])
        rewards = self._rewards(grades, step, numbers)
        return [
            _Group(example, number, episodes[i : i + size], grades[i : i + size], rewards[i : i + size])
            for example, number, i in zip(examples, numbers, range(0, len(episodes), size), strict=True)
        ]

    def _rewards(self, grades: Sequence[Grade], step: int, prompts: Sequence[int]) -> list[float]:
        """What is trained on: the grader's rewards, or those with noise."""
        spec = self.recipe.task.reward
        if spec.noise.kind == "none":
            return [grade.reward for grade in grades]
        samples = self.recipe.rollout.samples
        keys = completion_keys(self.recipe.seed, "reward-noise", step, prompts=prompts, samples=samples)
        return noisy_rewards(grades, spec, [key for keys_G in keys for key in keys_G])


@dataclass(frozen=True)
class _Group:
    """The samples of one prompt, its number in the step, and the rewards that are trained on."""

    example: Example
    number: int
    episodes: Sequence[Episode]
    grades: Sequence[Grade]
    rewards: Sequence[float]

    @property
    def contrast(self) -> bool:
        """Whether rewards differ, without which group advantages are zero."""
        return len(set(self.rewards)) > 1

    @property
    def tally(self) -> _Tally:
        """What is logged of it."""
        grades, episodes = self.grades, self.episodes
        return _Tally(
            contrast=self.contrast,
            rewards=list(self.rewards),
            changed=sum(a != grade.reward for a, grade in zip(self.rewards, grades, strict=True)),
            correct=sum(grade.correct for grade in grades),
            errors=sum(grade.error is not None for grade in grades),
            lengths=[len(episode.response_ids) for episode in episodes],
            truncated=sum(episode.truncated for episode in episodes),
        )


@dataclass(frozen=True)
class _Tally:
    """What is logged of a group; small, since every process sends its own to all others."""

    contrast: bool
    rewards: list[float]
    changed: int
    correct: int
    errors: int
    lengths: list[int]
    truncated: int


def _metrics(groups: Sequence[_Tally], noise: NoiseSpec) -> dict[str, float]:
    """Of everything that was sampled, so that choosing groups does not flatter the policy."""
    rewards_N: Tensor = torch.tensor([reward for group in groups for reward in group.rewards])
    count = rewards_N.numel()
    changed = {"reward/changed": sum(group.changed for group in groups) / count} if noise.kind != "none" else {}
    return {
        **changed,
        "reward/mean": float(rewards_N.mean()),
        "reward/std": float(rewards_N.std()) if count > 1 else 0.0,
        "reward/zero_variance_groups": sum(not group.contrast for group in groups) / len(groups),
        "reward/correct": sum(group.correct for group in groups) / count,
        "reward/grader_errors": sum(group.errors for group in groups) / count,
        "response/length": sum(sum(group.lengths) for group in groups) / count,
        "response/truncated": sum(group.truncated for group in groups) / count,
        "rollout/groups": float(len(groups)),
    }


def _credited(sequences: Sequences) -> Tensor:
    """Advantages of the responses where all tokens of each share one, [P, G]; else of the tokens, [N]."""
    assert sequences.advantages is not None
    if sequences.group_advantages is None:
        return torch.cat(sequences.advantages)
    return torch.stack([a for i, a in enumerate(sequences.group_advantages) if i % len(a) == 0])


def _range(advantages: Tensor) -> dict[str, float]:
    return {
        "advantage/min": float(advantages.min()),
        "advantage/max": float(advantages.max()),
        "advantage/mean": float(advantages.mean()),
    }
