"""The verdicts on a completion: the task's grader, and a second, strict one by which it can be doubted.

The strict grader asks more of a reply than the task does. The reply must be finished, must state its answer in the form
asked for, and the text must equal the right answer character for character. Where the task's grader says right and this
one says wrong, the reply may be right in another notation, or the task's grader may have been talked into it; a rate
that differs between two policies is a reason to read samples.
"""

from __future__ import annotations

import re
from collections.abc import Container, Sequence
from typing import Any

from cvxrl.evaluation.record import Sample
from cvxrl.policy.model import Policy
from cvxrl.recipe.extract import ExtractSpec, LastIntegerExtract, LastNumberExtract, NoExtract
from cvxrl.recipe.task import TaskSpec
from cvxrl.rollout.generator import Episode
from cvxrl.rollout.prompts import reply_texts, without_end
from cvxrl.rollout.spelling import token_texts
from cvxrl.tasks import Example, Grade, Grader
from cvxrl.tasks.passages import last_boxed

_DECIMALS = 4  # of a log-probability that is kept to be looked at
# A number that ends the reply, after a space, `=`, `:` or `$`. Replies can be hostile: nothing in it can be matched in
# two ways, so that it takes time proportional to the reply.
_FINAL_NUMBER = re.compile(r"(?:^|[\s=:$])(-?[0-9]++(?:\.[0-9]++)?)\Z")


def judge(
    task: TaskSpec,
    policy: Policy,
    grader: Grader,
    asked: Sequence[tuple[int, int]],
    examples: Sequence[Example],
    episodes: Sequence[Episode],
    spelt: Container[tuple[int, int]] = (),
) -> list[Sample]:
    """Grade completions twice.

    Args:
        task: says where a reply's answer is.
        policy: its tokenizer decodes.
        grader: the task's grader.
        asked: question and sample of every episode.
        examples: one per episode.
        episodes: the completions.
        spelt: question and sample of those of which the tokens are kept.

    Returns:
        One sample per episode, in order, its time not yet known.
    """
    texts = reply_texts(policy, task, without_end(episodes))
    grades = grader.grade(texts, examples)
    return [
        as_sample(task, policy if which in spelt else None, which, example, episode, text, grade)
        for which, example, episode, text, grade in zip(asked, examples, episodes, texts, grades, strict=True)
    ]


def as_sample(
    task: TaskSpec,
    policy: Policy | None,
    asked: tuple[int, int],
    example: Example,
    episode: Episode,
    text: str,
    grade: Grade,
) -> Sample:
    """A completion with its verdicts; with a policy, whose tokenizer is asked, also its tokens one by one."""
    spelling: dict[str, Any] = {}
    if policy is not None:
        spelling["token_texts"] = [_storable(t) for t in token_texts(policy.tokenizer, episode.response_ids)]
        spelling["token_logprobs"] = [round(value, _DECIMALS) for value in episode.logprobs.tolist()]
    return Sample(
        question=asked[0],
        sample=asked[1],
        id=_storable(example.id),
        prompt=example.prompt,
        completion=text,
        answer=_storable(example.answer),
        extracted=None if grade.extracted is None else _storable(grade.extracted),
        correct=grade.correct,
        reward=grade.reward,
        error=grade.error,
        truncated=episode.truncated,
        strict=strictly_correct(text, example.answer, task.extract, episode.truncated, grade.extracted),
        tokens=len(episode.response_ids),
        seconds=0.0,
        **spelling,
    )


def strictly_correct(
    completion: str, answer: str, extraction: ExtractSpec, truncated: bool, extracted: str | None
) -> bool:
    r"""Tell whether a reply ends by stating exactly the right answer.

    Args:
        completion: the reply.
        answer: the right answer; dollar signs around it are left out.
        extraction: how the task finds an answer. Numbers must end the reply; a box, a tag or a pattern must hold the
            answer; without extraction the last `\boxed{}` counts, or else the whole reply.
        truncated: whether the reply reached the length limit; then it is wrong.
        extracted: what the task found in it.
    """
    if truncated:
        return False
    match extraction:
        case LastIntegerExtract() | LastNumberExtract():
            # Only a full stop or a closing dollar may follow the number.
            found = _FINAL_NUMBER.search(completion.rstrip().rstrip(".$").rstrip())
            stated = found.group(1) if found else None
        case NoExtract():
            boxed = last_boxed(completion)
            stated = completion.strip() if boxed is None else boxed
        case _:
            stated = extracted
    return stated is not None and _bare(stated) == _bare(answer)


def _bare(text: str) -> str:
    return text.strip().strip("$").strip()


def _storable(text: str) -> str:
    r"""Text with lone surrogates, which a data file may hold and UTF-8 cannot, as `\udXXX`."""
    return text.encode(errors="backslashreplace").decode()
