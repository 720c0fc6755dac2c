"""The recipe: every number that can change a result, in one frozen tree, and what its sections can disagree about."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeInt, model_validator

from cvxrl.recipe.advantage import AdvantageSpec, DenseAdvantage, GroupAdvantage
from cvxrl.recipe.base import ADDED, AMENDABLE, NEUTRAL, RunName, Section
from cvxrl.recipe.evaluation import EvalSpec
from cvxrl.recipe.lco import LcoKldSpec, LcoSpec
from cvxrl.recipe.mismatch import CorrectMismatch, StopMismatch
from cvxrl.recipe.model import ModelSpec
from cvxrl.recipe.monitoring import CheckpointSpec, GuardsSpec, LoggingSpec
from cvxrl.recipe.objective import CallableObjective, GrpoSpec, ObjectiveSpec, RegularizerSpec
from cvxrl.recipe.placement import PlacementSpec
from cvxrl.recipe.reading import AUTHORS_CODE, notes
from cvxrl.recipe.step import FixedStep, StepSpec, TrustRegionStep, unsearchable
from cvxrl.recipe.task import DatasetSource, TaskSpec
from cvxrl.recipe.training import AdamwSpec, OptimSpec, RolloutSpec, TrainSpec

# All text that language models are trained on is some 10^11 such sequences.
_MOST_SEQUENCES = 10**12


class Recipe(Section):
    """One experiment. `advantage`, `objective` and `reduction` are independent of each other."""

    name: RunName = Field(description="Name of the run directory under the output folder.")
    seed: NonNegativeInt = Field(0, description="Seed of data order, sampling, minibatches and initial weights.")
    reading: Literal["paper", "authors-code"] = Field(
        "paper",
        description="`authors-code` sets the fields in which the authors' public code departs from the paper (rewards "
        "+1 / -1 as advantages, negatives at 100 beta, top-5 logits or a moving target; with dense advantages their "
        "verifier's candidates and one beta; Adam without clipping, decay or schedule, its state dropped at every "
        "rollout) above what the recipe extends and below what it sets itself; `--dry-run` says where a recipe departs "
        "from it (docs/method.md, section 6).",
    )
    model: ModelSpec = Field(description="The policy.")
    task: TaskSpec = Field(description="Prompts and their verifier.")
    rollout: RolloutSpec = Field(RolloutSpec(), description="Sampling.")
    advantage: AdvantageSpec = Field(GroupAdvantage(), description="How rewards become advantages.")
    objective: ObjectiveSpec = Field(GrpoSpec(), description="The per-token loss.")
    reduction: Literal["token-mean", "sequence-mean", "constant"] = Field(
        "token-mean",
        description="How token losses become one number: over all tokens of the optimizer step; per sequence, then "
        "over sequences; or divided by sequences x max_new_tokens (Dr. GRPO).",
    )
    regularizer: RegularizerSpec = Field(RegularizerSpec(), description="Terms added to the token loss.")
    optim: OptimSpec = Field(AdamwSpec(), description="Optimizer.")
    step: Annotated[StepSpec, ADDED] = Field(
        FixedStep(), description="How much of each optimizer step is taken (docs/steps.md)."
    )
    train: TrainSpec = Field(TrainSpec(), description="Training loop.")
    eval: EvalSpec = Field(EvalSpec(), description="Held-out evaluation.")
    checkpoint: Annotated[CheckpointSpec, NEUTRAL] = Field(CheckpointSpec(), description="Checkpoints.")
    guards: Annotated[GuardsSpec, AMENDABLE] = Field(GuardsSpec(), description="Rules that warn or stop.")
    logging: LoggingSpec = Field(LoggingSpec(), description="Logging.")
    placement: Annotated[PlacementSpec, NEUTRAL, ADDED] = Field(
        PlacementSpec(), description="Processes that train together (docs/scale.md)."
    )

    @property
    def data(self) -> Literal["rollouts", "demonstrations", "preferences"]:
        """What the objective learns from."""
        needs = self.objective.needs
        return (
            "demonstrations" if "demonstrations" in needs else "preferences" if "preferences" in needs else "rollouts"
        )

    @property
    def group_size(self) -> int:
        """Sequences per prompt: samples of a rollout, one demonstration, or a chosen and a rejected response."""
        return {"rollouts": self.rollout.samples, "demonstrations": 1, "preferences": 2}[self.data]

    @property
    def sequences_per_step(self) -> int:
        """Sequences that one step trains on."""
        return self.rollout.prompts * self.group_size

    @property
    def coupled_sequences(self) -> int:
        """Sequences that must share a forward pass: those of a prompt where the objective compares them, else one."""
        return self.group_size if self.objective.coupling == "group" else 1

    @property
    def equation(self) -> str:
        """Loss per token, regularisation included."""
        loss = self.objective.equation
        if isinstance(self.objective, LcoSpec) and isinstance(self.advantage, DenseAdvantage):
            loss = self.objective.dense_equation
        return loss + self.regularizer.equation

    @property
    def notes(self) -> list[str]:
        """What is worth knowing before it runs, a sentence or two each."""
        return notes(self)

    @model_validator(mode="after")
    def _sections_agree(self) -> Self:
        problems = list(_conflicts(self))
        if problems:
            raise ValueError("\n".join(problems))
        return self


def optimizer_steps(train: TrainSpec) -> int:
    """Optimizer steps of the whole run."""
    return train.steps * train.inner_epochs * train.minibatches


def learning_rate(spec: OptimSpec, index: int, total: int) -> float:
    """Learning rate of optimizer step ``index`` (from 0) of ``total``."""
    if index < spec.warmup_steps:
        return spec.lr * (index + 1) / spec.warmup_steps
    progress = (index - spec.warmup_steps) / max(1, total - 1 - spec.warmup_steps)
    match spec.schedule:
        case "constant":
            share = 1.0
        case "linear":
            share = 1.0 - progress
        case "cosine":
            share = 0.5 * (1.0 + math.cos(math.pi * progress))
    return spec.lr * (spec.final_lr_fraction + (1.0 - spec.final_lr_fraction) * share)


def _conflicts(recipe: Recipe) -> Iterator[str]:
    """Lines of the form `key: what is wrong; remedy`."""
    if recipe.data == "rollouts":
        yield from _sampling(recipe)
        yield from _credit(recipe)
    else:
        if recipe.regularizer.kl_coefficient:
            yield "regularizer.kl_coefficient: the estimate needs tokens that the policy sampled; set it to 0"
        if recipe.rollout.lag:
            yield f"rollout.lag: `{recipe.objective.kind}` learns from {recipe.data}, not from rollouts; leave it out"
        if not isinstance(recipe.rollout.mismatch, StopMismatch):
            yield f"rollout.mismatch: `{recipe.objective.kind}` learns from {recipe.data}, not samples; leave it out"
        if recipe.rollout.ahead:
            yield f"rollout.ahead: `{recipe.objective.kind}` learns from {recipe.data}, not from rollouts; leave it out"
        if recipe.advantage != Recipe.model_fields["advantage"].default:
            yield f"advantage: `{recipe.objective.kind}` learns from {recipe.data}, not from rewards; leave it out"
    yield from _ignored(recipe)
    yield from _unused_rewards(recipe)
    yield from _data(recipe)
    yield from _steps(recipe)
    yield from _memory(recipe)
    why = unsearchable(recipe.step, recipe.objective, recipe.regularizer)
    if why is not None:
        yield (
            f"step.kind: a line search needs a loss with a minimum, and {why}; set step.kind to trust-region or fixed, "
            "or step.allow_unbounded to true for a control"
        )
    dropped = recipe.model.dropout or (recipe.model.lora is not None and recipe.model.lora.dropout > 0)
    if isinstance(recipe.step, TrustRegionStep) and recipe.step.sequences is not None and dropped:
        yield (
            "step.sequences: with dropout, a pass over some sequences drops others than the pass over all that it is "
            "compared with; leave it out, or set model.dropout to false and model.lora.dropout to 0"
        )
    if recipe.reading == AUTHORS_CODE and not isinstance(recipe.objective, LcoSpec):
        yield f"reading: the authors' code has no `{recipe.objective.kind}`; take an lco objective, or reading: paper"


def _sampling(recipe: Recipe) -> Iterator[str]:
    rollout, objective = recipe.rollout, recipe.objective
    if rollout.ahead and not rollout.lag:
        yield (
            "rollout.ahead: without a lag each rollout needs the weights of the updates before it; set rollout.lag to "
            "1 or more, or rollout.ahead to false"
        )
    mismatch = rollout.mismatch
    if isinstance(mismatch, CorrectMismatch) and mismatch.level == "token" and objective.coupling != "token":
        yield (
            f"rollout.mismatch.level: the loss of `{objective.kind}` is one of whole responses, which have no weight "
            "per token; set level to sequence"
        )
    if recipe.advantage.needs_group and rollout.samples < 2:
        yield (
            f"advantage.kind: `{recipe.advantage.kind}` compares the samples of a prompt, but rollout.samples is 1; "
            "set rollout.samples to 2 or more, or advantage.kind to reward"
        )
    if recipe.advantage.kind == "batch" and recipe.sequences_per_step < 2:
        yield (
            "advantage.kind: `batch` divides by the standard deviation over a step, which one completion does not "
            "have; set rollout.prompts or rollout.samples to 2 or more"
        )
    if (objective.coupling == "group" or "group_advantages" in objective.needs) and rollout.samples < 2:
        yield (
            f"objective.kind: `{objective.kind}` compares the samples of a prompt, but rollout.samples is 1; set "
            "rollout.samples to 2 or more"
        )
    if rollout.top_p != 1.0:
        yield (
            f"rollout.top_p: {rollout.top_p} truncates the sampling distribution, so the ratio to the policy would "
            "not be 1 on-policy; set rollout.top_p to 1.0 (eval.top_p may be lower)"
        )


def _credit(recipe: Recipe) -> Iterator[str]:
    """Sequence-level objectives need one advantage per sequence."""
    objective = recipe.objective
    per_sequence = objective.coupling != "token" or "group_advantages" in objective.needs
    if per_sequence and recipe.advantage.credit != "sequence":
        yield (
            f"advantage.kind: `{recipe.advantage.kind}` gives every token its own advantage, but the objective needs "
            "one per response; choose group, group-centered, rloo, batch or reward (or objective.shift: none)"
        )


def _ignored(recipe: Recipe) -> Iterator[str]:
    """Fields of an objective that the others would leave without any effect."""
    objective = recipe.objective
    if not isinstance(objective, LcoSpec):
        return
    if objective.tilt != "linear" and objective.linear_margin != LcoSpec.model_fields["linear_margin"].default:
        yield "objective.linear_margin: an exponential tilt has none; leave it out, or set objective.tilt to linear"
    if recipe.data != "rollouts" or not isinstance(recipe.advantage, DenseAdvantage):
        return
    dense = f"`{recipe.advantage.kind}` advantages"
    if objective.tilt != "exponential":
        yield f"objective.tilt: {dense} move every candidate's logit by A / beta; set objective.tilt to exponential"
    if isinstance(objective, LcoKldSpec) and objective.support.kind != "exact":
        yield (
            f"objective.support: with {dense} the target lives on their candidates, whose number is advantage.k; set "
            "objective.support to exact"
        )


def _unused_rewards(recipe: Recipe) -> Iterator[str]:
    """Noise on rewards that nothing is learned from."""
    if recipe.task.reward.noise.kind == "none":
        return
    if recipe.data != "rollouts":
        yield f"task.reward.noise: `{recipe.objective.kind}` learns from {recipe.data}, not from rewards; leave it out"
    elif isinstance(recipe.advantage, DenseAdvantage):
        yield f"task.reward.noise: `{recipe.advantage.kind}` learns from a verifier, not from rewards; leave it out"


def _data(recipe: Recipe) -> Iterator[str]:
    source = recipe.task.source
    if isinstance(source, DatasetSource) and source.answer_field is None:
        if recipe.data == "rollouts":
            yield "task.source.answer_field: rollouts are graded against an answer; name the field that holds it"
        if recipe.eval.every:
            yield "eval.every: without task.source.answer_field nothing can be graded; set eval.every to 0"


def _steps(recipe: Recipe) -> Iterator[str]:
    train = recipe.train
    total = recipe.sequences_per_step * train.steps * train.inner_epochs
    if total > _MOST_SEQUENCES:
        yield (
            f"train.steps: {train.steps} steps of {recipe.sequences_per_step} sequences, {train.inner_epochs} times "
            f"over, are more than the {_MOST_SEQUENCES:.0e} that any machine gets through; write smaller numbers"
        )
    count, what = recipe.sequences_per_step, "sequences"
    if recipe.objective.coupling == "group":
        count, what = recipe.rollout.prompts, "prompts (whose sequences stay together)"
    if count % train.minibatches:
        yield (f"train.minibatches: {train.minibatches} does not divide the {count} {what} of a step; choose a divisor")
    steps = train.steps * train.inner_epochs * train.minibatches
    if recipe.optim.warmup_steps >= steps:
        yield (
            f"optim.warmup_steps: {recipe.optim.warmup_steps} is not below the number of optimizer steps "
            f"({steps}); shorten the warm-up"
        )


def _memory(recipe: Recipe) -> Iterator[str]:
    """Ways to spend less memory that contradict each other, or that would do nothing."""
    train = recipe.train
    if train.micro_batch is not None and train.micro_batch_tokens is not None:
        yield "train.micro_batch_tokens: train.micro_batch is given too; keep one of them and set the other to null"
    if train.micro_batch_tokens is not None and recipe.data == "rollouts":
        together = recipe.coupled_sequences
        least = together * (1 + recipe.rollout.max_new_tokens)
        if train.micro_batch_tokens < least:
            what = f"{together} responses of a prompt, which stay together," if together > 1 else "one response"
            yield (
                f"train.micro_batch_tokens: {train.micro_batch_tokens} is less than {what} and the prompt may need; "
                f"set it to more than {least}, or lower rollout.max_new_tokens"
            )
    if train.chunk_tokens is not None and train.loss != "chunked":
        yield "train.chunk_tokens: train.loss: full-logits has no chunks; set train.loss to chunked"
    if train.loss == "chunked" and recipe.data == "rollouts" and isinstance(recipe.advantage, DenseAdvantage):
        yield (
            f"train.loss: advantage `{recipe.advantage.kind}` picks its candidate tokens from all logits; set "
            "train.loss to full-logits"
        )
    if train.loss == "chunked" and isinstance(recipe.objective, CallableObjective):
        yield "train.loss: objective `callable` is a function of all logits; set train.loss to full-logits"
    if recipe.optim.master_weights and recipe.model.dtype != "bfloat16":
        yield (
            f"optim.master_weights: the parameters are {recipe.model.dtype} and need no copies; set model.dtype to "
            "bfloat16"
        )
