"""What a grader is, and two of them: exact and callable."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from cvxrl.errors import Problem, UserError
from cvxrl.recipe.extract import ExtractSpec
from cvxrl.recipe.task import CallableReward, ExactReward
from cvxrl.tasks import imports, judges, worker
from cvxrl.tasks.base import Example
from cvxrl.tasks.extract import canonical
from cvxrl.tasks.extraction import Finder, Found
from cvxrl.tasks.sandbox import Guard, Verdict

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
        self._finder = Finder(extraction)

    def grade(self, completions: Sequence[str], examples: Sequence[Example]) -> list[Grade]:
        """Grade each reply; `error` is `gold` where the answer is not a number but a number is extracted."""
        found = self._finder.find(completions)
        return [self._one(f, e) for f, e in zip(found, examples, strict=True)]

    def close(self) -> None:
        """End what searches the replies."""
        self._finder.close()

    def _one(self, found: Found, example: Example) -> Grade:
        gold = canonical(example.answer, self._extraction)
        if gold is None or found.error is not None:
            return Grade(self._spec.incorrect, False, found.text, "gold" if gold is None else found.error)
        correct = found.text == gold
        return Grade(self._spec.correct if correct else self._spec.incorrect, correct, found.text)


class CallableGrader:
    """A function of the user, called in a process of its own or, if the recipe says so, in this one."""

    def __init__(self, spec: CallableReward, extraction: ExtractSpec) -> None:
        """Import the function and check that it takes our arguments.

        Raises:
            UserError: it cannot be imported, or its parameters do not fit.
        """
        self._spec = spec
        self._finder = Finder(extraction)
        _check_parameters(imports.function(spec.function, _KEY), spec)
        options = {"function": spec.function, "key": _KEY, "kwargs": spec.kwargs}
        self._here = judges.user_function(options)
        self._guard = Guard("cvxrl.tasks.judges:user_function", options, spec.timeout_s, spec.memory_mb)

    def grade(self, completions: Sequence[str], examples: Sequence[Example]) -> list[Grade]:
        """Call the function on each reply.

        Raises:
            UserError: the function raised, or returned something other than a finite number or a boolean.
                Training on the rewards of a broken function would waste the run, so it stops at once.
        """
        found = self._finder.find(completions)
        jobs = [_arguments(c, e, f.text) for c, e, f in zip(completions, examples, found, strict=True)]
        verdicts = self._elsewhere(jobs) if self._spec.isolated else [self._judge(job) for job in jobs]
        return [self._one(v, f) for v, f in zip(verdicts, found, strict=True)]

    def close(self) -> None:
        """End the processes."""
        self._finder.close()
        self._guard.close()

    def _judge(self, job: dict[str, Any]) -> Verdict:
        return Verdict(worker.verdict(self._here, job))

    def _elsewhere(self, jobs: Sequence[dict[str, Any]]) -> list[Verdict]:
        try:
            return self._guard.run(jobs)
        except TypeError as error:
            message = f"the `info` of an example cannot be sent to the function's process: {error}"
            remedy = "keep info to what JSON knows, or set task.reward.isolated to false"
            raise UserError(Problem(message, key=_KEY, remedy=remedy)) from error

    def _one(self, verdict: Verdict, found: Found) -> Grade:
        if "fault" in verdict:
            remedy = (
                "handle the case in the function; any reply can reach it"
                if verdict["raised"]
                else "return a finite number or a boolean"
            )
            raise UserError(Problem(f"`{self._spec.function}` {verdict['fault']}", key=_KEY, remedy=remedy))
        error = found.error or verdict.error
        if error is not None or verdict.score is None:
            return Grade(self._spec.ungraded, False, found.text, error)
        return Grade(verdict.score, verdict.score >= self._spec.threshold, found.text)


def _arguments(completion: str, example: Example, extracted: str | None) -> dict[str, Any]:
    return {
        "completion": completion,
        "answer": example.answer,
        "prompt": example.prompt,
        "info": dict(example.info),
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
