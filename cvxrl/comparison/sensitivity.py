"""Score against one numeric setting: how carefully has it to be chosen?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cvxrl.comparison.options import Options
from cvxrl.comparison.summary import GroupSummary
from cvxrl.stats.bootstrap import Interval

TOLERANCE = 0.1  # share of the best mean score that may be lost


@dataclass(frozen=True)
class Point:
    """One setting of a method.

    Attributes:
        value: the varied key's value.
        label: the group.
        seeds: scored seeds.
        failures: runs that failed in any way.
        mean: mean score.
        interval: of the mean; None with fewer than two seeds.
    """

    value: float
    label: str
    seeds: int
    failures: int
    mean: float
    interval: Interval | None


@dataclass(frozen=True)
class Sensitivity:
    """A method over the values that were tried.

    Attributes:
        method: name of the recipe.
        points: by increasing value.
        best: value with the largest mean score.
        low, high: ends of the unbroken range around it, among the values tried, within 10% of that score.
        ratio: high / low; None unless both are positive.
        open_low, open_high: whether the range ends where the trying ended, so that it may be wider.
    """

    method: str
    points: list[Point]
    best: float
    low: float
    high: float
    ratio: float | None
    open_low: bool
    open_high: bool


def sensitivities(summaries: Sequence[GroupSummary], options: Options) -> list[Sensitivity]:
    """Every method with at least two numeric values of the varied key, in the order of the summaries.

    None of a metric that is not known to be better where it is higher: nothing is best there.
    """
    if not options.higher_is_better:
        return []
    points: dict[str, list[Point]] = {}
    for s in summaries:
        if isinstance(s.value, int | float) and not isinstance(s.value, bool) and s.mean is not None:
            point = Point(float(s.value), s.label, len(s.scores), s.failures, s.mean, s.intervals.get("mean"))
            points.setdefault(s.method, []).append(point)
    return [_of_method(method, found) for method, found in points.items() if len(found) > 1]


def _of_method(method: str, found: list[Point]) -> Sensitivity:
    points = sorted(found, key=lambda p: p.value)
    top = max(range(len(points)), key=lambda i: points[i].mean)
    enough = points[top].mean - TOLERANCE * abs(points[top].mean)
    low = high = top
    while low > 0 and points[low - 1].mean >= enough:
        low -= 1
    while high < len(points) - 1 and points[high + 1].mean >= enough:
        high += 1
    first, last = points[low].value, points[high].value
    return Sensitivity(
        method=method,
        points=points,
        best=points[top].value,
        low=first,
        high=last,
        ratio=last / first if first > 0 else None,
        open_low=low == 0,
        open_high=high == len(points) - 1,
    )
