"""Graders: from replies to rewards and grades, by string equality, mathematics, reasoning-gym or a user's function."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from cvxrl.errors import Problem, UserError
from cvxrl.imports import import_function, require_installed
from cvxrl.recipe.extract import ExtractSpec, NoExtract
from cvxrl.recipe.task import (
    CallableReward,
    ExactReward,
    MathVerifyReward,
    ReasoningGymReward,
    ReasoningGymSource,
    TaskSpec,
)
from cvxrl.tasks import judges
from cvxrl.tasks.base import Example
from cvxrl.tasks.extraction import Extracted, Extractor, canonical
from cvxrl.tasks.sandbox import JobResult, Sandbox, run_job

_KEY = "task.reward.function"


@dataclass(frozen=True)
class Grade:
    """What one reply is worth.

    Attributes:
        reward: what the objective sees.
        correct: whether it counts as right in the accuracy.
        extracted: the part of the reply that was graded; none if the reply held no answer (that is a wrong reply).
        error: why it could not be graded, if so: `gold` (the right answer itself is unusable), `parse`, `timeout`,
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
        self._extractor = Extractor(extraction)

    def grade(self, completions: Sequence[str], examples: Sequence[Example]) -> list[Grade]:
        """Grade each reply; `error` is `gold` where the answer is not a number but a number is extracted."""
        answers = self._extractor.extract(completions)
        return [self._one(a, e) for a, e in zip(answers, examples, strict=True)]

    def close(self) -> None:
        """End the process that a regular expression needs."""
        self._extractor.close()

    def _one(self, answer: Extracted, example: Example) -> Grade:
        gold = canonical(example.answer, self._extraction)
        if gold is None or answer.error is not None:
            return Grade(self._spec.incorrect, False, answer.text, "gold" if gold is None else answer.error)
        correct = answer.text == gold
        return Grade(self._spec.correct if correct else self._spec.incorrect, correct, answer.text)


class CallableGrader:
    """A function of the user, called in a process of its own or, if the recipe says so, in this one."""

    def __init__(self, spec: CallableReward, extraction: ExtractSpec) -> None:
        """Import the function and check that it takes our arguments.

        Raises:
            UserError: it cannot be imported, or its parameters do not fit.
        """
        self._spec = spec
        self._extractor = Extractor(extraction)
        _check_parameters(import_function(spec.function, _KEY), spec)
        options = {"function": spec.function, "key": _KEY, "kwargs": spec.kwargs}
        self._judge = judges.user_function(options)
        self._sandbox = Sandbox("cvxrl.tasks.judges:user_function", options, spec.timeout_s, spec.memory_mb)

    def grade(self, completions: Sequence[str], examples: Sequence[Example]) -> list[Grade]:
        """Call the function on each reply.

        Raises:
            UserError: the function raised, or returned something other than a finite number or a boolean.
                Training on the rewards of a broken function would waste the run, so it stops at once.
        """
        answers = self._extractor.extract(completions)
        jobs = [_arguments(c, e, a.text) for c, e, a in zip(completions, examples, answers, strict=True)]
        results = self._in_sandbox(jobs) if self._spec.isolated else [self._here(job) for job in jobs]
        return [self._one(r, a) for r, a in zip(results, answers, strict=True)]

    def close(self) -> None:
        """End the processes."""
        self._extractor.close()
        self._sandbox.close()

    def _here(self, job: dict[str, Any]) -> JobResult:
        return JobResult(run_job(self._judge, job))

    def _in_sandbox(self, jobs: Sequence[dict[str, Any]]) -> list[JobResult]:
        try:
            return self._sandbox.run(jobs)
        except TypeError as error:
            message = f"the `info` of an example cannot be sent to the function's process: {error}"
            remedy = "keep info to what JSON knows, or set task.reward.isolated to false"
            raise UserError(Problem(message, key=_KEY, remedy=remedy)) from error

    def _one(self, result: JobResult, answer: Extracted) -> Grade:
        if "fault" in result:
            remedy = (
                "handle the case in the function; any reply can reach it"
                if result["raised"]
                else "return a finite number or a boolean"
            )
            raise UserError(Problem(f"`{self._spec.function}` {result['fault']}", key=_KEY, remedy=remedy))
        error = answer.error or result.error
        if error is not None or result.score is None:
            return Grade(self._spec.ungraded, False, answer.text, error)
        return Grade(result.score, result.score >= self._spec.threshold, answer.text)


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


