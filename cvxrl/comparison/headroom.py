"""Stability as an outcome: the value of a setting at which half the seeds of a method fail, over its best value.

Everything is told on a logarithmic scale of a positive setting, such as the learning rate, towards whose larger values
runs fail. The best value is the one with the largest mean score among those that were tried, chosen on the same runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from cvxrl.comparison.options import Options
from cvxrl.comparison.run import Array
from cvxrl.comparison.summary import GroupSummary, generator
from cvxrl.stats.bootstrap import Interval
from cvxrl.stats.failure_curve import fit_failures
from cvxrl.stats.headroom import best_draws, headroom_draws, headroom_interval, ratio_interval

Verdict = Literal["more", "less", "not resolved", "unfinished", "no verdict"]

_DRAWN = 60  # values at which the curve is kept
_FEWEST = 2  # values that make a curve, and seeds at each that make a choice of the best one uncertain


@dataclass(frozen=True)
class Trial:
    """Failures at one value.

    Attributes:
        value: of the varied key.
        label: the group.
        failures, runs: failed and all ended runs.
        interval: Clopper and Pearson's, of the share that fails.
    """

    value: float
    label: str
    failures: int
    runs: int
    interval: Interval


@dataclass(frozen=True)
class FittedShares:
    """Share that fails over the tried range: fitted, and the ends of its pointwise interval; empty where it falls."""

    values: list[float]
    share: list[float]
    low: list[float]
    high: list[float]


@dataclass(frozen=True)
class Headroom:
    """A method over the values of a positive setting.

    An interval's end is open where it lies beyond the tried values: 0 below, infinity above.

    Attributes:
        method: its name.
        trials: by increasing value.
        curve: probit curve over the logarithm of the value (`cvxrl.stats.failure_curve`).
        half: value at which half the runs fail; None where that is beyond the tried ones, or failures fall with it.
        beyond: "above" or "below" the tried values, then; None where failures fall, so that nothing is known.
        half_interval: of it.
        best: tried value with the largest mean score, or one fixed beforehand; None without scores, or of a metric of
            which more is not better.
        headroom: half / best; None where either is.
        headroom_interval: of it; None without a best value, with fewer than two seeds at some value, or with runs left
            out of the scores.
        unfinished: runs that have not ended.
        draws: bounds of its logarithm in every draw, for ratios, shape (2, draws); (2, 0) without its interval.
    """

    method: str
    trials: list[Trial]
    curve: FittedShares
    half: float | None
    beyond: str | None
    half_interval: Interval
    best: float | None
    headroom: float | None
    headroom_interval: Interval | None
    unfinished: int
    draws: Array = field(repr=False, compare=False)


@dataclass(frozen=True)
class HeadroomPair:
    """One method's headroom against the baseline's.

    Attributes:
        method, baseline: the two methods.
        ratio: headroom over the baseline's; None where one of them has none.
        ratio_interval: at a confidence that holds for all comparisons of the table together (Bonferroni).
        verdict: more, less, not resolved, unfinished, or no verdict: what the interval says.
    """

    method: str
    baseline: str
    ratio: float | None
    ratio_interval: Interval | None
    verdict: Verdict


def headrooms(
    summaries: Sequence[GroupSummary], options: Options, fixed: Mapping[str, float] | None = None
) -> list[Headroom]:
    """Every method with ended runs at two positive values of the varied key or more, in the order of the summaries.

    Args:
        summaries: groups.
        options: of the comparison.
        fixed: best values of methods that were chosen beforehand, on other runs; they have no uncertainty here.
    """
    tried: dict[str, list[GroupSummary]] = {}
    for s in summaries:
        if isinstance(s.value, int | float) and not isinstance(s.value, bool) and s.value > 0:
            tried.setdefault(s.method, []).append(s)
    ended = {method: [s for s in found if s.rows] for method, found in tried.items()}
    return [
        _of_method(method, found, sum(s.unfinished for s in tried[method]), options, (fixed or {}).get(method))
        for method, found in ended.items()
        if len(found) >= _FEWEST
    ]


def compare_headrooms(found: Sequence[Headroom], baseline: str, options: Options) -> list[HeadroomPair]:
    """Each method's headroom over that of the baseline; none where it has none."""
    base = next((h for h in found if h.method == baseline), None)
    others = [h for h in found if h is not base]
    if base is None:
        return []
    tested = sum(ratio_range(other, base, options.confidence) is not None for other in others)
    together = 1 - (1 - options.confidence) / max(1, tested)
    return [_compare(other, base, together) for other in others]


