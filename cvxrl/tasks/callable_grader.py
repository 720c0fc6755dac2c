"""Rewards by a function of the user's, called in a process of its own or, if the recipe says so, in this one."""

from __future__ import annotations

import io
from collections.abc import Sequence
from contextlib import redirect_stdout
from typing import Any

from cvxrl.errors import Problem, UserError
from cvxrl.recipe.reward import CallableReward
from cvxrl.recipe.task import TaskSpec
from cvxrl.tasks import judges
from cvxrl.tasks.base import Example
from cvxrl.tasks.extraction import Extracted
from cvxrl.tasks.graders import Grade, GraderBase
from cvxrl.tasks.sandbox import JobResult, Sandbox, WorkerOutput
from cvxrl.tasks.worker import Judge, run_job

_KEY = "task.reward.function"


class CallableGrader(GraderBase):
    """The number that the function returns. Isolated, the function is imported in its own process alone."""

    def __init__(self, spec: CallableReward, task: TaskSpec) -> None:
        """Import the function, in its process if it has one, and check that it takes our arguments.

        Raises:
            UserError: it cannot be imported, its parameters do not fit, or importing it ends or hangs its process.
        """
        ours = list(_arguments("", Example("", "", ""), None))
        taken = sorted({*ours} & spec.kwargs.keys())
        if taken:
            message = f"{', '.join(taken)} is what the grader itself passes"
            raise UserError(Problem(message, key="task.reward.kwargs", remedy="rename the argument"))
        options = {"function": spec.function, "key": _KEY, "kwargs": spec.kwargs, "passed": ours}
        self._spec = spec
        self._process = Sandbox("cvxrl.tasks.judges:user_function", options, spec.timeout_s, spec.memory_mb, _KEY)
        super().__init__(task, f"`{spec.function}`", self._process)
        # Called in this process, a function may need the thread that imported it: an alarm, a context of a library.
        self.any_thread = spec.isolated
        self._judge: Judge | None = None
        if spec.isolated:
            self._process.start()
            return
        with redirect_stdout(_Printed(self._process.output)):
            self._judge = judges.user_function(options)

    def _grade(
        self, completions: Sequence[str], examples: Sequence[Example], answers: Sequence[Extracted]
    ) -> list[Grade]:
        """Call the function on each reply.

        Raises:
            UserError: the function raised, or returned something other than a finite number or a boolean.
                Training on the rewards of a broken function would waste the run, so it stops at once.
        """
        jobs = [_arguments(c, e, a.text) for c, e, a in zip(completions, examples, answers, strict=True)]
        results = self._in_sandbox(jobs) if self._judge is None else [self._here(job) for job in jobs]
        return [self._one(r, a) for r, a in zip(results, answers, strict=True)]

    def _here(self, job: dict[str, Any]) -> JobResult:
        assert self._judge is not None
        with redirect_stdout(_Printed(self._process.output)):
            result = JobResult(run_job(self._judge, job))
        self._watch.saw(result.error)
        return result

    def _in_sandbox(self, jobs: Sequence[dict[str, Any]]) -> list[JobResult]:
        try:
            return self._process.run(jobs, self._watch.saw)
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


class _Printed(io.TextIOBase):
    """Takes what a function prints in this process: stdout may be a JSON document of the command's."""

    def __init__(self, output: WorkerOutput) -> None:
        self._output = output

    def write(self, text: str) -> int:
        self._output.write(text.encode(errors="backslashreplace"))
        return len(text)


def _arguments(completion: str, example: Example, extracted: str | None) -> dict[str, Any]:
    return {
        "completion": completion,
        "answer": example.answer,
        "prompt": example.prompt,
        "info": dict(example.info),
        "extracted": extracted,
    }
