"""What is stored of an evaluation, in one form: EVAL.json, and evals/step-*.json of a run. Nothing here imports torch.

A field that is null is unknown: version 0.1 kept less of its evaluations during training.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from cvxrl.recipe.task import TaskSpec
from cvxrl.runs.provenance import Provenance

# Version 0.1 wrote 1, with another digest of the weights; both are read.
SCHEMA_VERSION: Literal[2] = 2
_READABLE = ("id", "prompt", "completion", "answer", "extracted", "correct", "strict", "reward", "error", "truncated")
_SPELT = ("token_texts", "token_logprobs")
Bit = Annotated[int, Field(ge=0, le=1)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class CheckpointInfo(_Strict):
    """Which policy answered.

    Attributes:
        path: what the user named; of an evaluation during training, the checkpoint of its step, if that was kept,
            relative to the run directory.
        policy: the Hugging Face directory or id that was loaded; likewise.
        dtype: data type of the parameters.
        parameters: their number.
        sha256: digest of the weights as they answered, see `cvxrl.policy.identity.hash_weights`.
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
        unique: how many of the questions are different ones; None in records of version 0.1.
        spec: the task section.
    """

    name: str
    version: int | None
    digest: str
    fingerprint: str
    unique: int | None = None
    spec: TaskSpec


class SamplingInfo(_Strict):
    """How the policy was asked."""

    questions: int
    samples: int
    temperature: float
    top_p: float | None
    max_new_tokens: int | None
    seed: int | None


class Settings(_Strict):
    """Everything that decides the numbers; an evaluation resumes only under equal settings."""

    schema_version: Literal[1, 2] = SCHEMA_VERSION
    checkpoint: CheckpointInfo | None
    task: TaskInfo | None
    sampling: SamplingInfo


class Sample(_Strict):
    """One completion and what the graders say about it: a line of samples.jsonl.

    Attributes:
        question, sample: position of the question in the task, and of the completion among the question's.
        id: the example's name within its source.
        prompt: the bare problem, before any template.
        completion: the reply, without special tokens.
        answer: the right answer.
        extracted: the part of the reply that was graded, or null.
        correct: verdict of the task's grader.
        reward: the number that training would see; null if it is not finite.
        error: why the task's grader could not judge, or null.
        truncated: the reply reached the length limit.
        strict: verdict of the strict grader.
        tokens: length of the reply.
        seconds: its share of the time between the batch before being done, graded, and its own.
        token_texts: what each of its tokens adds to the reply, where that was kept; special ones by their names.
        token_logprobs: log-probability of each under the distribution that it was drawn from, likewise.
    """

    question: int
    sample: int
    id: str
    prompt: str
    completion: str
    answer: str
    extracted: str | None
    correct: bool
    reward: float | None
    error: str | None
    truncated: bool
    strict: bool
    tokens: int
    seconds: float
    token_texts: list[str] | None = None
    token_logprobs: list[float | None] | None = None

    def readable(self) -> dict[str, object]:
        """What a person wants to see of it: a line of rollouts/step-*.jsonl."""
        spelt = _SPELT if self.token_texts is not None else ()
        return {name: getattr(self, name) for name in (*_READABLE, *spelt)}

    def stored(self) -> dict[str, object]:
        """A line of samples.jsonl: tokens only where they were kept."""
        return self.model_dump(exclude_defaults=True)


class QuestionRecord(_Strict):
    """One question; every list has one entry per completion, and is null where it is unknown.

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

    id: str | None
    answer: str | None
    correct: list[Bit]
    strict: list[Bit] | None
    truncated: list[Bit] | None
    error: list[str | None] | None
    extracted: list[str | None] | None
    tokens: list[int] | None

    @property
    def columns(self) -> Sequence[Sequence[object]]:
        """All known lists that have one entry per completion."""
        every = (self.correct, self.strict, self.truncated, self.error, self.extracted, self.tokens)
        return [column for column in every if column is not None]


class Estimate(_Strict):
    """A share with its standard error and 95% interval, both clustered by question.

    Null where there is a single question; the interval also in records of version 0.1.
    """

    value: float
    stderr: float | None
    low: float | None = None
    high: float | None = None


class AtK(_Strict):
    """What k completions per question give, estimated from all n."""

    k: int
    pass_at_k: Estimate
    avg_at_k: Estimate
    maj_at_k: Estimate | None


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
    strict_accuracy: Estimate | None
    disagreement: float | None
    strict_missed: float | None
    strict_only: float | None
    truncated: float | None
    grader_errors: float | None
    no_answer: float | None
    mean_tokens: float | None
    at_k: list[AtK]


class EvalRecord(Settings):
    """Contents of EVAL.json and of evals/step-*.json.

    The latter have no times and no provenance, which metrics.jsonl and run.json hold: a run and its repetition write
    the same bytes.

    Attributes:
        step: training step after which the policy was asked; null outside of training.
        rows: completions decoded at a time; they change the rounding of the forward pass, and nothing else.
        engine: what sampled, as in `rollout.engine`; like ``rows`` it changes rounding, of a server the draws too.
        finished: UTC time, ISO 8601.
        seconds: time spent sampling and grading, over all sessions.
        provenance: code, versions and machine.
        results: the numbers.
        questions: the verdicts behind them.
    """

    step: int | None = None
    rows: int | None = None
    engine: str | None = None
    finished: str | None
    seconds: float | None
    provenance: Provenance | None
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


class StepRecord01(_Strict):
    """evals/step-*.json as version 0.1 wrote it."""

    step: int
    accuracy: float
    stderr: float | None
    prompts: int
    samples: int
    temperature: float
    truncated: float
    grader_errors: float
    correct: list[list[Bit]] = Field(min_length=1)

    @model_validator(mode="after")
    def _rectangular(self) -> Self:
        if [len(each) for each in self.correct] != [self.samples] * self.prompts:
            raise ValueError(f"`correct` does not hold {self.prompts} x {self.samples} verdicts")
        return self

    def record(self) -> EvalRecord:
        """The same in today's form; what it does not hold is None."""
        unknown = dict.fromkeys(("id", "answer", "strict", "truncated", "error", "extracted", "tokens"))
        results = dict.fromkeys(Results.model_fields) | {
            "questions": self.prompts,
            "samples": self.samples,
            "accuracy": Estimate(value=self.accuracy, stderr=self.stderr),
            "truncated": self.truncated,
            "grader_errors": self.grader_errors,
            "at_k": [],
        }
        asked = {"questions": self.prompts, "samples": self.samples, "temperature": self.temperature}
        return EvalRecord(
            schema_version=1,
            checkpoint=None,
            task=None,
            sampling=SamplingInfo.model_validate(dict.fromkeys(SamplingInfo.model_fields) | asked),
            step=self.step,
            finished=None,
            seconds=None,
            provenance=None,
            results=Results.model_validate(results),
            questions=[QuestionRecord.model_validate(unknown | {"correct": each}) for each in self.correct],
        )