class _SandboxedGrader(ABC):
    """Right or wrong by the score of a judge in a process of its own, which starts with the first reply."""

    def __init__(
        self,
        spec: MathVerifyReward | ReasoningGymReward,
        extraction: ExtractSpec,
        judge: str,
        options: dict[str, Any],
        threshold: float,
    ) -> None:
        self._spec, self._threshold = spec, threshold
        self._extractor = Extractor(extraction)
        self._sandbox = Sandbox(f"{judges.__name__}:{judge}", options, spec.timeout_s, spec.memory_mb)

    def grade(self, completions: Sequence[str], examples: Sequence[Example]) -> list[Grade]:
        """Judge the replies that hold an answer; one without is wrong, and no error."""
        answers = self._extractor.extract(completions)
        jobs = [
            None if answer.text is None else self._job(answer.text, example)
            for answer, example in zip(answers, examples, strict=True)
        ]
        results = iter(self._sandbox.run([job for job in jobs if job is not None]))
        return [
            Grade(self._spec.incorrect, False, None, answer.error) if job is None else self._one(next(results), answer)
            for answer, job in zip(answers, jobs, strict=True)
        ]

    def close(self) -> None:
        """End the grading process."""
        self._extractor.close()
        self._sandbox.close()

    @abstractmethod
    def _job(self, reply: str, example: Example) -> dict[str, Any]:
        """What the judge is told of an extracted reply."""

    def _one(self, result: JobResult, answer: Extracted) -> Grade:
        correct = result.score is not None and result.score >= self._threshold
        reward = self._spec.correct if correct else self._spec.incorrect
        return Grade(reward, correct, answer.text, result.error)


class MathVerifyGrader(_SandboxedGrader):
    """Mathematical equality between the extracted text and the answer.

    Without extraction math-verify looks for the answer in the whole reply itself.
    """

    def __init__(self, spec: MathVerifyReward, extraction: ExtractSpec) -> None:
        """Check that math-verify is installed.

        Raises:
            UserError: it is not.
        """
        require_installed("math_verify", "math-verify", "math", "task.reward.kind")
        super().__init__(spec, extraction, "math_verify", {}, threshold=1.0)
        self._whole = isinstance(extraction, NoExtract)

    def _job(self, reply: str, example: Example) -> dict[str, Any]:
        return {"gold": example.answer, "reply": reply, "whole": self._whole}


class ReasoningGymGrader(_SandboxedGrader):
    """The data set's own score of the extracted text, of replies to problems of a reasoning-gym source."""

    def __init__(self, spec: ReasoningGymReward, extraction: ExtractSpec, source: ReasoningGymSource) -> None:
        """Check that reasoning-gym is installed.

        Raises:
            UserError: it is not.
        """
        require_installed("reasoning_gym", "reasoning-gym", "tasks", "task.reward.kind")
        super().__init__(spec, extraction, "reasoning_gym", source.model_dump(mode="json"), spec.threshold)

    def _job(self, reply: str, example: Example) -> dict[str, Any]:
        return {"number": example.info["number"], "reply": reply}


def load_grader(spec: TaskSpec) -> Grader:
    """Make the grader that the recipe describes; close it when the run ends.

    Raises:
        UserError: a package or a function that grading needs cannot be found.
    """
    match spec.reward:
        case ExactReward() as reward:
            return ExactGrader(reward, spec.extract)
        case MathVerifyReward() as reward:
            return MathVerifyGrader(reward, spec.extract)
        case CallableReward() as reward:
            return CallableGrader(reward, spec.extract)
        case ReasoningGymReward() as reward:
            # TaskSpec lets this reward pass only together with the source that it scores.
            assert isinstance(spec.source, ReasoningGymSource)
            return ReasoningGymGrader(reward, spec.extract, spec.source)
