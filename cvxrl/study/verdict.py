"""What a study's own rules say of its runs: one context in which every cell has the name that rules use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from cvxrl.comparison.gate import Verdict, judge
from cvxrl.comparison.options import Options
from cvxrl.comparison.result import Comparison, build
from cvxrl.comparison.run import LoggedRun, Run
from cvxrl.study.cells import Cell
from cvxrl.study.choices import Choice
from cvxrl.study.directories import Found
from cvxrl.study.plan import Study


@dataclass(frozen=True)
class Judged:
    """A finished study.

    Attributes:
        verdict: of the first rule whose requirements hold, or the plan's `otherwise`.
        rules: requirements of every rule, with what they came to.
        best: confirmatory runs at the chosen values; None without a confirmatory stage.
        sweep: all confirmatory runs, over the varied key; None without them.
        grids: the same of every grid, by name.
    """

    verdict: str
    rules: list[tuple[str, list[Verdict]]]
    best: Comparison | None
    sweep: Comparison | None
    grids: dict[str, Comparison]


def judge_study(study: Study, chosen: Mapping[str, Choice], confirmed: Found, in_grids: Found) -> Judged:
    """Hold every rule against the runs; all of them have ended.

    Args:
        study: the plan.
        chosen: values of the tuning stage.
        confirmed: runs of every cell of the confirmatory stage.
        in_grids: runs of every cell of the grids.
    """
    values = {label: choice.value for label, choice in chosen.items()}
    plain = Options(confidence=study.confidence, allow_diff=True)
    swept = replace(plain, vary=(study.vary,))
    best = _compared(
        [run for cell, runs in confirmed if cell.multiple == 1 for run in runs],
        replace(plain, baseline=study.labels[0] if study.labels else None),
    )
    sweep = _compared([run for _, runs in confirmed for run in runs], swept, values)
    grids = {}
    for name in study.grids:
        found = _compared([run for cell, runs in in_grids if cell.grid == name for run in runs], swept)
        if found is not None:
            grids[name] = found
    named = _compared([run for cell, runs in [*confirmed, *in_grids] for run in _named(cell, runs)], plain)
    every = [one for one in (best, sweep, *grids.values()) if one is not None]
    assert every, "a study has a stage"
    context = replace(
        every[0],
        summaries=[*(named.summaries if named else []), *(s for one in every for s in one.summaries)],
        headrooms=[h for one in every for h in one.headrooms],
    )
    rules = [
        (rule.verdict, [judge(gate, context) for gate in gates])
        for rule, gates in zip(study.rules, study.gates, strict=True)
    ]
    verdict = next((name for name, results in rules if all(r.met for r in results)), study.otherwise)
    return Judged(verdict, rules, best, sweep, grids)


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
