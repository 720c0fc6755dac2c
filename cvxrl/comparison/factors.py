"""In what the groups differ, and whether that still is a comparison of one thing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cvxrl.comparison.group import FREE_KEYS, Group, show_value
from cvxrl.comparison.options import Options
from cvxrl.errors import Problem
from cvxrl.recipe.digest import differences

# What "method" means where no other factor is declared.
METHOD_KEYS = ("objective", "advantage", "reduction")


@dataclass(frozen=True)
class Factor:
    """A recipe key in which groups differ.

    Attributes:
        key: dotted recipe key.
        declared: whether it belongs to what is being compared.
        values: value per group label; None where a recipe has no such key. A group whose recipe is not known has none.
    """

    key: str
    declared: bool
    values: dict[str, Any]


def find_factors(groups: Sequence[Group], options: Options) -> list[Factor]:
    """Keys in which any two recipes that are known differ, except those that cannot change a result."""
    recipes = {g.label: g.recipe for g in groups if g.recipe is not None}
    first = next(iter(recipes.values()), {})
    changes = {label: differences(first, recipe) for label, recipe in recipes.items()}
    keys = sorted({key for found in changes.values() for key, _, _ in found} - set(FREE_KEYS))
    factors = []
    for key in keys:
        base = next(old for found in changes.values() for k, old, _ in found if k == key)
        values = {label: next((new for k, _, new in found if k == key), base) for label, found in changes.items()}
        factors.append(Factor(key, _is_declared(key, options), values))
    return factors


def refuse_undeclared(factors: Sequence[Factor]) -> list[Problem]:
    """One problem per key that differs although it is not what is being compared."""
    return [
        Problem(
            "differs between the methods: " + ", ".join(f"{show_value(v)} in {k}" for k, v in _spread(factor).items()),
            factor.key,
            remedy=f"--vary {factor.key} if that is the question, --allow-diff to compare all the same",
        )
        for factor in factors
        if not factor.declared
    ]


def refuse_other_tasks(groups: Sequence[Group], options: Options) -> list[Problem]:
    """Scores on different training data are no comparison, unless the task is the declared factor or not known."""
    if any(key.startswith("task.") for key in options.vary):
        return []
    prints: dict[str, str] = {}
    for group in groups:
        for run in (*group.runs, *group.unfinished):
            if run.task is not None:
                prints.setdefault(run.task, str(run.path))
    paths = list(prints.values())
    return [
        Problem(f"another task than {paths[0]}", file=path, remedy="compare runs of one task at a time")
        for path in paths[1:]
    ]


def _is_declared(key: str, options: Options) -> bool:
    return key in options.vary or key.split(".")[0] in METHOD_KEYS


def _spread(factor: Factor) -> dict[str, Any]:
    """Each value once, with the first group that has it."""
    seen: dict[str, Any] = {}
    for label, value in factor.values.items():
        if value not in seen.values():
            seen[label] = value
    return seen
