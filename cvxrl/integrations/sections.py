"""The sections of a recipe that are a loss, given as Python values and checked as a recipe's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

from pydantic import Field

from cvxrl.errors import Problem, UserError
from cvxrl.recipe.advantage import AdvantageSpec, GroupAdvantage
from cvxrl.recipe.base import Section
from cvxrl.recipe.lco import LcoKldSpec
from cvxrl.recipe.load import check
from cvxrl.recipe.merge import Layers
from cvxrl.recipe.objective import ObjectiveSpec


class LossSections(Section):
    """What of a recipe decides the loss of given completions and rewards."""

    objective: ObjectiveSpec = Field(LcoKldSpec(), description="See docs/recipe.md.")
    advantage: AdvantageSpec = Field(GroupAdvantage(), description="See docs/recipe.md.")
    reduction: Literal["token-mean", "sequence-mean", "constant"] = Field(
        "token-mean", description="See docs/recipe.md."
    )


def check_sections(
    values: Mapping[str, Any], further: Callable[[LossSections], list[str]] = lambda _: []
) -> LossSections:
    """Check sections as a recipe's.

    Args:
        values: by name, each as in a recipe.
        further: what else must hold, as lines of the form `key: what is wrong; remedy`.

    Raises:
        UserError: with every mistake.
    """
    layers = Layers(LossSections)
    layers.add(values, "")
    sections = check(LossSections, layers)
    lines = further(sections)
    if lines:
        raise UserError(*map(as_problem, lines))
    return sections


def as_problem(line: str) -> Problem:
    """A line of the form `key: what is wrong; remedy` as a problem."""
    key, _, rest = line.partition(": ")
    message, _, remedy = rest.rpartition("; ")
    return Problem(message, key, remedy=remedy)
