"""Two methods against one another: difference of the means, probability of improvement, and a verdict in words.

The verdict, its p-value and the interval of the difference are one test, corrected alike: "better" is said exactly
where the interval lies above 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from cvxrl.comparison.options import Options
from cvxrl.comparison.summary import GroupSummary, generator
from cvxrl.stats.bootstrap import Interval
from cvxrl.stats.difference import MeanDifference, mean_difference, needed_seeds
from cvxrl.stats.improvement import bootstrap_improvement_interval, improvement_interval, probability_of_improvement

FEWEST = 2  # seeds per method without which there is no interval

Verdict = Literal["better", "worse", "higher", "lower", "not resolved", "unfinished", "no verdict"]


@dataclass(frozen=True)
class Pair:
    """One method against the baseline.

    Attributes:
        label, baseline: the two groups.
        seeds, baseline_seeds: numbers of scored seeds.
        paired_seeds: seeds that both ran; their covariance is part of the error.
        difference: mean score minus the baseline's; a run that diverged or failed has a score too.
        difference_interval: Student's, at a confidence that holds for all comparisons of the table together
            (Bonferroni); None with too few seeds, or where nothing varies.
        improvement: P(score > baseline score) over all pairs of runs.
        improvement_interval: Newcombe's score interval, at the same confidence.
        plain_improvement_interval: rliable's bootstrap interval, uncorrected.
        p_value: that of the difference, for this comparison alone.
        p_adjusted: times the number of comparisons, at most 1.
        verdict: better, worse (or higher, lower), not resolved, unfinished, or no verdict.
        seeds_needed: fewest seeds per method with which the largest difference that the interval allows would be found;
            None where the verdict is resolved or nothing varies.
    """

    label: str
    baseline: str
    seeds: int
    baseline_seeds: int
    paired_seeds: int = 0
    difference: float | None = None
    difference_interval: Interval | None = None
    improvement: float | None = None
    improvement_interval: Interval | None = None
    plain_improvement_interval: Interval | None = None
    p_value: float | None = None
    p_adjusted: float | None = None
    verdict: Verdict = "no verdict"
    seeds_needed: int | None = None


def compare_pairs(pairs: Sequence[tuple[GroupSummary, GroupSummary]], options: Options) -> list[Pair]:
    """Each (method, baseline), at a confidence that holds for all of them together."""
    tested = sum(min(len(one.scores), len(base.scores)) >= FEWEST for one, base in pairs)
    together = 1 - (1 - options.confidence) / max(1, tested)
    return [_measure(one, base, options, tested, together) for one, base in pairs]


def difference_of(one: GroupSummary, other: GroupSummary) -> MeanDifference | None:
    """Difference of the means with its error, or None where a method has fewer than two scores."""
    if min(len(one.scores), len(other.scores)) < FEWEST:
        return None
    return mean_difference(one.by_seed, other.by_seed, one.error, other.error)


def improvement(one: GroupSummary, other: GroupSummary) -> float | None:
    """P(one > other), or None where a method has fewer than two scores."""
    if min(len(one.scores), len(other.scores)) < FEWEST:
        return None
    return float(probability_of_improvement(one.score_N[:, None], other.score_N[:, None]))


def improvement_range(one: GroupSummary, other: GroupSummary, confidence: float) -> Interval | None:
    """Interval of P(one > other), or None where a method has fewer than two scores."""
    if min(len(one.scores), len(other.scores)) < FEWEST:
        return None
    return improvement_interval(one.score_N, other.score_N, confidence)


def is_of_survivors(one: GroupSummary, other: GroupSummary) -> bool:
    """Whether runs of either have no score: those that have one did not break, and prove nothing of the method."""
    return one.run > len(one.scores) or other.run > len(other.scores)


def _measure(one: GroupSummary, base: GroupSummary, options: Options, tested: int, together: float) -> Pair:
    empty = Pair(one.label, base.label, len(one.scores), len(base.scores))
    found = difference_of(one, base)
    if found is None:
        only = None if one.mean is None or base.mean is None else one.mean - base.mean
        return replace(empty, difference=only)
    interval, p_value = found.interval(together), found.p_value
    verdict = _verdict(one, base, found, interval, options)
    fewest = min(len(one.scores), len(base.scores))
    return replace(
        empty,
        paired_seeds=found.shared,
        difference=found.estimate,
        difference_interval=interval,
        improvement=improvement(one, base),
        improvement_interval=improvement_range(one, base, together),
        plain_improvement_interval=bootstrap_improvement_interval(
            one.score_N[:, None],
            base.score_N[:, None],
            generator(options, "improvement", one.label, base.label),
            confidence=options.confidence,
            resamples=options.resamples,
        ),
        p_value=p_value,
        p_adjusted=None if p_value is None else min(1.0, p_value * tested),
        verdict=verdict,
        seeds_needed=needed_seeds(found, fewest, together, options.power) if verdict == "not resolved" else None,
    )


def _verdict(
    one: GroupSummary, base: GroupSummary, found: MeanDifference, interval: Interval | None, options: Options
) -> Verdict:
    """What the interval says, where every run that was begun is in it."""
    if one.unfinished or base.unfinished:
        return "unfinished"
    if is_of_survivors(one, base) or interval is None or not math.isfinite(interval.high - interval.low):
        return "no verdict"
    if interval.low <= 0 <= interval.high:
        return "not resolved"
    up, down = ("better", "worse") if options.higher_is_better else ("higher", "lower")
    return up if found.estimate > 0 else down  # type: ignore[return-value]
