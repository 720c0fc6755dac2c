"""A run's own evaluation: its held-out questions, asked again and again while it trains."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from cvxrl.errors import Problem, UserError
from cvxrl.evaluation.evaluator import Evaluator, describe_policy, describe_task, group
from cvxrl.evaluation.record import EvalRecord, Sample, SamplingInfo
from cvxrl.evaluation.source import HELD_OUT
from cvxrl.evaluation.summary import summarize
from cvxrl.evaluation.together import Alone, Askers, ask_together
from cvxrl.policy.model import Policy
from cvxrl.recipe.schema import Recipe
from cvxrl.rollout.generator import Generator, Sampling
from cvxrl.rollout.prompts import encode_examples, end_of_reply
from cvxrl.runs.checkpoint import checkpoint_name
from cvxrl.tasks import Grader, Task


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation found.

    Attributes:
        record: as it is stored.
        samples: every completion, question by question.
    """

    record: EvalRecord
    samples: list[Sample]

    def metrics(self) -> dict[str, float]:
        """Keys of metrics.jsonl."""
        results = self.record.results
        error = results.accuracy.stderr
        shares = {"eval/truncated": results.truncated, "eval/grader_errors": results.grader_errors}
        return {
            "eval/accuracy": results.accuracy.value,
            "eval/stderr": math.nan if error is None else error,
            **{key: share for key, share in shares.items() if share is not None},
        }


@dataclass(frozen=True)
class HeldOut:
    """The held-out questions of a run in front of its policy.

    Attributes:
        recipe: the run's.
        evaluator: asks them; draws nothing from any generator of the training.
        askers: the processes among which the questions are split.
    """

    recipe: Recipe
    evaluator: Evaluator
    askers: Askers = field(default_factory=Alone)

    @property
    def size(self) -> str:
        """How many questions are asked, and how often each."""
        return f"{len(self.evaluator.examples)} x {self.recipe.eval.samples} samples"

    @property
    def fewer(self) -> str:
        """What to say where fewer questions, or fewer different ones, are there than asked for; else nothing."""
        asked, found = self.recipe.eval.prompts, len(self.evaluator.examples)
        unique = len({example.prompt for example in self.evaluator.examples})
        if found < asked:
            return f"eval.prompts is {asked}, the task holds {found} out: all {found} are asked"
        return f"of the {found} held-out questions only {unique} are different" if unique < found else ""

    @classmethod
    def prepare(
        cls, recipe: Recipe, policy: Policy, generator: Generator, task: Task, grader: Grader, askers: Askers
    ) -> HeldOut:
        """Encode the questions.

        Raises:
            UserError: the task has no held-out example, or a prompt does not fit the policy's context.
        """
        spec, rollout = recipe.eval, recipe.rollout
        size = task.held_out_size
        count = spec.prompts if size is None else min(spec.prompts, size)
        if count == 0:
            remedy = "set eval.every to 0, or hold some out"
            raise UserError(Problem("the task has no held-out examples", "eval.every", remedy=remedy))
        examples = [task.held_out(i) for i in range(count)]
        prompts = encode_examples(recipe.task, policy, examples, rollout.max_new_tokens)
        how = Sampling(rollout.max_new_tokens, spec.temperature, spec.top_p, (end_of_reply(recipe.task, policy)[-1],))
        evaluator = Evaluator(policy, generator, grader, recipe.task, examples, prompts, how, spec.seed, rollout.batch)
        evaluator.spelt = {(i // spec.samples, i % spec.samples) for i in range(recipe.logging.samples)}  # those stored
        return cls(recipe, evaluator, askers)

    def evaluate(self, step: int) -> Evaluation:
        """Ask the policy as it is after ``step``.

        Raises:
            UserError: not even one completion fits into memory.
        """
        evaluator, spec = self.evaluator, self.recipe.eval
        asked = [(q, s) for q in range(len(evaluator.examples)) for s in range(spec.samples)]
        name = f"checkpoints/{checkpoint_name(step)}"
        with ThreadPoolExecutor(1) as beside:  # hashing large weights takes seconds, in which a GPU can sample
            checkpoint = beside.submit(describe_policy, evaluator.policy, name, name, self.recipe)
            batches = ask_together(self.askers, evaluator, asked, note=lambda _: None)
            every = (sample for batch in batches for sample in batch)
            samples = sorted(every, key=lambda sample: (sample.question, sample.sample))
        questions = group(samples)
        record = EvalRecord(
            checkpoint=checkpoint.result(),
            task=describe_task(HELD_OUT, None, evaluator.task, evaluator.examples),
            sampling=SamplingInfo(
                questions=len(questions),
                samples=spec.samples,
                temperature=spec.temperature,
                top_p=spec.top_p,
                max_new_tokens=evaluator.sampling.max_new_tokens,
                seed=spec.seed,
            ),
            step=step,
            rows=evaluator.rows,
            finished=None,
            seconds=None,
            provenance=None,
            results=summarize(questions, [1]),  # `cvxrl eval --from` computes other k when they are wanted
            questions=questions,
        )
        return Evaluation(record, samples)
