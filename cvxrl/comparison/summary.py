"""One method over its seeds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import isclose
from typing import Any

import numpy as np

from cvxrl.comparison.group import Group
from cvxrl.comparison.options import Options
from cvxrl.comparison.outcome import FAILURES, Outcome, outcome_of
from cvxrl.comparison.run import Array, Run
from cvxrl.comparison.score import RunScore, Stability, first_reached, quality_key, score_run, stability_of
from cvxrl.stats.aggregate import Aggregate, iqm, mean, median
from cvxrl.stats.bootstrap import Interval, bootstrap_ends, draw_runs
from cvxrl.stats.proportion import exact_interval, z_of


@dataclass(frozen=True)
class RunRow:
    """One ended run with everything measured on it.

    Attributes:
        label, method, value: its group.
        seed: training seed.
        status: finished, diverged or failed.
        path: where it was read.
        score: see `RunScore`.
        outcome: whether and how it failed.
        stability: see `Stability`.
        reached: step and tokens at which the threshold was reached, or None (censored at the run's end).
    """

    label: str
    method: str
    value: Any
    seed: int
    status: str
    path: str
    score: RunScore
    outcome: Outcome
    stability: Stability
    reached: tuple[float, float | None] | None


@dataclass(frozen=True)
class Reached:
    """How long a method took to a threshold.

    Attributes:
        count: runs that reached it; None without a threshold.
        steps, tokens: median over all runs, those that never did counting as longer than any; None where the median
            run never did, or tokens were not counted.
    """

    count: int | None
    steps: float | None
    tokens: float | None


@dataclass(frozen=True)
class GroupSummary:
    """A method over its seeds.

    Attributes:
        label, method, value: the group.
        seeds: training seeds with a score.
        scores: their scores, in the same order.
        run, finished, unfinished: numbers of runs; `run` is all of them.
        failures: ended runs that failed in any way.
        failure_interval: Clopper and Pearson's, of the share of such runs; None without ended runs.
        kinds: how many failed in each way; a run can fail in two.
        unlearned: ended runs that never rose above their start.
        error: standard error with which one score was measured, over the runs; 0 where it is not known.
        mean, median, iqm, worst, best: of the scores; None without any.
        intervals: of mean, median and iqm; empty with fewer than two seeds, or where nothing varies.
        plain_intervals: the same as uncorrected percentiles, as rliable prints them.
        area: mean over runs of the mean height of their curves.
        reached: steps and tokens to the threshold.
        seconds, tokens: medians over runs.
        rows: the runs.
    """

    label: str
    method: str
    value: Any
    seeds: list[int]
    scores: list[float]
    run: int
    finished: int
    unfinished: int
    failures: int
    failure_interval: Interval | None
    kinds: dict[str, int]
    unlearned: int
    error: float
    mean: float | None
    median: float | None
    iqm: float | None
    worst: float | None
    best: float | None
    area: float | None
    reached: Reached
    seconds: float | None
    tokens: float | None
    intervals: dict[str, Interval] = field(default_factory=dict)
    plain_intervals: dict[str, Interval] = field(default_factory=dict)
    rows: list[RunRow] = field(default_factory=list)

    @property
    def by_seed(self) -> dict[int, float]:
        """Score of each seed."""
        return dict(zip(self.seeds, self.scores, strict=True))

    @property
    def score_N(self) -> Array:
        """Scores as an array."""
        return np.array(self.scores, dtype=float)


_AGGREGATES: dict[str, Aggregate] = {"mean": mean, "median": median, "iqm": iqm}


def measure(run: Run, group: Group, options: Options, threshold: float | None) -> RunRow:
    """Everything about one ended run."""
    return RunRow(
        label=group.label,
        method=group.method,
        value=group.value,
        seed=run.seed,
        status=run.status,
        path=str(run.path),
        score=score_run(run, options),
        outcome=outcome_of(run, quality_key(options), options),
        stability=stability_of(run, options.spike),
        reached=None if threshold is None else first_reached(run, options.metric, threshold),
    )


def summarise(group: Group, options: Options, threshold: float | None) -> GroupSummary:
    """Numbers of one method."""
    rows = [measure(run, group, options, threshold) for run in group.runs]
    failures = sum(row.outcome.failed for row in rows)
    error = float(np.sqrt(np.mean([row.score.error**2 for row in rows]))) if rows else 0.0
    scored = [(row.seed, row.score.score) for row in rows if row.score.score is not None]
    scores = np.array([score for _, score in scored], dtype=float)
    point = {name: float(of(scores[:, None])) for name, of in _AGGREGATES.items()} if len(scores) else {}
    ends = _bootstrap(group.label, scores, options)
    least = z_of(options.confidence) * error / np.sqrt(max(1, len(scores)))
    return GroupSummary(
        label=group.label,
        method=group.method,
        value=group.value,
        seeds=[seed for seed, _ in scored],
        scores=[float(s) for s in scores],
        run=len(rows) + len(group.unfinished),
        finished=sum(row.status == "finished" for row in rows),
        unfinished=len(group.unfinished),
        failures=failures,
        failure_interval=exact_interval(failures, len(rows), options.confidence) if rows else None,
        kinds={kind: sum(kind in row.outcome.failures for row in rows) for kind in FAILURES},
        unlearned=sum(row.outcome.unlearned for row in rows),
        error=error,
        mean=point.get("mean"),
        median=point.get("median"),
        iqm=point.get("iqm"),
        worst=float(scores.min()) if len(scores) else None,
        best=float(scores.max()) if len(scores) else None,
        area=over(rows, lambda r: r.score.area, np.mean),
        reached=_reached(rows) if threshold is not None else Reached(None, None, None),
        seconds=over(rows, lambda r: r.score.seconds, np.median),
        tokens=over(rows, lambda r: r.score.tokens, np.median),
        intervals=_intervals(ends, point, least, options),
        plain_intervals={name: plain.within(*options.bounds) for name, (plain, _) in ends.items()},
        rows=rows,
    )


def over(rows: Sequence[RunRow], of: Callable[[RunRow], float | None], how: Callable[..., Any]) -> float | None:
    """Aggregate of a number over the runs that have it."""
    values = [value for row in rows if (value := of(row)) is not None]
    return float(how(values)) if values else None


def generator(options: Options, *names: str) -> np.random.Generator:
    """Random numbers that belong to one quantity, so that adding a method changes no other number."""
    return np.random.default_rng([options.statistics_seed, *"\n".join(names).encode()])


def _bootstrap(label: str, scores: Array, options: Options) -> dict[str, tuple[Interval, Interval]]:
    """Intervals of the aggregates, plain and stretched for few seeds, over the same resamples; none below two seeds."""
    if len(scores) < 2:
        return {}
    score_N1 = scores[:, None]
    drawn = draw_runs(score_N1, generator(options, "interval", label), options.resamples)
    return {name: bootstrap_ends(score_N1, drawn, of, options.confidence) for name, of in _AGGREGATES.items()}


def _intervals(
    ends: Mapping[str, tuple[Interval, Interval]], point: Mapping[str, float], least: float, options: Options
) -> dict[str, Interval]:
    """The stretched ones, never narrower than the evaluations' own error makes them: ``least`` on either side."""
    found = {}
    for name, (_, stretched) in ends.items():
        wide = Interval(min(stretched.low, point[name] - least), max(stretched.high, point[name] + least))
        # Tied scores of unknown error say nothing about how far they would spread, nor does the rounding of their mean.
        if not isclose(wide.low, wide.high, rel_tol=1e-12):
            found[name] = wide.within(*options.bounds)
    return found


def _reached(rows: Sequence[RunRow]) -> Reached:
    """Medians with the runs that never reached the threshold counting as infinitely long."""
    if not rows:
        return Reached(0, None, None)
    never = (np.inf, np.inf)
    steps, tokens = np.array([row.reached or never for row in rows], dtype=float).T
    with np.errstate(invalid="ignore"):  # the mean of two infinities is one
        medians = [float(np.median(values)) for values in (steps, tokens)]
    known = [value if np.isfinite(value) else None for value in medians]
    return Reached(sum(row.reached is not None for row in rows), known[0], known[1])
