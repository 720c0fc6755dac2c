"""What a later session of a run may change in its recipe: whatever leaves the steps that are done as they are."""

from __future__ import annotations

from collections.abc import Iterator

from cvxrl.errors import Problem, UserError
from cvxrl.recipe.digest import Difference, amendable_keys, differences, is_in
from cvxrl.recipe.schema import Recipe, learning_rate, optimizer_steps

_STEPS = "train.steps"
_SAME = "resume needs the same recipe; what may change is marked + or ° in docs/recipe.md"


def amendments(then: Recipe, now: Recipe, done: int, file: str) -> list[Difference]:
    """Keys in which a run is about to go on otherwise than it began, with both values.

    Args:
        then: the run's recipe so far.
        now: what it is to go on with.
        done: step up to which its state is saved; the run goes on from there.
        file: where ``then`` was read, for messages.

    Raises:
        UserError: a key that differs would have made the steps that are done others; one problem per key.
    """
    changed = differences(then, now)
    problems = []
    for key, old, new in changed:
        what = f"was {old!r}, is now {new!r}"
        if not is_in(key, amendable_keys()):
            problems.append(Problem(what, key, file, _SAME))
        elif key == _STEPS:
            problems += [Problem(f"{what}: {why}", key, file, remedy) for why, remedy in _steps(then, now, done)]
    if problems:
        raise UserError(*problems)
    return changed


def _steps(then: Recipe, now: Recipe, done: int) -> Iterator[tuple[str, str]]:
    """Why the number of steps cannot be changed, and what to do."""
    if now.train.steps <= done:
        yield f"step {done} is done", f"give more than {done}, or leave the steps as they were"
        return
    totals = optimizer_steps(then.train), optimizer_steps(now.train)
    past = range(done * now.train.inner_epochs * now.train.minibatches)
    spec = now.optim
    if spec.schedule == "constant" or all(len({learning_rate(spec, i, n) for n in totals}) == 1 for i in past):
        return
    yield (
        f"with optim.schedule: {spec.schedule} the learning rates of the {done} steps that are done depend on it",
        f"keep {then.train.steps}; a run of optim.schedule: constant can be made longer",
    )
