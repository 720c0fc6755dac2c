"""Examples that a function of the user returns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cvxrl.errors import Problem, UserError
from cvxrl.imports import blame, import_function
from cvxrl.recipe.task import CallableSource
from cvxrl.tasks.base import Example, Source
from cvxrl.tasks.finite_task import FiniteTask

_KEY = "task.source.function"
_SHAPE = "return a list of {'prompt': ..., 'answer': ...}"
_FIELDS = ("id", "prompt", "answer", "demonstration", "info")


def load(spec: CallableSource, seed: int) -> FiniteTask:
    """Call the function once and split what it returns.

    Raises:
        UserError: as `load_rows`, or a side of the split is empty.
    """
    return FiniteTask.split(spec.function, load_rows(spec), spec.held_out, seed)


def load_rows(spec: CallableSource) -> Sequence[Example]:
    """Call the function once and return every example.

    Raises:
        UserError: it cannot be imported, raises, or returns something other than a sequence of examples.
    """
    make = import_function(spec.function, _KEY)
    try:
        made = make(**spec.kwargs)
    except (Exception, SystemExit) as error:
        message = f"`{spec.function}` failed: {blame(error)}"
        raise UserError(Problem(message, key=_KEY, remedy="fix the function or task.source.kwargs")) from error
    if not isinstance(made, Sequence) or isinstance(made, str | bytes):
        raise UserError(Problem(f"`{spec.function}` returned {type(made).__name__}", key=_KEY, remedy=_SHAPE))
    if not made:
        raise UserError(Problem(f"`{spec.function}` returned no examples", key=_KEY, remedy=_SHAPE))
    return [_example(item, number, spec.function) for number, item in enumerate(made)]


def _example(item: Any, number: int, function: str) -> Example:
    if isinstance(item, Example):
        return item
    if not isinstance(item, Mapping):
        raise UserError(Problem(f"example {number} of `{function}` is {type(item).__name__}", key=_KEY, remedy=_SHAPE))
    missing = [f for f in ("prompt", "answer") if item.get(f) is None]
    unknown = [str(k) for k in item if k not in _FIELDS]
    if missing or unknown:
        wrong = [f"no `{f}`" for f in missing] + [f"an unknown `{f}`" for f in unknown]
        remedy = f"an example has {', '.join(_FIELDS)}; put anything else under info"
        raise UserError(Problem(f"example {number} of `{function}` has {', '.join(wrong)}", key=_KEY, remedy=remedy))
    demonstration = item.get("demonstration")
    return Example(
        id=str(item.get("id", number)),
        prompt=str(item["prompt"]),
        answer=str(item["answer"]).strip(),
        demonstration=None if demonstration is None else str(demonstration),
        info=dict(item.get("info") or {}),
    )


SOURCE = Source(load, load_rows)
