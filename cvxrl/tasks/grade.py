"""What a grader is, and the two graders that need no process of their own: exact and callable."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from cvxrl.errors import Problem, UserError
from cvxrl.recipe.extract import ExtractSpec
from cvxrl.recipe.task import CallableReward, ExactReward
from cvxrl.tasks import imports
from cvxrl.tasks.base import Example
from cvxrl.tasks.extract import canonical, extract

_KEY = "task.reward.function"


@dataclass(frozen=True)
class Grade:
    """The verdict on one reply.

    Attributes:
        reward: what the objective sees.
        correct: whether it counts as right in the accuracy.
        extracted: the part of the reply that was graded; none if the reply held no answer (that is a wrong
        reply).
        error: why it could not be graded, if so: `gold` (the right answer itself is unusable), `parse`,
        `timeout`,
            `memory`, `crash`, or the name of an exception. Never a silent zero: count these.
    """

    reward: float
    correct: bool
    extracted: str | None
    error: str | None = None


class Grader(Protocol):
    """Grades replies; may hold a process, so close it."""

    def grade(self, completions: Sequence[str], examples: Sequence[Example]) -> list[Grade]:
        """Grade `completions[i]` as a reply to `examples[i]`; one grade each, in order."""

    def close(self) -> None:
        """Release what the grader holds; closing twice is harmless."""


class ExactGrader:
    """String equality between the extracted text and the answer."""

    def __init__(self, spec: ExactReward, extraction: ExtractSpec) -> None:
        """Keep the two recipe sections."""
        self._spec = spec
        self._extraction = extraction

    def grade(self, completions: Sequence[str], examples: Sequence[Example]) -> list[Grade]:
        """Grade each reply; `error` is `gold` where the answer is not a number but a number is extracted."""
        return [self._one(c, e) for c, e in zip(completions, examples, strict=True)]

    def close(self) -> None:
        """Nothing to release."""

    def _one(self, completion: str, example: Example) -> Grade:
        extracted = extract(completion, self._extraction)
        gold = canonical(example.answer, self._extraction)
        if gold is None:
            return Grade(self._spec.incorrect, False, extracted, error="gold")
        correct = extracted == gold
        return Grade(self._spec.correct if correct else self._spec.incorrect, correct, extracted)


class CallableGrader:
    """A function of the user, called in this process."""

    def __init__(self, spec: CallableReward, extraction: ExtractSpec) -> None:
        """Import the function and check that it takes our arguments.

        Raises:
            UserError: it cannot be imported, or its parameters do not fit.
        """
        self._spec = spec
        self._extraction = extraction
        self._function = imports.function(spec.function, _KEY)
        _check_parameters(self._function, spec)

    def grade(self, completions: Sequence[str], examples: Sequence[Example]) -> list[Grade]:
        """Call the function on each reply.

        Raises:
            UserError: the function raised, or returned something other than a finite number or a boolean.
            Training on
                the rewards of a broken function would waste the run, so it stops at once.
        """
        return [self._one(c, e) for c, e in zip(completions, examples, strict=True)]

    def close(self) -> None:
        """Nothing to release."""

    def _one(self, completion: str, example: Example) -> Grade:
        extracted = extract(completion, self._extraction)
        arguments = _arguments(completion, example, extracted)
        try:
            value = self._function(**arguments, **self._spec.kwargs)
        except Exception as error:
            message = f"`{self._spec.function}` failed on a reply: {imports.blame(error)}"
            remedy = "handle the case in the function; any reply can reach it"
            raise UserError(Problem(message, key=_KEY, remedy=remedy)) from error
        try:
            reward = float(value)
        except (TypeError, ValueError):
            reward = math.nan
        if isinstance(value, str) or not math.isfinite(reward):
            message = f"`{self._spec.function}` returned {value!r}"
            raise UserError(Problem(message, key=_KEY, remedy="return a finite number or a boolean"))
        return Grade(reward, reward >= self._spec.threshold, extracted)


def _arguments(completion: str, example: Example, extracted: str | None) -> dict[str, Any]:
    return {
        "completion": completion,
        "answer": example.answer,
        "prompt": example.prompt,
        "info": example.info,
        "extracted": extracted,
    }


def _check_parameters(function: Callable[..., Any], spec: CallableReward) -> None:
    ours = _arguments("", Example("", "", ""), None)
    taken = sorted(ours.keys() & spec.kwargs.keys())
    if taken:
        message = f"{', '.join(taken)} is what the grader itself passes"
        raise UserError(Problem(message, key="task.reward.kwargs", remedy="rename the argument"))
    try:
        inspect.signature(function).bind(**ours, **spec.kwargs)
    except TypeError as error:
        remedy = f"it must take {', '.join([*ours, *spec.kwargs])}; **_ swallows those it does not need"
        raise UserError(Problem(f"`{spec.function}` does not fit: {error}", key=_KEY, remedy=remedy)) from None
    except ValueError:
        return  # a built-in without a signature: the first call will tell
