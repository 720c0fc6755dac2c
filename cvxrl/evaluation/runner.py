"""Ask a policy every question, batch by batch, and keep every answer as it comes."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Protocol

import torch

from cvxrl.errors import Mistakes, Problem, UserError
from cvxrl.evaluation.answers import judge
from cvxrl.evaluation.folder import Sample
from cvxrl.evaluation.machine import provenance_of
from cvxrl.evaluation.memory import rows_that_fit
from cvxrl.evaluation.plan import Plan
from cvxrl.evaluation.record import CheckpointInfo, EvalRecord, QuestionRecord, SamplingInfo, Settings, TaskInfo
from cvxrl.evaluation.summary import summarize
from cvxrl.evaluation.target import renamed
from cvxrl.policy.load import load_policy, pick_device
from cvxrl.policy.model import Policy, hash_weights
from cvxrl.recipe.digest import digest
from cvxrl.rollout.generator import Sampling
from cvxrl.rollout.local_generator import LocalGenerator
from cvxrl.rollout.prompts import encode_examples
from cvxrl.rollout.randomness import StreamKey
from cvxrl.runs.files import write_json
from cvxrl.tasks import Example, Grader, load_grader, load_questions
from cvxrl.tasks.base import digest as digest_of

# Keys of recipes, as this command's options.
_OPTIONS = {
    "model.path": "--ckpt",
    "task.source.path": "--data",
    "train.device": "--device",
    "rollout.max_new_tokens": "--max-new-tokens",
    "task.template": "--template",
}
Pending = deque[tuple[int, list[int]]]


class Progress(Protocol):
    """Shows how far an evaluation has come."""

    def start(self, title: str, total: int, done: int) -> None:
        """``total`` completions are wanted, ``done`` of which an earlier session made."""

    def advance(self, completions: int, correct: int) -> None:
        """More completions are graded."""

    def note(self, text: str) -> None:
        """Something worth a line."""


@dataclass(frozen=True)
class Exam:
    """A policy in front of its questions.

    Attributes:
        plan: what was asked for.
        policy: who answers.
        grader: the task's grader.
        examples: the questions.
        prompts: the same as token ids.
        settings: what decides the numbers.
    """

    plan: Plan
    policy: Policy
    grader: Grader
    examples: list[Example]
    prompts: list[list[int]]
    settings: Settings

    @classmethod
    def prepare(cls, plan: Plan, device: str) -> Exam:
        """Load questions, grader and policy.

        Raises:
            UserError: one of them cannot be had, or a question does not fit the policy.
        """
        spec, mistakes = plan.task.spec, Mistakes()
        examples = mistakes.attempt(
            load_questions, spec, plan.sampling.questions, whole=plan.task.whole, exactly=plan.exactly
        )
        grader = mistakes.attempt(load_grader, spec)
        policy = mistakes.attempt(_load, plan, device)
        prompts = None
        if policy is not None and examples is not None:
            prompts = mistakes.attempt(encode_examples, spec, policy, examples, plan.sampling.max_new_tokens)
        if policy is None or examples is None or grader is None or prompts is None:
            raise renamed(UserError(*mistakes.problems), _OPTIONS)
        return cls(plan, policy, grader, examples, prompts, _settings(plan, policy, examples))

    def run(self, rows: int | None, progress: Progress, stop: Callable[[], bool]) -> EvalRecord | None:
        """Ask what is still to ask and write EVAL.json.

        Args:
            rows: completions decoded at a time; None takes what fits into memory. It changes no random number.
            progress: told after every batch.
            stop: asked after every batch.

        Returns:
            The record, or None if stopped; what has been asked is kept.
        """
        folder, sampling = self.plan.folder, self.settings.sampling
        with folder.lock() as held:
            if not held:
                progress.note("this file system has no locks: take care that no second process evaluates here")
            done = folder.enter(self.settings, self.plan.entry)
            self._check_same_questions(done)
            pending = _pending(sampling.questions, sampling.samples, done)
            progress.start(self.plan.task.name, sampling.questions * sampling.samples, len(done))
            rows = rows or rows_that_fit(self.policy, max(map(len, self.prompts)), sampling.max_new_tokens)
            while pending:
                batch = take(pending, rows)
                try:
                    fresh = self._ask(batch)
                except torch.OutOfMemoryError:
                    rows = self._fewer(rows)
                    pending.extendleft(reversed(batch))
                    progress.note(f"out of memory; going on with {rows} completions at a time")
                    continue
                folder.append(fresh)
                done += fresh
                progress.advance(len(fresh), sum(s.correct for s in fresh))
                if pending and stop():
                    return None
            record = self._record(done)
            write_json(folder.record, record.model_dump(mode="json"))
            return record

    def _ask(self, batch: Sequence[tuple[int, list[int]]]) -> list[Sample]:
        """Sample and grade; completion s of question q draws from the stream of (seed, q, s)."""
        start = time.perf_counter()
        wanted = self.settings.sampling
        each = [(q, s) for q, samples in batch for s in samples]
        keys = [[StreamKey(wanted.seed, "evaluation", (q, s)) for s in samples] for q, samples in batch]
        prompts = [self.prompts[q] for q, _ in batch]
        how = Sampling(wanted.max_new_tokens, wanted.temperature, wanted.top_p)
        episodes = LocalGenerator(self.policy).generate(prompts, keys, how)
        answers = judge(self.plan.task.spec, self.policy, self.grader, [self.examples[q] for q, _ in each], episodes)
        seconds = (time.perf_counter() - start) / len(each)
        return [
            Sample(question=q, sample=s, seconds=seconds, **asdict(answer))
            for (q, s), answer in zip(each, answers, strict=True)
        ]

    def _fewer(self, rows: int) -> int:
        """Half as many rows, after an allocation failed."""
        if rows == 1:
            raise UserError(Problem("out of memory", "--max-new-tokens", remedy="lower it, or set --dtype bfloat16"))
        torch.cuda.empty_cache()
        return rows // 2

    def _check_same_questions(self, done: Sequence[Sample]) -> None:
        for sample in done:
            known = sample.question < len(self.examples) and sample.sample < self.settings.sampling.samples
            if not known or self.examples[sample.question].id != sample.id:
                where = str(self.plan.folder.samples)
                raise UserError(
                    Problem("holds answers to other questions", file=where, remedy="--overwrite starts again")
                )

    def _record(self, samples: Sequence[Sample]) -> EvalRecord:
        questions = group(samples)
        return EvalRecord(
            **dict(self.settings),
            finished=datetime.now(UTC).isoformat(timespec="seconds"),
            seconds=sum(s.seconds for s in samples),
            provenance=provenance_of(self.policy),
            results=summarize(questions, self.plan.ks),
            questions=questions,
        )


def _load(plan: Plan, device: str) -> Policy:
    return load_policy(plan.model, pick_device(device))


def take(pending: Pending, rows: int) -> list[tuple[int, list[int]]]:
    """Remove the next batch: questions that miss equally many completions, or a part of one question's.

    Args:
        pending: (question, samples still missing), changed in place.
        rows: most completions.
    """
    question, samples = pending.popleft()
    if len(samples) > rows:
        pending.appendleft((question, samples[rows:]))
        return [(question, samples[:rows])]
    batch = [(question, samples)]
    while pending and len(pending[0][1]) == len(samples) and (len(batch) + 1) * len(samples) <= rows:
        batch.append(pending.popleft())
    return batch


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


def _pending(questions: int, samples: int, done: Sequence[Sample]) -> Pending:
    asked = {(s.question, s.sample) for s in done}
    missing = ((q, [s for s in range(samples) if (q, s) not in asked]) for q in range(questions))
    return deque((q, left) for q, left in missing if left)


def _settings(plan: Plan, policy: Policy, examples: Sequence[Example]) -> Settings:
    recipe, spec = plan.target.recipe, plan.task.spec
    return Settings(
        checkpoint=CheckpointInfo(
            path=plan.target.given,
            policy=plan.target.path,
            dtype=plan.model.dtype,
            parameters=sum(p.numel() for p in policy.model.parameters()),
            sha256=hash_weights(policy.model),
            recipe=digest(recipe) if recipe else None,
            seed=recipe.seed if recipe else None,
        ),
        task=TaskInfo(
            name=plan.task.name,
            version=plan.task.version,
            digest=digest_of(spec.model_dump_json()),
            fingerprint=digest_of(*(text for e in examples for text in (e.id, e.prompt, e.answer))),
            spec=spec,
        ),
        sampling=SamplingInfo(**{**plan.sampling.model_dump(), "questions": len(examples), "seed": plan.seed}),
    )
