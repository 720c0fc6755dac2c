"""The whole comparison: everything that tables, files and figures show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from cvxrl.comparison.factors import Factor, find_factors, refuse_other_tasks, refuse_undeclared
from cvxrl.comparison.group import Group, check_vary, make_groups
from cvxrl.comparison.headroom import Headroom, HeadroomPair, compare_headrooms, headrooms
from cvxrl.comparison.maps import FactorMap, factor_maps
from cvxrl.comparison.options import Options
from cvxrl.comparison.pair import Pair, compare_pairs
from cvxrl.comparison.run import Run, broke_off
from cvxrl.comparison.sensitivity import Sensitivity, sensitivities
from cvxrl.comparison.summary import GroupSummary, summarise
from cvxrl.comparison.warnings import find_warnings, too_few_seeds
from cvxrl.errors import Problem, UserError, suggest


@dataclass(frozen=True)
class Comparison:
    """Result of `cvxrl compare`.

    Attributes:
        options: what was asked, with the threshold filled in.
        groups: the runs behind the summaries, in the same order.
        summaries: one per method (and varied value), in the order given.
        pairs: comparisons with the baseline.
        factors: recipe keys in which the groups differ.
        sensitivities: score against the varied key, per method.
        headrooms: failures against the varied key, per method, where its values are positive.
        headroom_pairs: comparisons of those with the baseline's.
        maps: score and failures over two varied keys, per method; empty unless there are two.
        warnings: what a reader should know.
        problems: what could not be used; makes the exit code 2.
    """

    options: Options
    groups: list[Group]
    summaries: list[GroupSummary]
    pairs: list[Pair]
    factors: list[Factor]
    sensitivities: list[Sensitivity]
    headrooms: list[Headroom]
    headroom_pairs: list[HeadroomPair]
    maps: list[FactorMap]
    warnings: list[str]
    problems: list[Problem]

    def summary(self, label: str) -> GroupSummary:
        """Summary of a group."""
        return next(s for s in self.summaries if s.label == label)

    def headroom(self, method: str) -> Headroom:
        """Headroom of a method."""
        return next(h for h in self.headrooms if h.method == method)


def build(
    runs: Sequence[Run],
    options: Options,
    problems: Sequence[Problem] = (),
    best: Mapping[str, float] | None = None,
) -> Comparison:
    """Compare runs.

    Args:
        runs: readable runs.
        options: what is asked.
        problems: what was found wrong before, such as unreadable runs; carried along.
        best: values of the varied key that were chosen beforehand, by method; otherwise these runs choose.

    Raises:
        UserError: there is nothing to compare, or what there is differs in more than the declared factor.
    """
    kept = [run for run in runs if options.seeds is None or run.seed in options.seeds]
    found = list(problems)
    if options.vary and kept and (unknown := check_vary(kept, options.vary)):
        raise UserError(*found, *unknown)
    groups, mixed, warnings = make_groups(kept, options)
    found += mixed
    found += _unscored(groups, options)
    groups = [g for g in groups if g.runs or g.unfinished]
    if not any(g.runs for g in groups):
        raise UserError(*(found or [_nothing(kept, options)]))
    factors = find_factors(groups, options)
    refused = refuse_other_tasks(groups, options)
    refused += [] if options.allow_diff else refuse_undeclared(factors)
    if refused:
        raise UserError(*found, *refused)
    options = replace(options, threshold=options.threshold_or_default)
    summaries = [summarise(group, options, options.threshold) for group in groups]
    pairs = compare_pairs(_against_baseline(summaries, options), options)
    rooms = headrooms(summaries, options, best) if options.vary else []
    return Comparison(
        options=options,
        groups=groups,
        summaries=summaries,
        pairs=pairs,
        factors=factors,
        sensitivities=sensitivities(summaries, options) if options.vary else [],
        headrooms=rooms,
        headroom_pairs=compare_headrooms(rooms, _baseline_method(summaries, options), options),
        maps=factor_maps(summaries, options.vary),
        warnings=[*warnings, *find_warnings(groups, summaries, options)],
        problems=[*found, *too_few_seeds(summaries, options)],
    )


def _nothing(runs: Sequence[Run], options: Options) -> Problem:
    if runs:
        states = ", ".join(sorted({run.status for run in runs}))
        return Problem(f"no run has ended (status: {states})", remedy="wait, or go on with cvxrl train RECIPE --resume")
    text = "no runs to compare" if options.seeds is None else "no runs with these seeds"
    return Problem(text, "" if options.seeds is None else "--seeds", remedy="give run directories, or recipes to train")


def _unscored(groups: Sequence[Group], options: Options) -> list[Problem]:
    """A metric that a scored run never recorded."""
    runs = [run for group in groups for run in group.runs]
    lacking = [run for run in runs if not len(run.series(options.metric).step_T) and not broke_off(run)]
    if not lacking:
        return []
    known = sorted({key for run in runs for key in run.metrics})
    if len(lacking) < len(runs) or options.metric in known:
        return [
            Problem(f"has no value of `{options.metric}`", file=str(run.path), remedy="leave it out, or choose another")
            for run in lacking
        ]
    hint = suggest(options.metric, known, cutoff=0.4)
    unsure = dict.fromkeys(doubt for run in runs for doubt in run.doubts if f"`{options.metric}`" in doubt)
    what = "; ".join([f"no run recorded `{options.metric}`", *unsure])
    raise UserError(Problem(what, "--metric", remedy=f"{hint}recorded: {', '.join(known)}"))


def _baseline_method(summaries: Sequence[GroupSummary], options: Options) -> str:
    """The method that the baseline, a method or a group of one, belongs to; the first one without any."""
    named = (s.method for s in summaries if options.baseline in (s.method, s.label))
    return next(named, summaries[0].method)


def _against_baseline(summaries: Sequence[GroupSummary], options: Options) -> list[tuple[GroupSummary, GroupSummary]]:
    """(method, baseline) pairs: with a varied key, a method's runs meet the baseline's runs of the same value."""
    name = options.baseline or summaries[0].method
    scored = [s for s in summaries if s.scores]
    exact = [s for s in summaries if s.label == name]
    if exact and options.baseline:
        return [(s, exact[0]) for s in scored if s is not exact[0] and exact[0].scores]
    bases = {s.value: s for s in summaries if s.method == name}
    if not bases:
        known = list(dict.fromkeys(n for s in summaries for n in (s.method, s.label)))
        remedy = f"{suggest(name, known)}choose one of {', '.join(known)}"
        raise UserError(Problem(f"no method `{name}`", "--baseline", remedy=remedy))
    return [(s, bases[s.value]) for s in scored if s.method != name and s.value in bases and bases[s.value].scores]
