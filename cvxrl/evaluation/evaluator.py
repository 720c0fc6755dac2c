"""The one evaluator: asks a policy questions and grades what it says, batch by batch.

Training and `cvxrl eval` both go through it, so that the one repeats the numbers of the other bit for bit.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby, islice
from operator import itemgetter

import torch

from cvxrl.errors import Problem, UserError
from cvxrl.evaluation.answers import judge
from cvxrl.evaluation.memory import rows_that_fit
from cvxrl.evaluation.record import CheckpointInfo, QuestionRecord, Sample, TaskInfo
from cvxrl.policy.identity import count_parameters, hash_weights
from cvxrl.policy.model import Policy
from cvxrl.recipe.digest import digest
from cvxrl.recipe.schema import Recipe
from cvxrl.recipe.task import TaskSpec
from cvxrl.rollout.beside import beside
from cvxrl.rollout.generator import Episode, Generator, Sampling
from cvxrl.rollout.randomness import StreamKey
from cvxrl.runs.provenance import Provenance, collect_provenance
from cvxrl.tasks import Example, Grader
from cvxrl.tasks.base import digest as digest_of

Asked = tuple[int, int]  # question, sample
_NO_DEVICE = torch.device("cpu")  # a grader computes nothing on an accelerator


@dataclass(frozen=True)
class _Sampled:
    """Completions that have not been graded yet."""

    asked: Sequence[Asked]
    episodes: Sequence[Episode]


@dataclass
class Evaluator:
    """A policy in front of its questions.

    Completion s of question q draws from the stream (seed, "evaluation", q, s): neither batches, nor an interruption,
    nor what else is asked changes it.

    Attributes:
        policy: who answers.
        generator: makes its completions.
        grader: the task's grader.
        task: says how prompts are put and where a reply's answer is.
        examples: the questions.
        prompts: the same as token ids.
        sampling: how they are asked.
        seed: of sampling.
        rows: completions decoded at a time; None takes what fits into memory. Halved where memory runs out.
        spelt: completions of which the tokens are kept, with their log-probabilities.
    """

    policy: Policy
    generator: Generator
    grader: Grader
    task: TaskSpec
    examples: Sequence[Example]
    prompts: Sequence[list[int]]
    sampling: Sampling
    seed: int
    rows: int | None = None
    spelt: Container[Asked] = field(default_factory=frozenset)

    def ask(
        self, asked: Sequence[Asked], note: Callable[[str], None], until: Callable[[], bool] = lambda: False
    ) -> Iterator[list[Sample]]:
        """Sample and grade, batch by batch, in the order of ``asked``; one is graded while the next is sampled.

        A grader that is bound to its thread grades in turn. Where the sampling ends early, what was sampled is graded
        and given out first.

        Args:
            asked: (question, sample) of every completion wanted; those of a question adjacent.
            note: told where memory runs out.
            until: asked before every batch whether to sample no more.

        Yields:
            After every batch that was sampled, what was graded meanwhile, at first nothing; then the last.

        Raises:
            UserError: not even one completion fits into memory.
        """
        if self.rows is None:
            longest = max(map(len, self.prompts))
            self.rows = rows_that_fit(self.policy, longest, self.sampling.max_new_tokens)
        began = time.perf_counter()
        sampled = self._batches(asked, self.rows, note, until)
        for graded in _overlapped(self._grade, sampled) if self.grader.any_thread else map(self._grade, sampled):
            yield _timed(graded, began)
            if graded:
                began = time.perf_counter()

    def _batches(
        self, asked: Sequence[Asked], rows: int, note: Callable[[str], None], until: Callable[[], bool]
    ) -> Iterator[_Sampled]:
        start = 0
        while start < len(asked) and not until():
            sampled = self._sample(asked[start : start + rows])
            if sampled is None:
                self.rows = rows = _fewer(rows)
                note(f"out of memory; going on with {rows} completions at a time")
                continue
            start += len(sampled.episodes)
            yield sampled

    def _sample(self, asked: Sequence[Asked]) -> _Sampled | None:
        """Completions, or None where memory ran out."""
        try:
            return _Sampled(asked, self._generate(asked))
        except torch.OutOfMemoryError:  # not handled here: it holds on to the memory that is to be freed
            return None

    def _grade(self, sampled: _Sampled) -> list[Sample]:
        """Completions with their verdicts, their times not yet known."""
        examples = [self.examples[q] for q, _ in sampled.asked]
        parts = self.task, self.policy, self.grader, sampled.asked, examples, sampled.episodes, self.spelt
        return judge(*parts)

    def _generate(self, batch: Sequence[Asked]) -> list[Episode]:
        questions = [(q, [s for _, s in same]) for q, same in groupby(batch, key=itemgetter(0))]
        keys = [[StreamKey(self.seed, "evaluation", (q, s)) for s in samples] for q, samples in questions]
        return self.generator.generate([self.prompts[q] for q, _ in questions], keys, self.sampling)


def _overlapped(grade: Callable[[_Sampled], list[Sample]], batches: Iterator[_Sampled]) -> Iterator[list[Sample]]:
    """As `map`, one batch graded in a second thread while the next is sampled: one behind, at first with nothing.

    An error of the sampling is raised when the batch before is graded and given out. Ctrl-C, which nobody waits for,
    ends the grading too; what is graded by then is given out first all the same.
    """
    waiting: list[_Sampled] = []  # one batch, or before the first none
    while True:
        graded: list[Sample] = []
        following: list[_Sampled] = []
        lost: BaseException | None = None
        try:
            with beside(partial(_extend, graded, grade, waiting), _NO_DEVICE):
                try:
                    following = list(islice(batches, 1))
                except Exception as error:
                    lost = error
        except KeyboardInterrupt as error:
            lost = error
        yield graded
        if lost is not None:
            raise lost
        if not following:
            return
        waiting = following


def _extend(graded: list[Sample], grade: Callable[[_Sampled], list[Sample]], batches: Iterable[_Sampled]) -> None:
    for batch in batches:
        graded += grade(batch)


def group(samples: Sequence[Sample]) -> list[QuestionRecord]:
    """Verdicts by question, completions in order."""
    by_question: dict[int, list[Sample]] = {}
    for sample in sorted(samples, key=lambda s: (s.question, s.sample)):
        by_question.setdefault(sample.question, []).append(sample)
    return [
        QuestionRecord(
            id=each[0].id,
            answer=each[0].answer,
            correct=[int(s.correct) for s in each],
            strict=[int(s.strict) for s in each],
            truncated=[int(s.truncated) for s in each],
            error=[s.error for s in each],
            extracted=[s.extracted for s in each],
            tokens=[s.tokens for s in each],
        )
        for each in by_question.values()
    ]


def describe_policy(policy: Policy, path: str, loaded: str, recipe: Recipe | None) -> CheckpointInfo:
    """Which policy answers; takes the time of a pass over its weights.

    Args:
        policy: as it answers.
        path: what the user named.
        loaded: what was loaded.
        recipe: of the run that it belongs to, if any.
    """
    return CheckpointInfo(
        path=path,
        policy=loaded,
        dtype=str(policy.model.dtype).removeprefix("torch."),
        parameters=count_parameters(policy.model),
        sha256=hash_weights(policy.model),
        recipe=digest(recipe) if recipe else None,
        seed=recipe.seed if recipe else None,
    )


def describe_task(name: str, version: int | None, spec: TaskSpec, examples: Sequence[Example]) -> TaskInfo:
    """What is asked."""
    return TaskInfo(
        name=name,
        version=version,
        digest=digest_of(spec.model_dump_json(exclude=spec.not_in_digests)),
        fingerprint=digest_of(*(text for e in examples for text in (e.id, e.prompt, e.answer))),
        unique=len({e.prompt for e in examples}),
        spec=spec,
    )


def provenance_of(policy: Policy) -> Provenance:
    """Code, versions and the machine that the policy runs on."""
    device = policy.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    # The number of threads decides how sums are split, and with it their last bits.
    return collect_provenance(name, torch.get_num_threads())


def _timed(samples: Sequence[Sample], began: float) -> list[Sample]:
    """The same, each with its share of the time since then."""
    seconds = (time.perf_counter() - began) / max(1, len(samples))
    return [sample.model_copy(update={"seconds": seconds}) for sample in samples]


def _fewer(rows: int) -> int:
    """Half as many rows, after an allocation failed."""
    if rows == 1:
        remedy = "lower it, or load the policy in bfloat16"
        raise UserError(Problem("out of memory", "rollout.max_new_tokens", remedy=remedy))
    torch.cuda.empty_cache()
    return rows // 2
