"""What the grading process runs: mathematical equality, reasoning-gym's own scores, patterns, functions of the user."""

from __future__ import annotations

import importlib
import logging
import math
from typing import Any

from cvxrl.imports import blame, import_function
from cvxrl.recipe.task import ReasoningGymSource
from cvxrl.tasks.extraction import last_boxed, last_group
from cvxrl.tasks.sandbox import Judge, NotGradable


def math_verify(options: dict[str, Any]) -> Judge:
    """Make the judge of jobs `{"gold", "reply", "whole"}`: 1 if both are equal as mathematics, else 0.

    `whole` says that `reply` is a whole reply, in which math-verify is to find the answer, and not an answer
    alone.
    """
    package = importlib.import_module("math_verify")
    logging.getLogger("math_verify").setLevel(logging.CRITICAL)  # it warns that its own time limit is off: ours is on
    boxed = [package.LatexExtractionConfig()]

    def parse(text: str, error: str, **how: Any) -> Any:
        found = package.parse(text, parsing_timeout=None, **how)
        # A lone string is the text itself, handed back because it could not be read as mathematics.
        if not found or all(isinstance(f, str) for f in found):
            raise NotGradable(error)
        return found

    def judge(job: dict[str, Any]) -> float:
        gold = parse(_box(job["gold"]), "gold", extraction_config=boxed)
        if job["whole"]:
            reply = parse(job["reply"], "parse")
        else:
            reply = parse(_box(job["reply"]), "parse", extraction_config=boxed)
        # Gold first: the comparison is not symmetric (an interval may answer an inequality, but not the
        # reverse).
        return float(package.verify(gold, reply, timeout_seconds=None))

    return judge


def reasoning_gym(options: dict[str, Any]) -> Judge:
    """Make the judge of jobs `{"number", "reply"}`: the score from 0 to 1 that reasoning-gym gives the reply.

    It makes problem `number` again, because its metadata would not survive the way through JSON unchanged.
    """
    create = importlib.import_module("cvxrl.tasks.reasoning_gym").create
    dataset = create(ReasoningGymSource.model_validate(options))

    def judge(job: dict[str, Any]) -> float:
        return float(dataset.score_answer(job["reply"], dataset[job["number"]]))

    return judge


def pattern(options: dict[str, Any]) -> Judge:
    """Make the judge of jobs `{"reply"}`: `{"text": what the pattern's last match picks out, or none}`."""

    def judge(job: dict[str, Any]) -> dict[str, Any]:
        return {"text": last_group(job["reply"], options["pattern"])}

    return judge


def user_function(options: dict[str, Any]) -> Judge:
    """Make the judge whose jobs are the function's arguments.

    It answers `{"score"}`, or `{"fault"}` in words if the function itself is to blame: it raised something, or
    returned no number.
    """
    call = import_function(options["function"], options["key"])

    def judge(job: dict[str, Any]) -> dict[str, Any]:
        try:
            value = call(**job, **options["kwargs"])
        except MemoryError:
            raise
        except Exception as error:
            return {"fault": f"failed on a reply: {blame(error)}", "raised": True}
        number = finite_number(value)
        return {"fault": f"returned {value!r}", "raised": False} if number is None else {"score": number}

    return judge


def finite_number(value: Any) -> float | None:
    """The reward that a function returned, or None if it is not a finite number or a boolean."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) and not isinstance(value, str) else None


def _box(text: str) -> str:
    r"""Put an answer in `\boxed{}`: bare LaTeX would be cut at the first sign that does not parse."""
    inner = last_boxed(text)
    bare = text if inner is None else inner
    return f"\\boxed{{{bare.strip().strip('$')}}}"
