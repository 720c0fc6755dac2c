"""What a recipe is going to do, in words and numbers, before anything heavy is loaded (no torch here)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from cvxrl.engine.memory import Footprint, footprint
from cvxrl.engine.placed import Placed, planned_ranks
from cvxrl.engine.sizes import Shape, shape_of
from cvxrl.engine.workload import Rates, Seconds, seconds
from cvxrl.errors import Problem, UserError
from cvxrl.recipe.lco import LcoSpec
from cvxrl.recipe.schema import Recipe, optimizer_steps
from cvxrl.recipe.step import FixedStep
from cvxrl.recipe.task import DatasetSource, MadeSource
from cvxrl.tasks import load_task

# Rows of a table of text that are read to count those held out.
_READ_UP_TO = 64 * 2**20


@dataclass(frozen=True)
class RankPlan:
    """What one of so many ranks takes.

    Attributes:
        ranks: how many there are.
        memory: bytes, part by part.
        seconds: of a step, part by part; None where nobody asked.
        fits: whether the device has that much; None if its memory is not known.
    """

    ranks: int
    memory: Footprint
    seconds: Seconds | None
    fits: bool | None


@dataclass(frozen=True)
class Plan:
    """Numbers that `--dry-run` prints.

    Attributes:
        equation: per-token loss of the objective.
        step: how much of each optimizer step is taken.
        notes: what is worth knowing before it runs.
        warnings: what an experiment would not show that is meant to.
        reduction: how token losses become one number.
        sequences: sequences per step.
        max_tokens: most response tokens per step.
        optimizer_steps: optimizer steps in the whole run.
        updates: optimizer steps on each rollout.
        parameters: number of parameters, or None if nothing at hand says it.
        trainable: how many are trained: all of them, or those of an adapter beside them; None likewise.
        memory_bytes: estimated peak on the first of ``ranks`` beyond interpreter and libraries, or None likewise.
        ranks: one for each number of ranks that is planned for.
    """

    equation: str
    step: str
    notes: list[str]
    warnings: list[str]
    reduction: str
    sequences: int
    max_tokens: int
    optimizer_steps: int
    updates: int
    parameters: int | None
    trainable: int | None
    memory_bytes: int | None
    ranks: list[RankPlan]


def describe(
    recipe: Recipe, ranks: Sequence[int] | None = None, memory: int | None = None, rates: Rates | None = None
) -> Plan:
    """Plan of a run.

    Args:
        recipe: the run's.
        ranks: numbers of ranks to plan for; by default what the recipe or the launcher says.
        memory: bytes of each one's device, if they are known.
        rates: what a device does in a second; by default an H100's, and only where several ranks are planned for.

    Raises:
        UserError: the policy's files do not exist, or there are more ranks than prompts.
    """
    sequences, shape = recipe.sequences_per_step, shape_of(recipe.model)
    counts = list(ranks or planned_ranks(recipe, shape.parameters if shape else None))
    idle = [count for count in counts if count > recipe.rollout.prompts]
    if idle:
        what = f"{idle[0]} ranks, but a step has {recipe.rollout.prompts} prompts to split among them"
        raise UserError(Problem(what, "placement.ranks", remedy="take fewer ranks, or raise rollout.prompts"))
    rates = rates if rates is not None or max(counts) == 1 else Rates()
    planned = [_on(recipe, shape, count, memory, rates) for count in counts] if shape else []
    return Plan(
        equation=recipe.equation,
        step=recipe.step.words,
        notes=recipe.notes,
        warnings=list(_warnings(recipe)),
        reduction=recipe.reduction,
        sequences=sequences,
        max_tokens=sequences * recipe.rollout.max_new_tokens,
        optimizer_steps=optimizer_steps(recipe.train),
        updates=recipe.train.inner_epochs * recipe.train.minibatches,
        parameters=shape.parameters if shape else None,
        trainable=shape.trainable if shape else None,
        memory_bytes=planned[0].memory.peak if planned else None,
        ranks=planned,
    )


def _on(recipe: Recipe, shape: Shape, ranks: int, memory: int | None, rates: Rates | None) -> RankPlan:
    placed = Placed.of(recipe, ranks)
    taken = footprint(recipe, shape, placed, memory)
    fits = None if memory is None else taken.peak <= memory
    return RankPlan(ranks, taken, seconds(recipe, shape, placed, rates) if rates else None, fits)


def _warnings(recipe: Recipe) -> Iterator[str]:
    once = recipe.train.inner_epochs * recipe.train.minibatches == 1 and not recipe.rollout.lag
    if (
        recipe.data == "rollouts"
        and once
        and isinstance(recipe.objective, LcoSpec)
        and isinstance(recipe.step, FixedStep)
    ):
        yield (
            "every rollout is used for one optimizer step: the gradient is then a policy gradient with other weights, "
            "and the loss's convexity is not exercised; train.inner_epochs or train.minibatches above 1, rollout.lag "
            "or step.kind: line-search do that"
        )
    held_out = _held_out(recipe) if recipe.eval.every else None
    if held_out is not None and held_out < recipe.eval.prompts:
        yield f"eval.prompts is {recipe.eval.prompts}, the task holds {held_out} out: all {held_out} are asked"


def _held_out(recipe: Recipe) -> int | None:
    """Questions that a task holds out, where that is soon told."""
    source = recipe.task.source
    if isinstance(source, DatasetSource):
        paths = [Path(path) for path in (source.path, source.eval_path) if path is not None]
        if not all(p.suffix != ".parquet" and p.is_file() and p.stat().st_size < _READ_UP_TO for p in paths):
            return None
    elif not isinstance(source, MadeSource):
        return None
    try:
        return load_task(recipe.task, recipe.seed).held_out_size
    except UserError:  # which is said when the run begins
        return None
