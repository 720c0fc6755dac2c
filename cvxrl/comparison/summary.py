"""One method over its seeds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cvxrl.comparison.group import Group
from cvxrl.comparison.options import Options
from cvxrl.comparison.run import Array, Run
from cvxrl.comparison.score import RunScore, Stability, first_reached, score_run, stability_of
from cvxrl.stats.aggregate import Aggregate, iqm, mean, median
from cvxrl.stats.bootstrap import Interval, bootstrap_interval


@dataclass(frozen=True)
class RunRow:
    """One ended run with everything measured on it.

    Attributes:
        label, method, value: its group.
        seed: training seed.
        status: finished or diverged.
        path: where it was read.
        score: see `RunScore`.
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
    stability: Stability
    reached: tuple[float, float | None] | None


@dataclass(frozen=True)
class Reached:
    """How long a method took to a threshold.

    Attributes:
        count: runs that reached it.
        steps, tokens: median over all runs, those that never did counting as longer than any; None where the median
            run never did, or tokens were not counted.
    """

    count: int
    steps: float | None
    tokens: float | None


@dataclass(frozen=True)
class GroupSummary:
    """A method over its seeds.

    Attributes:
        label, method, value: the group.
        seeds: training seeds with a score.
        scores: their scores, in the same order.
        run, finished, diverged, collapsed, unfinished: numbers of runs; `run` is all of them.
        mean, median, iqm, worst, best: of the scores; None without any.
        intervals: of mean, median and iqm; empty with fewer than two seeds.
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
    diverged: int
    collapsed: int
    unfinished: int
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
    def score_N(self) -> Array:
        """Scores as an array."""
        return np.array(self.scores, dtype=float)


_AGGREGATES: dict[str, Aggregate] = {"mean": mean, "median": median, "iqm": iqm}


def measure(run: Run, group: Group, options: Options, threshold: float) -> RunRow:
    """Everything about one ended run."""
    return RunRow(
        label=group.label,
        method=group.method,
        value=group.value,
        seed=run.seed,
        status=run.status,
        path=str(run.path),
        score=score_run(run, options),
        stability=stability_of(run, options.spike),
        reached=first_reached(run, options.metric, threshold),
    )


def summarise(group: Group, options: Options, threshold: float) -> GroupSummary:
    """Numbers of one method."""
    rows = [measure(run, group, options, threshold) for run in group.runs]
    scored = [(row.seed, row.score.score) for row in rows if row.score.score is not None]
    scores = np.array([score for _, score in scored], dtype=float)
    point = {name: float(of(scores[:, None])) for name, of in _AGGREGATES.items()} if len(scores) else {}
    return GroupSummary(
        label=group.label,
        method=group.method,
        value=group.value,
        seeds=[seed for seed, _ in scored],
        scores=[float(s) for s in scores],
        run=len(rows) + len(group.unfinished),
        finished=sum(row.status == "finished" for row in rows),
        diverged=sum(row.status == "diverged" for row in rows),
        collapsed=sum(row.score.collapsed for row in rows),
        unfinished=len(group.unfinished),
        mean=point.get("mean"),
        median=point.get("median"),
        iqm=point.get("iqm"),
        worst=float(scores.min()) if len(scores) else None,
        best=float(scores.max()) if len(scores) else None,
        area=over(rows, lambda r: r.score.area, np.mean),
        reached=_reached(rows),
        seconds=over(rows, lambda r: r.score.seconds, np.median),
        tokens=over(rows, lambda r: r.score.tokens, np.median),
        intervals=_intervals(group.label, scores, options, corrected=True),
        plain_intervals=_intervals(group.label, scores, options, corrected=False),
        rows=rows,
    )


def over(rows: Sequence[RunRow], of: Callable[[RunRow], float | None], how: Callable[..., Any]) -> float | None:
    """Aggregate of a number over the runs that have it."""
    values = [value for row in rows if (value := of(row)) is not None]
    return float(how(values)) if values else None


def generator(options: Options, *names: str) -> np.random.Generator:
    """Random numbers that belong to one quantity, so that adding a method changes no other number."""
    return np.random.default_rng([options.statistics_seed, *"\n".join(names).encode()])


def _intervals(label: str, scores: Array, options: Options, corrected: bool) -> dict[str, Interval]:
    if len(scores) < 2:
        return {}
    found = {}
    for name, aggregate in _AGGREGATES.items():
        interval = bootstrap_interval(
            scores[:, None],
            aggregate,
            generator(options, "interval", label),
            confidence=options.confidence,
            resamples=options.resamples,
            corrected=corrected,
        )
        found[name] = interval.within(*options.bounds)
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
