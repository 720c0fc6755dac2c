"""What a recipe is going to do, in words and numbers, before anything heavy is loaded (no torch here)."""

from __future__ import annotations

from dataclasses import dataclass

from cvxrl.engine.memory import footprint
from cvxrl.engine.sizes import shape_of
from cvxrl.recipe.schema import Recipe, optimizer_steps


@dataclass(frozen=True)
class Plan:
    """Numbers that `--dry-run` prints.

    Attributes:
        equation: per-token loss of the objective.
        step: how much of each optimizer step is taken.
        notes: what is worth knowing before it runs.
        reduction: how token losses become one number.
        sequences: sequences per step.
        max_tokens: most response tokens per step.
        optimizer_steps: optimizer steps in the whole run.
        parameters: number of parameters, or None if the configuration is not at hand.
        trainable: how many are trained: all of them, or those of an adapter beside them; None likewise.
        memory_bytes: estimated peak beyond the interpreter and its libraries, or None likewise.
    """

    equation: str
    step: str
    notes: list[str]
    reduction: str
    sequences: int
    max_tokens: int
    optimizer_steps: int
    parameters: int | None
    trainable: int | None
    memory_bytes: int | None


def describe(recipe: Recipe) -> Plan:
    """Plan of a run.

    Raises:
        UserError: the policy's files do not exist.
    """
    sequences = recipe.sequences_per_step
    shape = shape_of(recipe.model)
    return Plan(
        equation=recipe.equation,
        step=recipe.step.words,
        notes=recipe.notes,
        reduction=recipe.reduction,
        sequences=sequences,
        max_tokens=sequences * recipe.rollout.max_new_tokens,
        optimizer_steps=optimizer_steps(recipe.train),
        parameters=shape.parameters if shape else None,
        trainable=shape.trainable if shape else None,
        memory_bytes=footprint(recipe, shape).peak if shape else None,
    )
