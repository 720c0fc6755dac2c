"""Completions with their verdicts: what every evaluation is made of, in training and in `cvxrl eval`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cvxrl.evaluation.strict import strictly_correct
from cvxrl.policy.model import Policy
from cvxrl.recipe.task import TaskSpec
from cvxrl.rollout.generator import Episode
from cvxrl.tasks import Example, Grader


@dataclass(frozen=True)
class Answer:
    """One completion and what the graders say about it.

    Attributes:
        id: the example's name within its source.
        prompt: the bare problem, before any template.
        completion: the reply, without special tokens.
        answer: the right answer.
        extracted: the part of the reply that was graded, or None.
        correct: verdict of the task's grader.
        reward: the number that training would see.
        error: why the task's grader could not judge, or None.
        truncated: the reply reached the length limit.
        strict: verdict of the strict grader.
        tokens: length of the reply.
    """

    id: str
    prompt: str
    completion: str
    answer: str
    extracted: str | None
    correct: bool
    reward: float
    error: str | None
    truncated: bool
    strict: bool
    tokens: int


def judge(
    task: TaskSpec, policy: Policy, grader: Grader, examples: Sequence[Example], episodes: Sequence[Episode]
) -> list[Answer]:
    """Grade completions twice.

    Args:
        task: says where a reply's answer is.
        policy: its tokenizer decodes.
        grader: the task's grader.
        examples: one per episode.
        episodes: the completions.

    Returns:
        One answer per episode, in order.
    """
    texts = policy.decode([e.response_ids for e in episodes])
    grades = grader.grade(texts, examples)
    return [
        Answer(
            id=example.id,
            prompt=example.prompt,
            completion=text,
            answer=example.answer,
            extracted=grade.extracted,
            correct=grade.correct,
            reward=grade.reward,
            error=grade.error,
            truncated=episode.truncated,
            strict=strictly_correct(text, example.answer, task.extract, episode.truncated, grade.extracted),
            tokens=len(episode.response_ids),
        )
        for example, episode, text, grade in zip(examples, episodes, texts, grades, strict=True)
    ]
