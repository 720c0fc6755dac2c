"""Graders: from replies to rewards and grades, by string equality, mathematics, reasoning-gym or a user's function."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from cvxrl.errors import Problem, UserError
from cvxrl.recipe.reward import CallableReward, ExactReward, MathVerifyReward, ReasoningGymReward
from cvxrl.recipe.task import GradingSpec, ReasoningGymSource, TaskSpec
from cvxrl.tasks.base import Example
from cvxrl.tasks.extraction import Extracted, Extractor, canonical, with_spaces
from cvxrl.tasks.sandbox import Sandbox

_log = logging.getLogger(__name__)


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
    """Grades replies; may hold a process, so close it.

    Attributes:
        any_thread: whether another thread than the one that made it may ask for grades.
    """

    any_thread: bool

    def grade(self, completions: Sequence[str], examples: Sequence[Example]) -> list[Grade]:
        """Grade `completions[i]` as a reply to `examples[i]`; one grade each, in order.

        Raises:
            UserError: too many of the last replies could not be graded (`task.grading`).
        """

    def unmatchable(self, answers: Sequence[str]) -> list[str | None]:
        """Why no reply can match each right answer; none where one can, or where that cannot be told."""

    def attend(self, note: Callable[[str], None], log: Path | None) -> None:
        """Tell the first reply that cannot be graded to `note`, and keep what the processes print in `log`."""

    def close(self) -> None:
        """Release what the grader holds; closing twice is harmless."""


class ErrorWatch:
    """Counts the replies among the last ones that could not be graded: told at the first, the end where too many.

    A grader that fails is not a policy that is wrong, but both give the reward of a wrong reply. Unnoticed, a broken
    function would train a policy on nothing.
    """

    def __init__(self, spec: GradingSpec, what: str) -> None:
        """Begin with no reply.

        Args:
            spec: the largest share, and over how many replies.
            what: the grader, as messages call it.
        """
        self._spec, self._what = spec, what
        self._recent: deque[str | None] = deque(maxlen=spec.over)
        self._told = False
        self.note: Callable[[str], None] = _log.warning
        self.log = ""

    def saw(self, error: str | None, times: int = 1) -> None:
        """Count `times` replies with this error, or with none.

        Raises:
            UserError: too many of the last replies could not be graded, whatever the next ones will be.
        """
        failed = None if error == "parse" else error
        self._recent.extend([failed] * min(times, self._spec.over))
        if failed is None:
            return
        if not self._told:
            self._told = True
            where = f"; its output: {self.log}" if self.log else ""
            self.note(f"{self._what} could not grade a reply ({failed}); it counts as wrong{where}")
        self._require(self._spec.over)

    def settle(self) -> None:
        """A batch is graded.

        Raises:
            UserError: too many of the last replies could not be graded, and there are enough to say so.
        """
        if 4 * len(self._recent) >= self._spec.over:
            self._require(len(self._recent))

    def _require(self, seen: int) -> None:
        errors = Counter(error for error in self._recent if error is not None)
        if errors.total() <= self._spec.max_error_share * seen:
            return
        kinds = ", ".join(f"{count} {error}" for error, count in errors.most_common())
        raise UserError(
            Problem(
                f"{self._what} could not grade {errors.total()} of the last {len(self._recent)} replies: {kinds}",
                "task.reward",
                self.log,
                "mend the grader or raise its limits; task.grading.max_error_share: 1 goes on whatever happens",
            )
        )


class GraderBase(ABC):
    """Extraction, then grading; errors are watched (`cvxrl.tasks.error_watch`)."""

    def __init__(self, task: TaskSpec, what: str, sandbox: Sandbox | None = None) -> None:
        """Keep the recipe section.

        Args:
            task: says how answers are extracted, and how many errors are too many.
            what: the grader, as messages call it.
            sandbox: the process that grades, if one does.
        """
        self._extractor = Extractor(task.extract)
        self._watch = ErrorWatch(task.grading, what)
        self._sandbox = sandbox
        self.any_thread = True  # text alone, or a process that takes jobs from any thread

    def grade(self, completions: Sequence[str], examples: Sequence[Example]) -> list[Grade]:
        """Grade `completions[i]` as a reply to `examples[i]`; one grade each, in order.

        Raises:
            UserError: too many of the last replies could not be graded.
        """
        answers = self._extractor.extract(completions, self._watch.saw)
        grades = self._grade(completions, examples, answers)
        self._watch.settle()
        return grades

    def unmatchable(self, answers: Sequence[str]) -> list[str | None]:
        """Nothing is known of what a function or a score accepts."""
        return [None] * len(answers)

    def attend(self, note: Callable[[str], None], log: Path | None) -> None:
        """Tell the first reply that cannot be graded to `note`, and keep what the processes print in `log`."""
        self._watch.note = note
        if log is None:
            return
        self._watch.log = str(log)
        for sandbox in (self._sandbox, self._extractor.sandbox):
            if sandbox is not None:
                sandbox.output.keep_in(log)

    def close(self) -> None:
        """End the processes."""
        self._extractor.close()
        if self._sandbox is not None:
            self._sandbox.close()

    @abstractmethod
    def _grade(
        self, completions: Sequence[str], examples: Sequence[Example], answers: Sequence[Extracted]
    ) -> list[Grade]:
        """One grade a reply."""


class ExactGrader(GraderBase):
    """String equality between the extracted text and the answer."""

    def __init__(self, spec: ExactReward, task: TaskSpec) -> None:
        """Keep the two recipe sections."""
        super().__init__(task, "`task.reward.kind: exact`")
        self._spec, self._extraction = spec, task.extract

    def unmatchable(self, answers: Sequence[str]) -> list[str | None]:
        """Where a number is extracted, right answers that are none; and empty ones."""
        forms = [(answer, canonical(answer, self._extraction)) for answer in answers]
        return ["empty" if not a.strip() else "no such number" if form is None else None for a, form in forms]

    def _grade(
        self, completions: Sequence[str], examples: Sequence[Example], answers: Sequence[Extracted]
    ) -> list[Grade]:
        """Grade each reply; `error` is `gold` where the right answer is empty, or no number and one is extracted."""
        return [self._one(*each) for each in zip(completions, examples, answers, strict=True)]

    def _one(self, completion: str, example: Example, answer: Extracted) -> Grade:
        gold = canonical(example.answer, self._extraction) or None  # an empty one must not pay for an empty reply
        if same_text(completion, example, answer):
            grade = Grade(self._spec.correct, True, answer.text)
        elif gold is None or answer.error is not None:
            grade = Grade(self._spec.incorrect, False, answer.text, "gold" if gold is None else answer.error)
        elif answer.text == gold or with_spaces(completion, self._extraction) == gold:
            grade = Grade(self._spec.correct, True, gold)
        else:
            grade = Grade(self._spec.incorrect, False, answer.text)
        if answer.error is None:
            self._watch.saw(grade.error)
        return grade


def load_grader(spec: TaskSpec) -> Grader:
    """Make the grader that the recipe describes; close it when the run ends.

    Raises:
        UserError: a package or a function that grading needs cannot be found, or the function's process does not start.
    """
    # They build on this module.
    from cvxrl.tasks import callable_grader, sandboxed_graders

    match spec.reward:
        case ExactReward() as reward:
            return ExactGrader(reward, spec)
        case MathVerifyReward() as reward:
            return sandboxed_graders.MathVerifyGrader(reward, spec)
        case CallableReward() as reward:
            return callable_grader.CallableGrader(reward, spec)
        case ReasoningGymReward() as reward:
            # TaskSpec lets this reward pass only together with the source that it scores.
            assert isinstance(spec.source, ReasoningGymSource)
            return sandboxed_graders.ReasoningGymGrader(reward, spec, spec.source)


def same_text(completion: str, example: Example, answer: Extracted) -> bool:
    """Whether a reply, or the answer found in it, is the right answer's own text; it must hold an answer at all."""
    gold = example.answer.strip()
    return answer.text is not None and gold != "" and gold in (completion.strip(), answer.text)
