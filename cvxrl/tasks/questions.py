"""The examples that an evaluation asks: held-out ones, or every row of a source made for evaluation."""

from __future__ import annotations

from collections.abc import Sequence

from cvxrl.errors import Problem, UserError
from cvxrl.recipe.task import CallableSource, DatasetSource, TaskSpec
from cvxrl.tasks import dataset, function, load_task
from cvxrl.tasks.base import Example
from cvxrl.tasks.finite_task import held_out_order


def load_questions(spec: TaskSpec, count: int | None, *, whole: bool, exactly: bool) -> list[Example]:
    """Return the first ``count`` questions of a fixed shuffled order.

    Args:
        spec: names the source.
        count: questions wanted; none means all.
        whole: whether a source that holds nothing out may be asked whole. True for a task file; False for the task a
            policy was trained on, since its rows have been seen.
        exactly: whether fewer questions than ``count`` are a mistake.

    Raises:
        UserError: the source cannot be read, holds nothing out, generates questions without end while ``count`` is
            none, or has fewer than ``count``.
    """
    source = spec.source
    rows: Sequence[Example] | None = None
    if isinstance(source, DatasetSource) and (source.eval_path or source.eval_split):
        rows = dataset.load_questions(source)
    elif isinstance(source, DatasetSource | CallableSource) and source.held_out == 0:
        if not whole:
            raise UserError(
                Problem(
                    "the run's task holds no questions out, and those it trained on would say nothing",
                    "--task",
                    remedy="name another task with --task",
                )
            )
        rows = dataset.load_questions(source) if isinstance(source, DatasetSource) else function.load_all(source)
    if rows is not None:
        order = held_out_order(len(rows))[: _how_many(count, len(rows), exactly)]
        return [rows[int(i)] for i in order]
    task = load_task(spec, seed=0)  # held-out examples are the same for every seed
    return [task.held_out(i) for i in range(_how_many(count, task.held_out_size, exactly))]


def _how_many(count: int | None, size: int | None, exactly: bool) -> int:
    if size is None:
        if count is None:
            raise UserError(
                Problem("the task generates questions without end", "--questions", remedy="say how many to ask")
            )
        return count
    if count is not None and count > size and exactly:
        raise UserError(
            Problem(f"the task has {size} questions, not {count}", "--questions", remedy=f"ask at most {size}")
        )
    return size if count is None else min(count, size)
