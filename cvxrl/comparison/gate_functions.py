"""What a `--require` can ask of one method or of two: numbers, and the intervals of those that have one."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from cvxrl.comparison.headroom import Headroom, ratio_of, ratio_range
from cvxrl.comparison.pair import difference_of, improvement, improvement_range, is_of_survivors
from cvxrl.comparison.summary import GroupSummary, Reached
from cvxrl.stats.bootstrap import Interval
from cvxrl.stats.proportion import exact_p

OF_ONE: Mapping[str, Callable[[GroupSummary], float | None]] = {
    "mean": lambda s: s.mean,
    "median": lambda s: s.median,
    "iqm": lambda s: s.iqm,
    "worst": lambda s: s.worst,
    "best": lambda s: s.best,
    "area": lambda s: s.area,
    "seeds": lambda s: len(s.scores),
    "finished": lambda s: s.finished,
    "failures": lambda s: s.failures,
    "failed": lambda s: s.failures / len(s.rows) if s.rows else None,
    "diverged": lambda s: s.kinds["diverged"],
    "fell": lambda s: s.kinds["fell"],
    "harmed": lambda s: s.kinds["harmed"],
    "unlearned": lambda s: s.unlearned,
    "collapsed": lambda s: s.failures,  # as in version 0.1, where it missed runs that diverged
    "unfinished": lambda s: s.unfinished,
    "reached": lambda s: s.reached.count,
    "steps": lambda s: _or_never(s.reached, s.reached.steps),
    "tokens": lambda s: _or_never(s.reached, s.reached.tokens),
    "seconds": lambda s: s.seconds,
}
# Of two methods: a number, and its interval at a confidence where it has one.
OF_TWO: Mapping[str, Callable[[GroupSummary, GroupSummary], float | None]] = {
    "P": improvement,
    "diff": lambda a, b: found.estimate if (found := difference_of(a, b)) else None,
    "p": lambda a, b: found.p_value if (found := difference_of(a, b)) and not is_of_survivors(a, b) else None,
    "fisher": lambda a, b: exact_p(a.failures, len(a.rows), b.failures, len(b.rows)) if a.rows and b.rows else None,
}
# Of one method over all values of the varied key.
OF_SWEEP: Mapping[str, Callable[[Sequence[GroupSummary]], float | None]] = {
    "most": lambda values: max(_means(values), default=None),
    "least": lambda values: min(_means(values), default=None),
}
INTERVAL_OF_ONE: Mapping[str, Callable[[GroupSummary], Interval | None]] = {
    "mean": lambda s: s.intervals.get("mean"),
    "median": lambda s: s.intervals.get("median"),
    "iqm": lambda s: s.intervals.get("iqm"),
    "failed": lambda s: s.failure_interval,
}
INTERVAL_OF_TWO: Mapping[str, Callable[[GroupSummary, GroupSummary, float], Interval | None]] = {
    "P": lambda a, b, confidence: None if is_of_survivors(a, b) else improvement_range(a, b, confidence),
    "diff": lambda a, b, confidence: (
        found.interval(confidence) if (found := difference_of(a, b)) and not is_of_survivors(a, b) else None
    ),
}
# Of one method over all values of the varied key, or of two.
ROOM = "headroom"


def _or_never(reached: Reached, taken: float | None) -> float | None:
    """What it took; infinite where the median run never got there, and None without a score to reach."""
    return math.inf if reached.count is not None and reached.steps is None else taken


def _means(values: Sequence[GroupSummary]) -> list[float]:
    """Of all values that were run, or none of them where a value has lost runs without a score: the rest survived."""
    if any(len(s.scores) < len(s.rows) for s in values):
        return []
    return [s.mean for s in values if s.mean is not None]


def room_of(one: Headroom, other: Headroom | None) -> float | None:
    """Headroom of a method, or its ratio to another's."""
    return one.headroom if other is None else ratio_of(one, other)


def room_range(one: Headroom, other: Headroom | None, confidence: float) -> Interval | None:
    """Interval of `room_of`."""
    return one.headroom_interval if other is None else ratio_range(one, other, confidence)


def or_nan(value: float | None) -> float:
    """A number, or NaN, which meets no requirement."""
    return math.nan if value is None else float(value)


def end_or_nan(end: Callable[[Interval], float], interval: Interval | None) -> float:
    """An end of an interval, or NaN where there is none."""
    return math.nan if interval is None else end(interval)


ENDS: Mapping[str, Callable[[Interval], float]] = {"low": lambda i: i.low, "high": lambda i: i.high}
FUNCTIONS = (
    "P(a > b)",
    "diff(a, b)",
    "p(a, b)",
    "fisher(a, b)",
    *(f"{name}(a)" for name in OF_ONE),
    "headroom(a), headroom(a, b), most(a) and least(a) with --vary",
    "low(...) and high(...) of P, diff, mean, median, iqm, failed and headroom",
)
