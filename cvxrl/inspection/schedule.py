"""Which optimizer step of the run's schedule comes next, so that a measured step has its learning rate. No torch."""

from __future__ import annotations

from cvxrl.recipe.schema import Recipe, learning_rate, optimizer_steps


def next_index(recipe: Recipe, step: int, updates: int = 1) -> int:
    """Index of the first of ``updates`` optimizer steps that follow ``step`` outer steps.

    Past the end of the schedule it is that of the last ones; where the schedule ends at 0, of the last ones above it,
    since a step of length zero says nothing of an objective.

    Args:
        recipe: says how often a rollout is used, and the schedule.
        step: finished outer steps.
        updates: not more than one rollout pays for.
    """
    total = optimizer_steps(recipe.train)
    first = step * recipe.train.inner_epochs * recipe.train.minibatches
    if first < total:
        return first
    moving = next((i for i in reversed(range(total)) if learning_rate(recipe.optim, i, total) > 0), total - 1)
    return max(0, moving + 1 - updates)


def next_rate(recipe: Recipe, step: int) -> float:
    """Learning rate of the optimizer step that follows ``step`` outer steps; past the end, see `next_index`."""
    return learning_rate(recipe.optim, next_index(recipe, step), optimizer_steps(recipe.train))


def schedule_notes(recipe: Recipe, step: int) -> list[str]:
    """What is worth knowing of a step whose schedule gives it no length, a sentence each."""
    total = optimizer_steps(recipe.train)
    if learning_rate(recipe.optim, total - 1, total) > 0:
        return []
    rate = next_rate(recipe, step)
    if rate == 0:
        return ["the next step is the schedule's last, whose learning rate is 0: training's own step moves nothing"]
    if step < recipe.train.steps:
        return []
    return [f"the schedule has ended at 0, so the next step is measured at its last learning rate above that, {rate:g}"]
