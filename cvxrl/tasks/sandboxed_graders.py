"""The two graders whose judges run in a process of their own: math-verify and reasoning-gym."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cvxrl.recipe.extract import ExtractSpec, NoExtract
from cvxrl.recipe.task import MathVerifyReward, ReasoningGymReward, ReasoningGymSource
from cvxrl.tasks import imports
from cvxrl.tasks.base import Example
from cvxrl.tasks.extraction import Finder, Found
from cvxrl.tasks.grade import Grade
from cvxrl.tasks.sandbox import Guard


class MathVerifyGrader:
    """Mathematical equality between the extracted text and the answer."""

    def __init__(self, spec: MathVerifyReward, extraction: ExtractSpec) -> None:
        """Check that math-verify is installed; the process starts with the first reply.

        Raises:
            UserError: it is not.
        """
        imports.require_installed("math_verify", "math-verify", "math", "task.reward.kind")
        self._spec = spec
        self._whole = isinstance(extraction, NoExtract)
        self._finder = Finder(extraction)
        self._guard = Guard("cvxrl.tasks.judges:math_verify", {}, spec.timeout_s, spec.memory_mb)

    def grade(self, completions: Sequence[str], examples: Sequence[Example]) -> list[Grade]:
        """Grade each reply. Without extraction math-verify looks for the answer in the whole reply itself."""
        answers = self._finder.find(completions)
        jobs = [
            None if a.text is None else {"gold": e.answer, "reply": a.text, "whole": self._whole}
            for a, e in zip(answers, examples, strict=True)
        ]
        return _grades(self._guard, self._spec, threshold=1.0, answers=answers, jobs=jobs)

    def close(self) -> None:
        """End the grading process."""
        self._finder.close()
        self._guard.close()


class ReasoningGymGrader:
    """The data set's own score of the extracted text, as right or wrong."""

    def __init__(self, spec: ReasoningGymReward, extraction: ExtractSpec, source: ReasoningGymSource) -> None:
        """Check that reasoning-gym is installed; the process starts with the first reply.

        Raises:
            UserError: it is not.
        """
        imports.require_installed("reasoning_gym", "reasoning-gym", "tasks", "task.reward.kind")
        self._spec = spec
        self._finder = Finder(extraction)
        options = source.model_dump(mode="json")
        self._guard = Guard("cvxrl.tasks.judges:reasoning_gym", options, spec.timeout_s, spec.memory_mb)

    def grade(self, completions: Sequence[str], examples: Sequence[Example]) -> list[Grade]:
        """Grade each reply to a problem of the reasoning-gym source."""
        answers = self._finder.find(completions)
        jobs = [
            None if a.text is None else {"number": e.info["number"], "reply": a.text}
            for a, e in zip(answers, examples, strict=True)
        ]
        return _grades(self._guard, self._spec, threshold=self._spec.threshold, answers=answers, jobs=jobs)

    def close(self) -> None:
        """End the grading process."""
        self._finder.close()
        self._guard.close()


def _grades(
    guard: Guard,
    spec: MathVerifyReward | ReasoningGymReward,
    *,
    threshold: float,
    answers: Sequence[Found],
    jobs: Sequence[dict[str, Any] | None],
) -> list[Grade]:
    """Judge the replies that hold an answer; one without is wrong, and no error."""
    verdicts = iter(guard.run([job for job in jobs if job is not None]))
    grades = []
    for answer, job in zip(answers, jobs, strict=True):
        if job is None:
            grades.append(Grade(spec.incorrect, False, None, answer.error))
            continue
        verdict = next(verdicts)
        correct = verdict.score is not None and verdict.score >= threshold
        grades.append(Grade(spec.correct if correct else spec.incorrect, correct, answer.text, verdict.error))
    return grades
