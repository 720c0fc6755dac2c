"""What a reader of the numbers has to know besides them."""

from __future__ import annotations

from collections.abc import Sequence

from cvxrl.comparison.group import Group
from cvxrl.comparison.options import FEW_SEEDS, Options, is_quality
from cvxrl.comparison.pair import FEWEST
from cvxrl.comparison.run import Run, broke_off
from cvxrl.comparison.score import curve
from cvxrl.comparison.summary import GroupSummary
from cvxrl.errors import Problem

_NAMED = 5  # methods named in one sentence


def find_warnings(groups: Sequence[Group], summaries: Sequence[GroupSummary], options: Options) -> list[str]:
    """One sentence each: unfinished runs, few or different seeds, diverged runs, different code or machines."""
    found = [
        f"unfinished, so no verdict: {run.path}: {', '.join([run.status, *run.doubts])}; "
        "go on with `cvxrl train RECIPE --resume`, or --count-unfinished"
        for group in groups
        for run in group.unfinished
    ]
    found += _about_doubts(groups)
    few = [f"{s.label} ({len(s.scores)})" for s in summaries if len(s.scores) < FEW_SEEDS]
    if few:
        named = ", ".join(few[:_NAMED]) + (f" and {len(few) - _NAMED} more" if len(few) > _NAMED else "")
        found.append(f"fewer than {FEW_SEEDS} scored seeds, intervals are wide and unsure: {named}")
    seeds = {tuple(s.seeds) for s in summaries if s.scores}
    if len(seeds) > 1:
        found.append("the methods did not run the same seeds; only common ones count as pairs")
    found += _about_diverged(groups, options)
    found += _about_provenance(groups)
    return found


def too_few_seeds(summaries: Sequence[GroupSummary], options: Options) -> list[Problem]:
    """A method with one seed cannot be compared; in a sweep it is only a point without an interval."""
    if options.vary:
        return []
    return [
        Problem(
            f"{len(s.scores) or 'no'} scored seed{'' if len(s.scores) == 1 else 's'}; an interval needs {FEWEST}, "
            f"{FEW_SEEDS} are advised",
            file=s.label,
            remedy="train more: cvxrl compare RECIPE... --seeds 0-4",
        )
        for s in summaries
        if len(s.scores) < FEWEST
    ]


def _about_doubts(groups: Sequence[Group]) -> list[str]:
    """What the runs' sources have doubts about, and what could not be checked; each once, with a run it applies to."""
    doubted: dict[str, list[Run]] = {}
    for run in (run for g in groups for run in g.runs):
        unknown = [name for name, value in (("recipe", run.recipe), ("task", run.task)) if value is None]
        unchecked = [f"{' and '.join(unknown)} not known, so differences are not checked"] if unknown else []
        for doubt in (*run.doubts, *unchecked):
            doubted.setdefault(doubt, []).append(run)
    return [
        f"{runs[0].path}{f' and {len(runs) - 1} more' if len(runs) > 1 else ''}: {doubt}"
        for doubt, runs in doubted.items()
    ]


def _about_diverged(groups: Sequence[Group], options: Options) -> list[str]:
    ended = [run for g in groups for run in g.runs if broke_off(run)]
    count = len(ended)
    if not count:
        return []
    if options.diverged_as == "omit":
        return [f"{count} diverged or failed runs are left out of the scores, so there is no verdict on their methods"]
    if options.diverged_as == "last" or not is_quality(options.metric):
        gone = sum(not len(curve(run, options.metric, options).value_T) for run in ended)
        lost = f"; {gone} of them have none, so there is no verdict on their methods" if gone else ""
        return [f"{count} diverged or failed runs count with their last value of {options.metric}{lost}"]
    return [f"{count} diverged or failed runs count as {options.diverged_as:g} (--diverged-as)"]


def _about_provenance(groups: Sequence[Group]) -> list[str]:
    """Differences of code, versions or machine between the runs."""
    facts: dict[str, set[str]] = {}
    for run in (run for g in groups for run in g.runs):
        for name, value in run.origin.items():
            facts.setdefault(name, set()).add(value)
    unlike = [name for name, values in facts.items() if len(values) > 1]
    return [f"the runs differ in more than their recipes: {', '.join(unlike)}"] if unlike else []
