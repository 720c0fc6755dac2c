"""What a study's own rules say of its runs: one context in which every cell has the name that rules use."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from cvxrl.comparison.gate import Gate, Verdict, judge
from cvxrl.comparison.headroom import Headroom
from cvxrl.comparison.options import Options
from cvxrl.comparison.result import Comparison, build
from cvxrl.comparison.run import LoggedRun, Run
from cvxrl.errors import Problem, UserError
from cvxrl.study.cells import Cell
from cvxrl.study.choices import Choice
from cvxrl.study.collected import Collected, Found
from cvxrl.study.plan import Study

CANNOT_BE_TOLD = "cannot be told"


@dataclass(frozen=True)
class Judged:
    """A study held against its rules.

    Attributes:
        verdict: of the first rule whose requirements hold, or the plan's `otherwise`; that it cannot be told where a
            rule before it speaks of cells that were not run.
        rules: requirements of every rule, with what they came to. Those that cannot be told name their cells as
            unfinished.
        best: confirmatory runs at the chosen values, by regime, against the first method that ran there.
        sweep: all confirmatory runs, over the varied key; None without any.
        grids: the same of every grid with runs, by name.
    """

    verdict: str
    rules: list[tuple[str, list[Verdict]]]
    best: dict[str, Comparison]
    sweep: Comparison | None
    grids: dict[str, Comparison]

    @property
    def comparisons(self) -> list[Comparison]:
        """All of them."""
        return [one for one in (*self.best.values(), self.sweep, *self.grids.values()) if one is not None]

    @property
    def headrooms(self) -> list[Headroom]:
        """Of everything that ran at several values."""
        return [h for one in self.comparisons for h in one.headrooms]


def judge_study(study: Study, chosen: Mapping[str, Choice], collected: Collected) -> Judged:
    """Hold every rule against the runs, all of which have ended; cells without runs leave their rules untold.

    Args:
        study: the plan.
        chosen: values of the tuning stage.
        collected: runs of every cell.

    Raises:
        UserError: no cell that could be judged has a run.
    """
    values = {label: choice.value for label, choice in chosen.items()}
    plain = Options(confidence=study.confidence, allow_diff=True)
    swept = replace(plain, vary=(study.vary,))
    at_best = [(cell, runs) for cell, runs in collected.confirmed if cell.multiple == 1]
    best = _each(study.regimes, lambda regime: [one for one in at_best if one[0].regime == regime], plain)
    sweep = _compared(_side_by_side(_runs(collected.confirmed)), swept, values)
    grids = _each(study.grids, lambda name: [one for one in collected.in_grids if one[0].grid == name], swept)
    judged = Judged(study.otherwise, [], best, sweep, grids)
    if not judged.comparisons:
        raise UserError(Problem("no run has ended that the rules could be held against", remedy="run the stages"))
    rules = _held(study, judged, [*collected.confirmed, *collected.in_grids], plain)
    return replace(judged, rules=rules, verdict=_first_that_holds(study, rules))


def _held(study: Study, judged: Judged, found: Found, options: Options) -> list[tuple[str, list[Verdict]]]:
    """Every requirement against a context that holds the summaries and headrooms of all comparisons."""
    named = _compared(_side_by_side([run for cell, runs in found for run in _named(cell, runs)]), options)
    every = [*([named] if named else []), *judged.comparisons]
    context = replace(
        judged.comparisons[0],
        summaries=[s for one in every for s in one.summaries],
        headrooms=judged.headrooms,
    )
    empty = {cell.label for cell, runs in found if not runs}
    return [
        (rule.verdict, [_judged(gate, context, empty) for gate in gates])
        for rule, gates in zip(study.rules, study.gates, strict=True)
    ]


def _judged(gate: Gate, context: Comparison, empty: set[str]) -> Verdict:
    """A requirement; untold where a cell was not run, or a method over all values has one that was not."""
    labels, swept = {s.label for s in context.summaries}, {h.method for h in context.headrooms}
    lacking = [name for name in gate.names if name not in labels]
    lacking += [name for name in gate.swept if name in empty or name not in swept]
    if lacking:
        return Verdict(gate.text, False, math.nan, math.nan, gate.sign, tuple(lacking))
    return judge(gate, context)


def _first_that_holds(study: Study, rules: Sequence[tuple[str, Sequence[Verdict]]]) -> str:
    """In order; a rule that may hold or not decides that nothing after it can be told."""
    for name, results in rules:
        if all(result.met for result in results):
            return name
        if all(result.met or result.unfinished for result in results):
            return CANNOT_BE_TOLD
    return study.otherwise


def _each(names: Iterable[str], members: Callable[[str], Found], options: Options) -> dict[str, Comparison]:
    """A comparison of every regime, or grid, that has runs."""
    made = {name: _compared(_runs(members(name)), options) for name in names}
    return {name: one for name, one in made.items() if one is not None}


def _runs(found: Found) -> list[Run]:
    return [run for _, runs in found for run in runs]


def _side_by_side(runs: Sequence[Run]) -> Sequence[Run]:
    """Runs of all regimes for rules to find by name, which may have a task each; within a regime there is one."""
    if len({run.task for run in runs}) < 2:
        return runs
    return [replace(run, task=None) if isinstance(run, LoggedRun) else run for run in runs]


def _compared(runs: Sequence[Run], options: Options, best: Mapping[str, float] | None = None) -> Comparison | None:
    return build(runs, options, best=best) if runs else None


def _named(cell: Cell, runs: Sequence[Run]) -> list[Run]:
    """Runs at a multiple other than 1 under the name METHOD@REGIME[x4], those in a grid at it under their label.

    All other cells have their name in the comparison of their stage.
    """
    if cell.multiple is None or (cell.multiple == 1 and not cell.grid):
        return []
    name = cell.label if cell.multiple == 1 else f"{cell.label}[{cell.place}]"
    return [replace(run, method=name) for run in runs if isinstance(run, LoggedRun)]
