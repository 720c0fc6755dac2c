"""An evaluation by the command line: every batch is kept as it is graded; ending early loses none that is sampled."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from datetime import UTC, datetime
from threading import Event

from cvxrl.errors import Mistakes, Problem, UserError
from cvxrl.evaluation.card import Card
from cvxrl.evaluation.evaluator import Asked, Evaluator, describe_policy, describe_task, group, provenance_of
from cvxrl.evaluation.page import evaluation_page, spelt
from cvxrl.evaluation.plan import Plan
from cvxrl.evaluation.progress import Progress
from cvxrl.evaluation.record import EvalRecord, Sample, SamplingInfo, Settings
from cvxrl.evaluation.summary import summarize
from cvxrl.evaluation.target import renamed
from cvxrl.evaluation.together import Alone, Askers, ask_together
from cvxrl.policy.load import load_policy, pick_device
from cvxrl.policy.model import Policy
from cvxrl.policy.usable import require_finite_weights
from cvxrl.recipe.engine import VllmSpec
from cvxrl.recipe.training import TrainSpec
from cvxrl.rollout.generator import Generator, Sampling
from cvxrl.rollout.local_generator import LocalGenerator
from cvxrl.rollout.prompts import encode_examples, end_of_reply
from cvxrl.runs.directory import RunDir
from cvxrl.runs.files import write_json, write_text
from cvxrl.tasks import check_golds, load_grader, load_questions

# Keys of recipes, as this command's options.
_OPTIONS = {
    "model.path": "--ckpt",
    "model.trust_remote_code": "--trust-remote-code",
    "task.source.path": "--data",
    "train.device": "--device",
    "rollout.max_new_tokens": "--max-new-tokens",
    "task.template": "--template",
    "rollout.engine": "--engine",
}


@dataclass(frozen=True)
class Exam:
    """An evaluation that is ready to run.

    Attributes:
        plan: what was asked for.
        evaluator: the policy in front of its questions.
        settings: what decides the numbers.
        askers: the processes among which the questions are split; the main one writes.
    """

    plan: Plan
    evaluator: Evaluator
    settings: Settings
    askers: Askers = field(default_factory=Alone)

    @classmethod
    def prepare(cls, plan: Plan, device: str, askers: Askers | None = None) -> Exam:
        """Load questions, grader and policy.

        Args:
            plan: what was asked for.
            device: where to run.
            askers: the processes among which the questions are split; None is this one alone.

        Raises:
            UserError: one of them cannot be had, or a question does not fit the policy.
        """
        spec, asked, mistakes = plan.task.spec, plan.sampling, Mistakes()
        examples = mistakes.attempt(load_questions, spec, asked.questions, whole=plan.task.whole, exactly=plan.exactly)
        grader = mistakes.attempt(load_grader, spec)
        if examples is not None and grader is not None:
            mistakes.attempt(check_golds, spec, grader, examples)
        policy = mistakes.attempt(_load, plan, device)
        prompts = None
        if policy is not None and examples is not None:
            prompts = mistakes.attempt(encode_examples, spec, policy, examples, asked.max_new_tokens)
        if mistakes.problems or policy is None or examples is None or grader is None or prompts is None:
            raise renamed(UserError(*mistakes.problems), _OPTIONS)
        how = Sampling(asked.max_new_tokens, asked.temperature, asked.top_p, (end_of_reply(spec, policy)[-1],))
        generator = _generator(plan, policy, askers or Alone())
        evaluator = Evaluator(policy, generator, grader, spec, examples, prompts, how, plan.seed, plan.rows)
        evaluator.spelt = spelt(len(examples), asked.samples)
        settings = Settings(
            checkpoint=describe_policy(policy, plan.target.given, plan.target.path, plan.target.recipe),
            task=describe_task(plan.task.name, plan.task.version, spec, examples),
            sampling=SamplingInfo(**{**asked.model_dump(), "questions": len(examples), "seed": plan.seed}),
        )
        return cls(plan, evaluator, settings, askers or Alone())

    def close(self) -> None:
        """End what was started for grading."""
        self.evaluator.grader.close()

    def run(self, progress: Progress, stop: Callable[[], bool]) -> EvalRecord | None:
        """Ask what is still to ask and write EVAL.json.

        Args:
            progress: told after every batch.
            stop: asked after every batch; what is sampled by then is graded and kept.

        Returns:
            The record, or None if stopped; what has been asked is kept.

        Raises:
            UserError: the folder is in use, belongs to another evaluation, or cannot be written; or memory runs out.
        """
        folder, sampling, askers = self.plan.folder, self.settings.sampling, self.askers
        card = self._card()
        with folder.lock() if askers.is_main else nullcontext(True) as held:
            if not held:
                progress.note("this file system has no locks: take care that no second process evaluates here")
            done = askers.gather(self._enter() if askers.is_main else None)[0]
            asked = _missing(sampling, done)
            self.evaluator.grader.attend(progress.note, folder.path / "grader.log" if askers.is_main else None)
            progress.start(self.plan.task.name, sampling.questions * sampling.samples, len(done))
            try:
                stopping = Event()
                for fresh in ask_together(askers, self.evaluator, asked, progress.note, stopping.is_set):
                    if fresh:
                        if askers.is_main:
                            folder.append(fresh)
                        done += fresh
                        progress.advance(len(fresh), sum(s.correct for s in fresh))
                    if any(askers.gather(stop())):
                        stopping.set()
            except UserError as error:
                raise renamed(error, _OPTIONS) from None
            if len(done) < sampling.questions * sampling.samples:
                return None
            record = self._record(done)
            if askers.is_main:
                write_json(folder.record, record.model_dump(mode="json"))
                write_text(folder.page, evaluation_page(record, done))
                if card is not None:
                    card.refresh()
            return record

    def _card(self) -> Card | None:
        """The card of the policy, where it is the final one of a run."""
        target = self.plan.target
        if target.run is None or target.recipe is None or target.step is not None or not self.askers.is_main:
            return None
        return Card(RunDir(target.run), target.recipe)

    def _enter(self) -> list[Sample]:
        """What has been asked before."""
        done = self.plan.folder.enter(self.settings, self.plan.entry)
        self._check_same_questions(done)
        return done

    def _check_same_questions(self, done: Sequence[Sample]) -> None:
        examples = self.evaluator.examples
        for sample in done:
            known = sample.question < len(examples) and sample.sample < self.settings.sampling.samples
            if not known or examples[sample.question].id != sample.id:
                where = str(self.plan.folder.samples)
                raise UserError(
                    Problem("holds answers to other questions", file=where, remedy="--overwrite starts again")
                )

    def _record(self, samples: Sequence[Sample]) -> EvalRecord:
        questions = group(samples)
        return EvalRecord(
            **dict(self.settings),
            rows=self.evaluator.rows,
            engine="vllm" if isinstance(self.plan.engine, VllmSpec) else self.plan.engine,
            finished=datetime.now(UTC).isoformat(timespec="seconds"),
            seconds=sum(s.seconds for s in samples),
            provenance=provenance_of(self.evaluator.policy),
            results=summarize(questions, self.plan.ks),
            questions=questions,
        )


def _load(plan: Plan, device: str) -> Policy:
    """The policy as it was when it was saved; an adapter of a run stays beside its frozen layers, as in training."""
    recipe = plan.target.recipe
    policy = load_policy(plan.model, pick_device(device), recipe.seed if recipe else 0)
    if plan.model.lora is not None:
        policy.load_trained(plan.target.directory)
        require_finite_weights(policy.model, plan.target.path)
    return policy


def _generator(plan: Plan, policy: Policy, askers: Askers) -> Generator:
    """What samples; a server has the policy's weights then.

    Raises:
        UserError: the server is not there, or does not fit.
    """
    if not isinstance(plan.engine, VllmSpec):
        return LocalGenerator(policy, plan.engine)
    from cvxrl.rollout.vllm.open import open_generator

    train = plan.target.recipe.train if plan.target.recipe else TrainSpec()
    bf16, tolerance = train.precision == "bf16", train.ratio_tolerance
    try:
        generator = open_generator(plan.engine, policy, askers, bf16=bf16, ratio_tolerance=tolerance)
        generator.sync(policy, 0)
    except UserError as error:
        raise renamed(error, _OPTIONS) from None
    return generator


def _missing(sampling: SamplingInfo, done: Sequence[Sample]) -> list[Asked]:
    made = {(s.question, s.sample) for s in done}
    every = ((q, s) for q in range(sampling.questions) for s in range(sampling.samples))
    return [asked for asked in every if asked not in made]
