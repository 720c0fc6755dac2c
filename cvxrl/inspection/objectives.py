"""The objectives that are measured side by side, each under the run's recipe. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from cvxrl.errors import Problem, UserError, suggest
from cvxrl.recipe.advantage import GaeAdvantage
from cvxrl.recipe.base import kind_of, section_classes
from cvxrl.recipe.lco import LcoKldSpec, LcoSpec, target_of
from cvxrl.recipe.load import check, load_recipe
from cvxrl.recipe.merge import Layers
from cvxrl.recipe.objective import CallableObjective, ObjectiveSpec
from cvxrl.recipe.schema import Recipe
from cvxrl.recipe.shipped import named_recipe
from cvxrl.recipe.step import LineSearchStep

_OPTION = "--objectives"
_USUAL = ("lco-kld", "lco-mse", "grpo", "reinforce")
# Not a kind of its own: the clipped surrogate with advantages from a value head.
PPO = "ppo"


@dataclass(frozen=True)
class NamedObjective:
    """An objective under the run's recipe.

    Attributes:
        label: what tables call it.
        recipe: the run's recipe with this objective (and, where it names one, advantage and reduction).
        own: whether the run trains with it.
    """

    label: str
    recipe: Recipe
    own: bool

    @property
    def needs_values(self) -> bool:
        """Whether its advantages come from a value head."""
        return isinstance(self.recipe.advantage, GaeAdvantage)


def select_objectives(names: Sequence[str] | None, recipe: Recipe, has_values: bool) -> list[NamedObjective]:
    """The objectives to measure, the run's own first.

    Args:
        names: kinds, `ppo`, functions, or recipes; None takes the run's own and the usual ones.
        recipe: the run's.
        has_values: whether the checkpoint holds a value head.

    Raises:
        UserError: with one problem per name that cannot be measured.
    """
    if recipe.data != "rollouts":
        raise UserError(
            Problem(
                f"the recipe's objective `{recipe.objective.kind}` learns from {recipe.data}, not from rollouts",
                "--recipe",
                remedy="look at its policy under a recipe that samples, e.g. --recipe math_lco_kld",
            )
        )
    own = own_label(recipe)
    if names is None:
        usual = [*_USUAL, *([PPO] if has_values else [])]
        names = [own, *(name for name in usual if name != own)]
    found: list[NamedObjective] = []
    problems: list[Problem] = []
    for name in dict.fromkeys(names):
        try:
            objective = NamedObjective(own, recipe, True) if name == own else _named(name, recipe)
            if objective.needs_values and not has_values:
                raise UserError(_no_values(name, recipe))
            # The very same thing by another name (a shipped recipe and its file) is measured once.
            if all((objective.label, objective.recipe) != (other.label, other.recipe) for other in found):
                found.append(objective)
        except UserError as error:
            problems += error.problems
    if problems:
        raise UserError(*problems)
    return _told_apart(sorted(found, key=lambda objective: not objective.own))


def _told_apart(objectives: Sequence[NamedObjective]) -> list[NamedObjective]:
    """Each under a label of its own: the second `mine` becomes `mine (2)`, the run's own objective keeps its label."""
    found: list[NamedObjective] = []
    for objective in objectives:
        labels, label, number = {other.label for other in found}, objective.label, 1
        while label in labels:
            number += 1
            label = f"{objective.label} ({number})"
        found.append(replace(objective, label=label))
    return found


def unnamed_own(objectives: Sequence[NamedObjective], recipe: Recipe, has_values: bool) -> NamedObjective | None:
    """The run's own objective where it is not among those to measure; None too where it needs values that are missing.

    Args:
        objectives: what is measured.
        recipe: the run's.
        has_values: whether the checkpoint holds a value head.
    """
    own = NamedObjective(f"the run's {own_label(recipe)}", recipe, True)
    missing = own.needs_values and not has_values
    return None if missing or any(objective.own for objective in objectives) else own


