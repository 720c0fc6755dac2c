"""Runs of one method, told apart by the name of the recipe and, if asked, by one varied key."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from cvxrl.comparison.options import Options
from cvxrl.comparison.run import GivenUp, Run, is_scored, setting
from cvxrl.errors import Problem, suggest
from cvxrl.recipe.digest import differences, leaves

# Keys in which runs of one method may differ, beside those that cannot change a result.
FREE_KEYS = ("name", "seed")


@dataclass(frozen=True)
class Group:
    """Runs that differ only in their seed.

    Attributes:
        label: the method, with the varied value where there is one.
        method: name of what was trained.
        value: value of the varied key, of a list its text; None where nothing is varied, or the recipe has no such key
            or is not known. With two varied keys, both of their values.
        runs: ended runs by increasing seed; they have scores, those that failed too.
        unfinished: running and interrupted ones; they have none.
    """

    label: str
    method: str
    value: Any
    runs: tuple[Run, ...]
    unfinished: tuple[Run, ...]

    @property
    def recipe(self) -> Mapping[str, Any] | None:
        """Recipe of the group, up to the seed; None where no run's is known."""
        return next((run.recipe for run in (*self.runs, *self.unfinished) if run.recipe is not None), None)


def make_groups(runs: Sequence[Run], options: Options) -> tuple[list[Group], list[Problem], list[str]]:
    """Group runs in the order in which methods first appear.

    Returns:
        Groups, problems (runs of one group that are not seeds of one recipe), and warnings (the same run given twice).
    """
    problems: list[Problem] = []
    warnings: list[str] = []
    sorted_runs: dict[str, list[Run]] = {}
    for run in runs:
        sorted_runs.setdefault(label_of(run, options.vary), []).append(run)
    groups = []
    for label, members in sorted_runs.items():
        unlike = list(_not_seeds_of_one(label, members, options))
        problems += unlike
        if unlike:
            continue
        single = list(_without_copies(members, warnings))
        ended = [r if is_scored(r) else cast(Run, GivenUp(r)) for r in single if is_scored(r) or options.lost]
        groups.append(
            Group(
                label=label,
                method=members[0].method,
                value=value_at(members[0], options.vary),
                runs=tuple(ended),
                unfinished=tuple(r for r in single if not is_scored(r) and not options.lost),
            )
        )
    return _in_order(groups), problems, warnings


def label_of(run: Run, vary: Sequence[str]) -> str:
    """Name of the group that a run belongs to: `math_grpo`, or `math_grpo[optim.lr=0.001]`."""
    found = zip(vary, settings(value_at(run, vary)), strict=False)
    known = [f"{key}={show_value(value)}" for key, value in found if value is not None]
    return f"{run.method}[{','.join(known)}]" if known else run.method


def settings(value: Any) -> tuple[Any, ...]:
    """Values of the varied keys, of a group's value."""
    return value if isinstance(value, tuple) else (value,)


def show_value(value: Any) -> str:
    """A recipe value in few characters; a number in six digits, or in all where it has more."""
    if not isinstance(value, float):
        return str(value)
    few = f"{value:g}"
    return few if float(few) == value else str(float(value))


def name_value(value: Any) -> str:
    """The same, and `-` where a recipe has no such key."""
    return "-" if value is None else show_value(value)


def value_at(run: Run, vary: Sequence[str]) -> Any:
    """Value of a group (`Group.value`): of dotted recipe keys, each None where the recipe lacks it or is not known."""
    found = [_as_key(setting(run.recipe, key)) for key in vary]
    return tuple(found) if len(found) > 1 else found[0] if found else None


def _as_key(value: Any) -> Any:
    """What stands for a value where runs are looked up by it; a tuple there would be the values of two keys."""
    if isinstance(value, list | tuple):
        return show_value(list(value))
    return show_value(value) if isinstance(value, Mapping) else value


def check_vary(runs: Sequence[Run], vary: Sequence[str]) -> list[Problem]:
    """Refuse varied keys that no recipe has."""
    known = sorted({key for run in runs if run.recipe is not None for key, _ in leaves(run.recipe)})
    if not known:
        return [Problem("no run says with which recipe it was trained", "--vary", remedy="compare them without it")]
    return [
        Problem(
            f"no recipe has a key `{key}`",
            "--vary",
            remedy=suggest(key, known).strip() or "give a dotted recipe key such as optim.lr",
        )
        for key in vary
        if key not in known
    ]


def in_order(value: Any) -> tuple[float, str]:
    """Sorts values of a varied key: numbers by size, words by the alphabet."""
    return (float(value) if isinstance(value, int | float) else 0.0), str(value)


def _in_order(groups: Sequence[Group]) -> list[Group]:
    """Methods as they first appear, each by increasing varied value."""
    methods = list(dict.fromkeys(g.method for g in groups))

    def place(group: Group) -> tuple[int, list[tuple[float, str]]]:
        return methods.index(group.method), [in_order(value) for value in settings(group.value)]

    return sorted(groups, key=place)


def _not_seeds_of_one(label: str, members: Sequence[Run], options: Options) -> Iterator[Problem]:
    """Runs pooled as one method have to share their recipe, or an interval over them means nothing."""
    yield from _of_other_settings(label, members)
    seen: set[str] = set()
    first, *others = [(run, run.recipe) for run in members if run.recipe is not None] or [(members[0], {})]
    for run, recipe in others:
        for key, old, new in differences(first[1], recipe):
            if key in FREE_KEYS or key in seen:
                continue
            seen.add(key)
            yield Problem(
                f"runs of `{label}` differ: {show_value(old)} in {first[0].path}, {show_value(new)} here",
                key,
                str(run.path),
                "give the recipes different names" if options.vary else f"add --vary {key}",
            )


def _of_other_settings(label: str, members: Sequence[Run]) -> Iterator[Problem]:
    """The same of runs of another program, whose configuration is no recipe of ours."""
    known = [(run, found) for run in members if (found := getattr(run, "settings", None)) is not None]
    for run, found in known[1:]:
        first, before = known[0]
        for key in sorted({*before} & {*found}):
            if before[key] != found[key]:
                then, now = show_value(before[key]), show_value(found[key])
                what = f"runs of `{label}` differ: {then} in {first.path}, {now} here"
                yield Problem(what, key, str(run.path), "give them different methods with --as METHOD:SEED=PATH")


def _without_copies(members: Sequence[Run], warnings: list[str]) -> Iterator[Run]:
    """One run per seed, by increasing seed: a copy would count one seed twice."""
    first: dict[int, Run] = {}
    for run in members:
        kept = first.setdefault(run.seed, run)
        if kept is not run and is_scored(kept) < is_scored(run):
            first[run.seed], run = run, kept
        if first[run.seed] is not run:
            warnings.append(f"left out {run.path}: the same recipe and seed as {first[run.seed].path}")
    return iter(first[seed] for seed in sorted(first))
