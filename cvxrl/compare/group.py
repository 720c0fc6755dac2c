"""Runs of one method, told apart by the name of the recipe and, if asked, by one varied key."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cvxrl.compare.options import Options
from cvxrl.compare.run import Run
from cvxrl.errors import Problem, suggest
from cvxrl.recipe.digest import differences
from cvxrl.recipe.schema import Recipe

# Keys in which runs of one method may differ, beside those that cannot change a result.
FREE_KEYS = ("name", "seed")


@dataclass(frozen=True)
class Group:
    """Runs that differ only in their seed.

    Attributes:
        label: the method, with the varied value where there is one.
        method: name of the recipe.
        value: value of the varied key; None where nothing is varied or the recipe has no such key.
        runs: ended runs by increasing seed; they have scores.
        unfinished: running, interrupted and failed ones; they have none.
    """

    label: str
    method: str
    value: Any
    runs: tuple[Run, ...]
    unfinished: tuple[Run, ...]

    @property
    def recipe(self) -> Recipe:
        """Recipe of the group, up to the seed."""
        return (self.runs or self.unfinished)[0].recipe


def make_groups(runs: Sequence[Run], options: Options) -> tuple[list[Group], list[Problem], list[str]]:
    """Group runs in the order in which methods first appear.

    Returns:
        Groups, problems (runs of one group that are not seeds of one recipe), and warnings (the same run given twice).
    """
    problems: list[Problem] = []
    warnings: list[str] = []
    sorted_runs: dict[str, list[Run]] = {}
    for run in runs:
        sorted_runs.setdefault(label_of(run.recipe, options.vary), []).append(run)
    groups = []
    for label, members in sorted_runs.items():
        unlike = list(_not_seeds_of_one(label, members, options))
        problems += unlike
        if unlike:
            continue
        single = list(_without_copies(members, warnings))
        groups.append(
            Group(
                label=label,
                method=members[0].recipe.name,
                value=value_at(members[0].recipe, options.vary) if options.vary else None,
                runs=tuple(r for r in single if r.scored),
                unfinished=tuple(r for r in single if not r.scored),
            )
        )
    return _in_order(groups), problems, warnings


def label_of(recipe: Recipe, vary: str | None) -> str:
    """Name by which a group is known: `math_grpo`, or `math_grpo[optim.lr=0.001]`."""
    value = value_at(recipe, vary) if vary else None
    return recipe.name if value is None else f"{recipe.name}[{vary}={show_value(value)}]"


def show_value(value: Any) -> str:
    """A recipe value in few characters."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def value_at(recipe: Recipe, key: str) -> Any:
    """Value of a dotted key, or None where the recipe has no such key."""
    value: Any = recipe.model_dump(mode="json")
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def check_vary(runs: Sequence[Run], vary: str) -> Problem | None:
    """Refuse a varied key that no recipe has."""
    known = sorted({key for run in runs for key in _leaf_keys(run.recipe.model_dump(mode="json"))})
    if vary in known:
        return None
    remedy = suggest(vary, known).strip() or "give a dotted recipe key such as optim.lr"
    return Problem(f"no recipe has a key `{vary}`", "--vary", remedy=remedy)


def _in_order(groups: Sequence[Group]) -> list[Group]:
    """Methods as they first appear, each by increasing varied value."""
    methods = list(dict.fromkeys(g.method for g in groups))

    def place(group: Group) -> tuple[int, float, str]:
        number = float(group.value) if isinstance(group.value, int | float) else 0.0
        return methods.index(group.method), number, str(group.value)

    return sorted(groups, key=place)


def _leaf_keys(values: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _leaf_keys(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def _not_seeds_of_one(label: str, members: Sequence[Run], options: Options) -> Iterator[Problem]:
    """Runs pooled as one method have to share their recipe, or an interval over them means nothing."""
    seen: set[str] = set()
    for run in members[1:]:
        for key, old, new in differences(members[0].recipe, run.recipe):
            if key in FREE_KEYS or key in seen:
                continue
            seen.add(key)
            yield Problem(
                f"runs of `{label}` differ: {show_value(old)} in {members[0].path}, {show_value(new)} here",
                key,
                str(run.path),
                f"add --vary {key}" if options.vary is None else "give the recipes different names",
            )


def _without_copies(members: Sequence[Run], warnings: list[str]) -> Iterator[Run]:
    """One run per seed, by increasing seed: a copy would count one seed twice."""
    first: dict[int, Run] = {}
    for run in members:
        kept = first.setdefault(run.record.seed, run)
        if kept is not run and kept.scored < run.scored:
            first[run.record.seed], run = run, kept
        if first[run.record.seed] is not run:
            warnings.append(f"left out {run.path}: the same recipe and seed as {first[run.record.seed].path}")
    return iter(first[seed] for seed in sorted(first))
