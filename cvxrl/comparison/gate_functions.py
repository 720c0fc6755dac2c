"""What a `--require` can ask of one method or of two: numbers, and the intervals of those that have one."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from cvxrl.comparison.pair import difference_of, improvement, improvement_range
from cvxrl.comparison.summary import GroupSummary
from cvxrl.stats.bootstrap import Interval

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
    "steps": lambda s: s.reached.steps if s.reached.steps is not None else math.inf,
    "tokens": lambda s: s.reached.tokens if s.reached.steps is not None else math.inf,
    "seconds": lambda s: s.seconds,
}
# Of two methods: a number, and its interval at a confidence where it has one.
OF_TWO: Mapping[str, Callable[[GroupSummary, GroupSummary], float | None]] = {
    "P": improvement,
    "diff": lambda a, b: found.estimate if (found := difference_of(a, b)) else None,
    "p": lambda a, b: found.p_value if (found := difference_of(a, b)) else None,
}
INTERVAL_OF_ONE: Mapping[str, Callable[[GroupSummary], Interval | None]] = {
    "mean": lambda s: s.intervals.get("mean"),
    "median": lambda s: s.intervals.get("median"),
    "iqm": lambda s: s.intervals.get("iqm"),
    "failed": lambda s: s.failure_interval,
}
INTERVAL_OF_TWO: Mapping[str, Callable[[GroupSummary, GroupSummary, float], Interval | None]] = {
    "P": improvement_range,
    "diff": lambda a, b, confidence: found.interval(confidence) if (found := difference_of(a, b)) else None,
}
ENDS: Mapping[str, Callable[[Interval], float]] = {"low": lambda i: i.low, "high": lambda i: i.high}
FUNCTIONS = (
    "P(a > b)",
    "diff(a, b)",
    "p(a, b)",
    *(f"{name}(a)" for name in OF_ONE),
    "low(...) and high(...) of P, diff, mean, median, iqm and failed",
)
