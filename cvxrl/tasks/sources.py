"""From a recipe's task section to examples: the whole task, or the questions of an evaluation."""

from __future__ import annotations

import importlib

from cvxrl.errors import Problem, UserError
from cvxrl.recipe.task import DatasetSource, SourceSpec, TaskSpec
from cvxrl.tasks.base import Example, Source, Task
from cvxrl.tasks.finite_task import held_out_order


def source_of(spec: SourceSpec) -> Source:
    """The source that a spec names: `SOURCE` of the module in this package that is called as its `kind` is."""
    source: Source = importlib.import_module(f"{__package__}.{spec.kind.replace('-', '_')}").SOURCE
    return source


def load_task(spec: TaskSpec, seed: int) -> Task:
    """Make the task that the recipe describes.

    Args:
        spec: the recipe's task section.
        seed: decides the order of training examples, and nothing else: the held-out examples do not depend on it.

    Raises:
        UserError: the source cannot be found, read or split; every message names the recipe key.
    """
    return source_of(spec.source).load(spec.source, seed)


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
    own_rows = isinstance(source, DatasetSource) and (source.eval_path or source.eval_split)
    if not own_rows and source.held_out > 0:
        task = load_task(spec, seed=0)  # held-out examples are the same for every seed
        return [task.held_out(i) for i in range(_how_many(count, task.held_out_size, exactly))]
    if not own_rows and not whole:
        message = "the run's task holds no questions out, and those it trained on would say nothing"
        raise UserError(Problem(message, "--task", remedy="name another task with --task"))
    load_rows = source_of(source).load_rows
    assert load_rows is not None, f"{source.kind}: a source without end holds examples out"
    rows = load_rows(source)
    return [rows[int(i)] for i in held_out_order(len(rows))[: _how_many(count, len(rows), exactly)]]


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
