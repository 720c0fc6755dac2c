"""What the sections of a recipe disagree about: each is fine by itself, and together they contradict or do nothing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from cvxrl.recipe.advantage import DenseAdvantage
from cvxrl.recipe.lco import LcoKldSpec, LcoSpec
from cvxrl.recipe.mismatch import CorrectMismatch, StopMismatch
from cvxrl.recipe.objective import CallableObjective
from cvxrl.recipe.reading import AUTHORS_CODE
from cvxrl.recipe.reward import CallableReward
from cvxrl.recipe.step import FixedStep, TrustRegionStep, unsearchable
from cvxrl.recipe.task import DatasetSource

if TYPE_CHECKING:
    from cvxrl.recipe.schema import Recipe

# All text that language models are trained on is some 10^11 such sequences.
_MOST_SEQUENCES = 10**12


def conflicts(recipe: Recipe) -> Iterator[str]:
    """What its sections disagree about, in lines of the form `key: what is wrong; remedy`."""
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
        if recipe.rollout.old_logprobs == "sampler":
            yield f"rollout.old_logprobs: `{recipe.objective.kind}` learns from {recipe.data}, no samples; leave it out"
        if recipe.rollout.ahead:
            yield f"rollout.ahead: `{recipe.objective.kind}` learns from {recipe.data}, not from rollouts; leave it out"
        if recipe.advantage != type(recipe).model_fields["advantage"].default:
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
    if not recipe.logging.idle_groups and not isinstance(recipe.step, FixedStep):
        yield (
            f"logging.idle_groups: step.kind: {recipe.step.kind} compares what the whole step does before and after "
            "it; leave it out"
        )
    yield from _guards(recipe)
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
    if rollout.ahead and isinstance(recipe.task.reward, CallableReward) and not recipe.task.reward.isolated:
        yield (
            "rollout.ahead: replies would be graded in a second thread, and with task.reward.isolated: false the "
            "function may need the one that imported it; set rollout.ahead to false, or task.reward.isolated to true"
        )
    yield from _old_logprobs(recipe)
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


def _old_logprobs(recipe: Recipe) -> Iterator[str]:
    """Where the sampler's log-probabilities cannot stand for the trainer's."""
    rollout, objective = recipe.rollout, recipe.objective
    if rollout.old_logprobs != "sampler":
        return
    if "old_logits" in objective.needs:
        yield (
            f"rollout.old_logprobs: the target of `{objective.kind}` is built on all probabilities of the policy that "
            "sampled, and a sampler tells those of the sampled tokens; set it to trainer"
        )
    elif "old_logprobs" not in objective.needs:
        yield f"rollout.old_logprobs: the loss of `{objective.kind}` has no ratio to them; leave it out"
    elif recipe.train.inner_epochs * recipe.train.minibatches == 1 and not rollout.lag:
        yield (
            "rollout.old_logprobs: with one optimizer step per rollout there is no pass to leave out; leave it out, or "
            "set train.minibatches or train.inner_epochs to 2 or more"
        )
    if not isinstance(rollout.mismatch, StopMismatch):
        yield (
            f"rollout.mismatch: `{rollout.mismatch.kind}` compares with the trainer's own log-probabilities, which "
            "rollout.old_logprobs: sampler does without; set that to trainer, or leave mismatch out"
        )


def _guards(recipe: Recipe) -> Iterator[str]:
    """Guards of what is not logged, or not where it matters."""
    if recipe.guards.entropy is not None and not recipe.logging.idle_groups:
        yield (
            "logging.idle_groups: guards.entropy reads the entropy of all groups, and a policy that collapses has "
            "none but idle ones; set it to true, or leave the guard out"
        )
    if recipe.guards.kl is not None and not recipe.logging.kl_sequences:
        yield "guards.kl: reads what logging.kl_sequences: 0 leaves out; set that to 1 or more, or leave the guard out"


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
