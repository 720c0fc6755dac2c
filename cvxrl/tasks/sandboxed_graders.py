"""Graders whose judge works in a process of its own: mathematical equality, and reasoning-gym's scores."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

from cvxrl.imports import require_installed
from cvxrl.recipe.extract import NoExtract
from cvxrl.recipe.reward import MathVerifyReward, ReasoningGymReward
from cvxrl.recipe.task import ReasoningGymSource, TaskSpec
from cvxrl.tasks import judges
from cvxrl.tasks.base import Example
from cvxrl.tasks.extraction import Extracted
from cvxrl.tasks.graders import Grade, GraderBase, same_text
from cvxrl.tasks.notation import is_plain_number, words_of
from cvxrl.tasks.sandbox import JobResult, Sandbox


class _SandboxedGrader(GraderBase):
    """Right or wrong by the score of a judge in a process of its own, which starts with the first reply."""

    def __init__(
        self,
        spec: MathVerifyReward | ReasoningGymReward,
        task: TaskSpec,
        judge: str,
        options: dict[str, Any],
        threshold: float,
    ) -> None:
        self._spec, self._threshold = spec, threshold
        sandbox = Sandbox(f"{judges.__name__}:{judge}", options, spec.timeout_s, spec.memory_mb)
        self._process = sandbox
        super().__init__(task, f"`task.reward.kind: {spec.kind}`", sandbox)

    def _grade(
        self, completions: Sequence[str], examples: Sequence[Example], answers: Sequence[Extracted]
    ) -> list[Grade]:
        """Judge the replies that hold an answer; one without is wrong, and no error."""
        same = [same_text(*each) for each in zip(completions, examples, answers, strict=True)]
        jobs = [
            None if answer.text is None or equal else self._job(answer.text, example)
            for answer, example, equal in zip(answers, examples, same, strict=True)
        ]
        self._watch.saw(None, jobs.count(None))
        results = iter(self._process.run([job for job in jobs if job is not None], self._watch.saw))
        return [
            self._without_job(answer, equal) if job is None else self._one(next(results), answer)
            for answer, job, equal in zip(answers, jobs, same, strict=True)
        ]

    @abstractmethod
    def _job(self, reply: str, example: Example) -> dict[str, Any]:
        """What the judge is told of an extracted reply."""

    def _without_job(self, answer: Extracted, equal: bool) -> Grade:
        return Grade(self._spec.correct if equal else self._spec.incorrect, equal, answer.text, answer.error)

    def _one(self, result: JobResult, answer: Extracted) -> Grade:
        correct = result.score is not None and result.score >= self._threshold
        reward = self._spec.correct if correct else self._spec.incorrect
        return Grade(reward, correct, answer.text, result.error)


class MathVerifyGrader(_SandboxedGrader):
    """Mathematical equality between the extracted text and the answer (`cvxrl.tasks.mathematics`).

    Without extraction math-verify looks for the answer in the whole reply itself.
    """

    def __init__(self, spec: MathVerifyReward, task: TaskSpec) -> None:
        """Check that math-verify is installed.

        Raises:
            UserError: it is not.
        """
        require_installed("math_verify", "math-verify", "math", "task.reward.kind")
        super().__init__(spec, task, "math_verify", {}, threshold=1.0)
        self._whole = isinstance(task.extract, NoExtract)

    def unmatchable(self, answers: Sequence[str]) -> list[str | None]:
        """Right answers that are neither words nor readable as mathematics: only the same text equals them."""
        # Reading a formula takes hundredths of a second; that a plain number or a word can be read needs no trying.
        tried = [answer for answer in answers if not is_plain_number(answer) and words_of(answer) is None]
        results = self._process.run([{"gold": answer} for answer in tried])
        wrong = {answer for answer, result in zip(tried, results, strict=True) if result.error is not None}
        return ["no mathematics, equal to its own text alone" if answer in wrong else None for answer in answers]

    def _job(self, reply: str, example: Example) -> dict[str, Any]:
        return {"gold": example.answer, "reply": reply, "whole": self._whole}


class ReasoningGymGrader(_SandboxedGrader):
    """The data set's own score of the extracted text, of replies to problems of a reasoning-gym source."""

    def __init__(self, spec: ReasoningGymReward, task: TaskSpec, source: ReasoningGymSource) -> None:
        """Check that reasoning-gym is installed.

        Raises:
            UserError: it is not.
        """
        require_installed("reasoning_gym", "reasoning-gym", "tasks", "task.reward.kind")
        super().__init__(spec, task, "reasoning_gym", source.model_dump(mode="json"), spec.threshold)

    def _job(self, reply: str, example: Example) -> dict[str, Any]:
        return {"number": example.info["number"], "reply": reply}