def own_label(recipe: Recipe) -> str:
    """What a recipe's objective is called: its kind, `ppo` with a value head, or the name of a function."""
    if isinstance(recipe.objective, CallableObjective):
        return recipe.objective.function
    ppo = recipe.objective.kind == "grpo" and isinstance(recipe.advantage, GaeAdvantage)
    return PPO if ppo else recipe.objective.kind


def yardstick(objectives: Sequence[NamedObjective], recipe: Recipe) -> LcoKldSpec:
    """The target that every objective is held against.

    It is that of the run's own LCO objective, measured or not, else of the first one that is measured, else beta 1 on
    both signs.
    """
    specs = [recipe.objective, *(objective.recipe.objective for objective in objectives)]
    return target_of(next((spec for spec in specs if isinstance(spec, LcoSpec)), None))


def _named(name: str, recipe: Recipe) -> NamedObjective:
    if name.endswith((".yaml", ".yml")) or named_recipe(name) is not None:
        other = load_recipe(name)
        parts = {key: getattr(other, key).model_dump(mode="json") for key in ("objective", "advantage", "regularizer")}
        return NamedObjective(other.name, _replaced(recipe, {**parts, "reduction": other.reduction}, name), False)
    if ":" in name:
        function = {"objective": {"kind": "callable", "function": name}}
        return NamedObjective(name, _replaced(recipe, function, name), False)
    kinds = {kind_of(c) for c in section_classes(ObjectiveSpec)} - {"callable"}
    if name == PPO:
        return NamedObjective(
            name, _replaced(recipe, {"objective": _spec("grpo", recipe), "advantage": _gae(recipe)}, name), False
        )
    if name not in kinds:
        hint = suggest(name, [*sorted(map(str, kinds)), PPO])
        known = ", ".join(sorted(map(str, kinds)))
        remedy = f"{hint}known: {known}, ppo, module:function, or a recipe"
        raise UserError(Problem(f"there is no objective `{name}`", _OPTION, remedy=remedy))
    changes: dict[str, Any] = {"objective": _spec(name, recipe)}
    if name == "grpo" and isinstance(recipe.advantage, GaeAdvantage):
        changes["advantage"] = {"kind": "group"}
    return NamedObjective(name, _replaced(recipe, changes, name), False)


def _spec(kind: str, recipe: Recipe) -> dict[str, Any]:
    """The recipe's own settings of an objective, or that kind's defaults."""
    return recipe.objective.model_dump(mode="json") if recipe.objective.kind == kind else {"kind": kind}


def _gae(recipe: Recipe) -> dict[str, Any]:
    """The recipe's own value-head advantages, or the default ones."""
    return recipe.advantage.model_dump(mode="json") if isinstance(recipe.advantage, GaeAdvantage) else {"kind": "gae"}


def _replaced(recipe: Recipe, changes: dict[str, Any], name: str) -> Recipe:
    """The run's recipe with other sections; what does not go together is told under the objective's name."""
    layers = Layers(Recipe)
    values = {**recipe.model_dump(mode="json"), "reading": "paper", **changes}
    if isinstance(recipe.step, LineSearchStep):  # beside the run's own, a loss without a minimum is a control
        values["step"]["allow_unbounded"] = True
    layers.add(values, _OPTION)
    try:
        replaced = check(Recipe, layers)
    except UserError as error:
        raise UserError(
            *(Problem(f"`{name}`: {p.message}", p.key, _OPTION, p.remedy) for p in error.problems)
        ) from None
    if replaced.data != "rollouts":
        what = f"`{name}` learns from {replaced.data}, which the frozen rollouts are not"
        raise UserError(Problem(what, _OPTION, remedy="leave it out"))
    return replaced


def _no_values(name: str, recipe: Recipe) -> Problem:
    if isinstance(recipe.advantage, GaeAdvantage):
        remedy = "name a step that has a checkpoint (train with checkpoint.every), since only those keep the value head"
    else:
        remedy = "leave it out, or inspect a run of math_ppo"
    return Problem(
        f"`{name}` needs the values of a critic, which this checkpoint does not have", _OPTION, remedy=remedy
    )
