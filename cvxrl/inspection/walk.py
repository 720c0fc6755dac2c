"""How often a rollout is used again: the updates along which objectives are looked at. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil
from typing import Any

from cvxrl.errors import Problem, UserError
from cvxrl.inspection.objectives import NamedObjective
from cvxrl.inspection.options import InspectOptions
from cvxrl.recipe.schema import Recipe

_UPDATES, _MINIBATCHES = "--updates", "--inner-minibatches"


@dataclass(frozen=True)
class Walk:
    """Optimizer steps that one rollout pays for.

    Attributes:
        updates: how many are taken.
        epochs: passes over the rollout; the last may be cut short by ``updates``.
        minibatches: optimizer steps per pass.
    """

    updates: int
    epochs: int
    minibatches: int

    @property
    def looks(self) -> list[int]:
        """Updates after which everything is looked at: 0, 1, 2, 4, 8, ... and the last."""
        doubling = (2**k for k in range(self.updates.bit_length()))
        return sorted({0, *(n for n in doubling if n < self.updates), self.updates})

    def recipe(self, recipe: Recipe) -> Recipe:
        """A recipe whose rollouts are used so often, and which logs the gradients of every step."""
        train = recipe.train.model_copy(update={"inner_epochs": self.epochs, "minibatches": self.minibatches})
        logging = recipe.logging.model_copy(update={"gradients": 1})
        return recipe.model_copy(update={"train": train, "logging": logging})


def plan_walk(
    options: InspectOptions, asked: bool, trained: Recipe, recipe: Recipe, objectives: list[NamedObjective]
) -> Walk | None:
    """The updates to look at: those that were asked for, else the recipe's; None where a rollout is used once.

    Args:
        options: as given.
        asked: whether somebody wants to see them, even if no number was given.
        trained: the run's recipe, which says how often training uses a rollout.
        recipe: the same with the asked size of the rollout.
        objectives: what the rollout is cut for.

    Raises:
        UserError: minibatches do not divide the rollout, or nothing says how many updates to take.
    """
    train = trained.train
    given: dict[str, Any] = {
        "--updates": options.updates,
        "--inner-epochs": options.inner_epochs,
        "--inner-minibatches": options.inner_minibatches,
    }
    chosen = any(value is not None for value in given.values())
    minibatches = options.inner_minibatches or train.minibatches
    epochs = options.inner_epochs or train.inner_epochs
    if options.updates is not None and options.inner_epochs is not None and options.updates > epochs * minibatches:
        what = f"{options.updates} updates are more than {epochs} epochs of {minibatches} make"
        raise UserError(Problem(what, _UPDATES, remedy="leave one of --updates and --inner-epochs out"))
    epochs = max(epochs, ceil((options.updates or 0) / minibatches))
    updates = options.updates or epochs * minibatches
    if not chosen and updates == 1:
        if asked:
            what = "the recipe takes one optimizer step per rollout, so there is no reuse to look at"
            raise UserError(Problem(what, _UPDATES, remedy="say how many updates to take, for example --updates 16"))
        return None
    problems = list(_uneven(minibatches, recipe, objectives))
    if problems:
        if chosen or asked:
            raise UserError(*problems)
        return None  # the rollout was made smaller, and nobody asked for its reuse
    return Walk(updates, epochs, minibatches)


def _uneven(minibatches: int, recipe: Recipe, objectives: list[NamedObjective]) -> Iterator[Problem]:
    """Whether minibatches are equal parts of the rollout, for every objective that is cut into them."""
    rollout = recipe.rollout
    for kept, count, what in (
        ("group", rollout.prompts, "prompts (whose sequences stay together)"),
        ("", rollout.prompts * rollout.samples, "sequences"),
    ):
        labels = [o.label for o in objectives if (o.recipe.objective.coupling == "group") == (kept == "group")]
        if labels and count % minibatches:
            cut = f"{minibatches} does not divide the {count} {what} of {', '.join(labels)}"
            yield Problem(cut, _MINIBATCHES, remedy=f"choose a divisor of {count}")
