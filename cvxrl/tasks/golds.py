"""Right answers that no reply can match, found before the first reply is sampled."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence

from cvxrl.errors import Problem, UserError
from cvxrl.recipe.reward import CallableReward
from cvxrl.recipe.task import DatasetSource, TaskSpec
from cvxrl.tasks.base import Example, Task
from cvxrl.tasks.graders import Grader

_log = logging.getLogger(__name__)
_NAMED = 10  # rows that a message names; it counts them all
_MADE = 16  # examples looked at of a source that makes them without end


def graded_examples(task: Task, *, trained_on: bool) -> list[Example]:
    """Examples whose right answers a run compares replies with: all of a finite task, the first of another.

    Args:
        task: the task.
        trained_on: whether replies to training examples are graded too, or those to held-out ones alone.
    """
    train, held_out = task.train_size, task.held_out_size
    if train is None or held_out is None:
        train, held_out = (_MADE if size is None else min(_MADE, size) for size in (train, held_out))
    examples = [task.held_out(i) for i in range(held_out)]
    return [*(task.train(i) for i in range(train)), *examples] if trained_on else examples


def check_golds(spec: TaskSpec, grader: Grader, examples: Iterable[Example]) -> None:
    """Warn of right answers that no reply can match, all at once; or refuse them, as `task.grading.golds` says.

    Raises:
        UserError: there are some and the recipe refuses them, or there is no other.
    """
    nothing_to_match = isinstance(spec.source, DatasetSource) and spec.source.answer_field is None
    if spec.grading.golds == "ignore" or nothing_to_match or isinstance(spec.reward, CallableReward):
        return
    each = {(example.id, example.prompt): example for example in examples}
    answers = {example.answer for example in each.values()}
    reasons = dict(zip(answers, grader.unmatchable([*answers]), strict=True))
    wrong = [(example, reason) for example in each.values() if (reason := reasons[example.answer]) is not None]
    if not wrong:
        return
    where = spec.source.path if isinstance(spec.source, DatasetSource) else ""
    message = f"{_counted(len(wrong), len(each))} can be matched by no reply: {_named(wrong)}"
    remedy = "take a task.extract and task.reward that suit them, or mend the rows; task.grading.golds: ignore"
    if spec.grading.golds == "refuse" or len(wrong) == len(each):
        raise UserError(Problem(message, "task.grading.golds", where, remedy))
    _log.warning("%s%s (rows are counted from 0; %s)", f"{where}: " if where else "", message, remedy)


def _counted(wrong: int, total: int) -> str:
    return f"{wrong} of {total} right answers" if total > 1 else "the only right answer"


def _named(wrong: Sequence[tuple[Example, str]]) -> str:
    ordered = sorted(wrong, key=lambda pair: (len(pair[0].id), pair[0].id))
    parts = [f"row {example.id} `{example.answer[:40]}` ({reason})" for example, reason in ordered[:_NAMED]]
    return ", ".join(parts) + (f" and {len(wrong) - _NAMED} more" if len(wrong) > _NAMED else "")
