"""EVAL.json: what was asked of which policy, every verdict, and the numbers that follow. Nothing here imports torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from cvxrl.recipe.task import TaskSpec
from cvxrl.runs.provenance import Provenance

Bit = Annotated[int, Field(ge=0, le=1)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class CheckpointInfo(_Strict):
    """Which policy answered.

    Attributes:
        path: what the user named.
        policy: the Hugging Face directory or id that was loaded.
        dtype: data type of the parameters.
        parameters: their number.
        sha256: digest of names and values of all parameters, in the data type that answered.
        recipe: digest of the recipe of the run that it belongs to, if any.
        seed: training seed of that run.
    """

    path: str
    policy: str
    dtype: str
    parameters: int
    sha256: str
    recipe: str | None
    seed: int | None


class TaskInfo(_Strict):
    """What was asked.

    Attributes:
        name: name of the task.
        version: version of the task file; None for a run's own task.
        digest: SHA-256 of the task section: source, template, extraction, grader.
        fingerprint: SHA-256 of the questions and right answers themselves.
        spec: the task section.
    """

    name: str
    version: int | None
    digest: str
    fingerprint: str
    spec: TaskSpec


class SamplingInfo(_Strict):
    """How the policy was asked."""

    questions: int
    samples: int
    temperature: float
    top_p: float
    max_new_tokens: int
    seed: int


class Settings(_Strict):
    """Everything that decides the numbers; an evaluation resumes only under equal settings."""

    schema_version: Literal[1] = 1
    checkpoint: CheckpointInfo
    task: TaskInfo
    sampling: SamplingInfo


class QuestionRecord(_Strict):
    """One question; every list has one entry per completion.

    Attributes:
        id: the example's name within its source.
        answer: the right answer.
        correct: 0/1, verdict of the task's grader.
        strict: 0/1, verdict of the strict grader.
        truncated: 0/1, whether the completion reached the length limit.
        error: why the task's grader could not judge, or null.
        extracted: the answer found in the completion, or null.
        tokens: length of the completion.
    """

    id: str
    answer: str
    correct: list[Bit]
    strict: list[Bit]
    truncated: list[Bit]
    error: list[str | None]
    extracted: list[str | None]
    tokens: list[int]

    @property
    def columns(self) -> Sequence[Sequence[object]]:
        """All lists that have one entry per completion."""
        return (self.correct, self.strict, self.truncated, self.error, self.extracted, self.tokens)


class Estimate(_Strict):
    """A number and its standard error, clustered by question; null where there is a single question."""

    value: float
    stderr: float | None


class AtK(_Strict):
    """What k completions per question give, estimated from all n."""

    k: int
    pass_at_k: Estimate
    avg_at_k: Estimate
    maj_at_k: Estimate


class Results(_Strict):
    """The numbers. Every share is over ``questions * samples`` completions.

    Attributes:
        accuracy: share judged right by the task's grader (avg@n).
        strict_accuracy: share judged right by the strict grader.
        disagreement: share on which the two graders differ.
        strict_missed: share right for the task's grader only.
        strict_only: share right for the strict grader only.
        truncated: share that reached the length limit.
        grader_errors: share that the task's grader could not judge; they count as wrong.
        no_answer: share in which no answer was found.
        mean_tokens: mean length.
        at_k: pass@k, avg@k and maj@k.
    """

    questions: int
    samples: int
    accuracy: Estimate
    strict_accuracy: Estimate
    disagreement: float
    strict_missed: float
    strict_only: float
    truncated: float
    grader_errors: float
    no_answer: float
    mean_tokens: float
    at_k: list[AtK]


class EvalRecord(Settings):
    """Contents of EVAL.json.

    Attributes:
        finished: UTC time, ISO 8601.
        seconds: time spent sampling and grading, over all sessions.
        provenance: code, versions and machine.
        results: the numbers.
        questions: the verdicts behind them.
    """

    finished: str
    seconds: float
    provenance: Provenance
    results: Results
    questions: list[QuestionRecord]

    @model_validator(mode="after")
    def _rectangular(self) -> Self:
        if len(self.questions) != self.sampling.questions:
            raise ValueError(f"{len(self.questions)} questions, but sampling.questions is {self.sampling.questions}")
        for question in self.questions:
            if any(len(column) != self.sampling.samples for column in question.columns):
                raise ValueError(f"question `{question.id}` does not have {self.sampling.samples} of everything")
        return self
