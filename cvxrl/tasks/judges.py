"""What the grading process runs: mathematical equality, reasoning-gym's own scores, patterns, functions of the user.

Every lost process is started again, so libraries are loaded only by the judge that needs them.
"""

from __future__ import annotations

import base64
import importlib
import inspect
import json
import math
import pickle
import random
import reprlib
from collections.abc import Callable
from dataclasses import asdict
from functools import cache
from typing import Any

from cvxrl.errors import Problem, UserError
from cvxrl.imports import blame, import_function
from cvxrl.tasks.mathematics import math_verify
from cvxrl.tasks.passages import last_group
from cvxrl.tasks.worker import Judge

__all__ = [
    "check_parameters",
    "finite_number",
    "math_verify",
    "pattern",
    "reasoning_gym",
    "reasoning_gym_problems",
    "user_function",
]


def reasoning_gym(options: dict[str, Any]) -> Judge:
    """Make the judge of jobs `{"number", "reply"}`: the score from 0 to 1 that reasoning-gym gives the reply.

    It makes problem `number` again, because its metadata would not survive the way through JSON unchanged.
    """
    dataset = _data_set(json.dumps(options, sort_keys=True))

    def judge(job: dict[str, Any]) -> float:
        return float(dataset.score_answer(job["reply"], _problem(dataset, job["number"])))

    return judge


def reasoning_gym_problems(options: dict[str, Any]) -> Judge:
    """Make the judge of jobs `{"source", "number"}`: the problem, `{"entry": pickled, in base64}`.

    Without a number the answer is empty, or `{"refused": problems}` where there is no such data set.
    """

    def judge(job: dict[str, Any]) -> dict[str, Any]:
        try:
            dataset = _data_set(json.dumps(job["source"], sort_keys=True))
        except UserError as error:
            return {"refused": [asdict(problem) for problem in error.problems]}
        if job["number"] is None:
            return {}
        return {"entry": base64.b64encode(pickle.dumps(_problem(dataset, job["number"]))).decode()}

    return judge


@cache
def _data_set(source: str) -> Any:
    module = importlib.import_module("cvxrl.tasks.reasoning_gym")
    return module.create(module.ReasoningGymSource.model_validate_json(source))


def _problem(dataset: Any, number: int) -> Any:
    # Some generators draw from the module's own stream, which no process may have moved.
    random.seed(number)
    return dataset[number]


def pattern(options: dict[str, Any]) -> Judge:
    """Make the judge of jobs `{"reply"}`: `{"text": what the pattern's last match picks out, or none}`."""

    def judge(job: dict[str, Any]) -> dict[str, Any]:
        return {"text": last_group(job["reply"], options["pattern"])}

    return judge


def user_function(options: dict[str, Any]) -> Judge:
    """Make the judge whose jobs are the function's arguments.

    It answers `{"score"}`, or `{"fault"}` in words if the function itself is to blame: it raised something, or
    returned no number.

    Raises:
        UserError: the function cannot be imported, or its parameters do not fit.
    """
    name, kwargs = options["function"], options["kwargs"]
    call = import_function(name, options["key"])
    check_parameters(call, name, options["key"], options["passed"], kwargs)

    def judge(job: dict[str, Any]) -> dict[str, Any]:
        try:
            value = call(**job, **kwargs)
        except MemoryError:
            raise
        except (Exception, SystemExit) as error:
            return {"fault": f"failed on a reply: {blame(error)}", "raised": True}
        number = finite_number(value)
        return {"fault": f"returned {_shown(value)}", "raised": False} if number is None else {"score": number}

    return judge


def check_parameters(
    function: Callable[..., Any], name: str, key: str, passed: list[str], kwargs: dict[str, Any]
) -> None:
    """Raise UserError unless `function` can be called with the arguments `passed` and with `kwargs`."""
    try:
        inspect.signature(function).bind(**dict.fromkeys(passed), **kwargs)
    except TypeError as error:
        remedy = f"it must take {', '.join([*passed, *kwargs])}; **_ swallows those it does not need"
        raise UserError(Problem(f"`{name}` does not fit: {error}", key=key, remedy=remedy)) from None
    except ValueError:
        return  # a built-in without a signature: the first call will tell


def finite_number(value: Any) -> float | None:
    """The reward that a function returned, or None if it is not a finite number or a boolean.

    A tensor or an array of one element is its number.
    """
    if value is None or isinstance(value, str | bytes):
        return None
    try:
        number = float(value)
    except MemoryError:
        raise
    except Exception:  # of whatever kind the object's own conversion raises: a tensor of two elements a RuntimeError
        return None
    return number if math.isfinite(number) else None


def _shown(value: Any) -> str:
    """A value in a message: short, whatever it is."""
    try:
        text = reprlib.repr(value)
    except Exception:
        text = "an object"
    return (
        f"{' '.join(text.split())[:80]} ({type(value).__name__})" if not isinstance(value, str | float | None) else text
    )