def ratio_of(one: Headroom, other: Headroom) -> float | None:
    """Ratio of two headrooms; None where one has none."""
    return None if one.headroom is None or other.headroom is None else one.headroom / other.headroom


def ratio_range(one: Headroom, other: Headroom, confidence: float) -> Interval | None:
    """Interval of the ratio of two headrooms; None where one has none."""
    if not one.draws.size or not other.draws.size:
        return None
    return ratio_interval(one.draws, other.draws, confidence)


def _of_method(
    method: str, found: list[GroupSummary], unfinished: int, options: Options, fixed: float | None
) -> Headroom:
    groups = sorted(found, key=lambda s: float(s.value))
    trials = [
        Trial(float(s.value), s.label, s.failures, len(s.rows), s.failure_interval)
        for s in groups
        if s.failure_interval is not None
    ]
    values = [t.value for t in trials]
    curve = fit_failures(values, [{row.seed: row.outcome.failed for row in s.rows} for s in groups])
    drawn_T = np.geomspace(values[0], values[-1], 0 if curve.falls else _DRAWN)
    low_T, high_T = curve.band(drawn_T, options.confidence)
    best, best_R = (
        _chosen(method, groups, options) if fixed is None else (fixed, np.full(options.resamples, np.log(fixed)))
    )
    draws = headroom_draws(curve, best_R, generator(options, "half fail", method))
    return Headroom(
        method=method,
        trials=trials,
        curve=FittedShares(drawn_T.tolist(), curve.shares(drawn_T).tolist(), low_T.tolist(), high_T.tolist()),
        half=curve.half,
        beyond=curve.beyond,
        half_interval=curve.half_interval(options.confidence),
        best=best,
        headroom=None if curve.half is None or best is None else curve.half / best,
        headroom_interval=headroom_interval(draws, options.confidence) if draws.size else None,
        unfinished=unfinished,
        draws=draws,
    )


def _chosen(method: str, groups: Sequence[GroupSummary], options: Options) -> tuple[float | None, Array]:
    """Value with the largest mean score, and its logarithm in resamples of the seeds; none where it cannot be told."""
    scored = [s for s in groups if s.scores] if options.higher_is_better else []
    if not scored:
        return None, np.empty(0)
    best = float(max(scored, key=lambda s: s.mean or 0.0).value)
    whole = all(len(s.scores) == len(s.rows) for s in groups)  # or survivors alone would choose
    if not whole or min(len(s.scores) for s in scored) < _FEWEST:
        return best, np.empty(0)
    return best, best_draws(
        [float(s.value) for s in scored],
        [s.by_seed for s in scored],
        [s.error for s in scored],
        generator(options, "best value", method),
        confidence=options.confidence,
        resamples=options.resamples,
    )


def _compare(one: Headroom, base: Headroom, confidence: float) -> HeadroomPair:
    interval = ratio_range(one, base, confidence)
    verdict: Verdict = "not resolved"
    if one.unfinished or base.unfinished:
        verdict = "unfinished"
    elif interval is None:
        verdict = "no verdict"
    elif interval.low > 1:
        verdict = "more"
    elif interval.high < 1:
        verdict = "less"
    return HeadroomPair(one.method, base.method, ratio_of(one, base), interval, verdict)
