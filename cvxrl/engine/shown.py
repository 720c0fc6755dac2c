"""Completions that a step collected, in the form in which a person reads them: with advantages, token by token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from cvxrl.engine.sequences import Sequences
from cvxrl.evaluation.answers import as_sample
from cvxrl.policy.model import Policy
from cvxrl.recipe.schema import Recipe
from cvxrl.rollout.generator import Episode
from cvxrl.rollout.prompts import reply_texts, without_end
from cvxrl.tasks import Example, Grade

_DECIMALS = 5  # of an advantage that is kept to be looked at


class Group(Protocol):
    """The samples of one prompt, each with its grade and the reward that is trained on."""

    @property
    def example(self) -> Example:
        """What was asked."""

    @property
    def episodes(self) -> Sequence[Episode]:
        """What was answered."""

    @property
    def grades(self) -> Sequence[Grade]:
        """What the grader says of it."""

    @property
    def rewards(self) -> Sequence[float]:
        """What is trained on."""


def shown_completions(
    recipe: Recipe, policy: Policy, step: int, groups: Sequence[Group], sequences: Sequences
) -> list[dict[str, Any]]:
    """At most `logging.samples` completions of one prompt, from the lowest to the highest reward.

    The prompt is the first whose rewards differ, since only there do advantages; else the first. Of more completions
    than are wanted, those are taken that are evenly spaced in the order of their rewards.

    Args:
        recipe: says whether this step's are wanted, and how many.
        policy: its tokenizer is asked.
        step: from 1.
        groups: in the order of the sequences.
        sequences: with advantages.

    Returns:
        Lines of rollouts/train-*.jsonl: the keys of `Sample.readable`, and one advantage per token.
    """
    wanted, every = recipe.logging.samples, recipe.logging.rollouts
    if not wanted or not every or (step % every and step != 1) or not groups or sequences.advantages is None:
        return []
    number = next((i for i, group in enumerate(groups) if len(set(group.rewards)) > 1), 0)
    group, first = groups[number], sum(len(before.episodes) for before in groups[:number])
    lines = []
    for i in _spread(group.rewards, wanted):
        episode = group.episodes[i]
        text = reply_texts(policy, recipe.task, without_end([episode]))[0]
        sample = as_sample(recipe.task, policy, (number, i), group.example, episode, text, group.grades[i])
        advantages = [round(value, _DECIMALS) for value in sequences.advantages[first + i].tolist()]
        lines.append(sample.readable() | {"reward": group.rewards[i], "token_advantages": advantages})
    return lines


def _spread(rewards: Sequence[float], wanted: int) -> list[int]:
    """Indices of ``wanted`` rewards, by rising reward, the lowest and the highest among them."""
    order = sorted(range(len(rewards)), key=rewards.__getitem__)
    if len(order) <= wanted:
        return order
    steps = max(1, wanted - 1)
    return [order[round(k * (len(order) - 1) / steps)] for k in range(wanted)]
