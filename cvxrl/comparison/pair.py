"""Two methods against one another: difference, probability of improvement, and a verdict in words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from cvxrl.comparison.options import Options
from cvxrl.comparison.run import Array
from cvxrl.comparison.summary import GroupSummary, generator
from cvxrl.stats.bootstrap import Interval, paired_interval, unpaired_interval
from cvxrl.stats.improvement import bootstrap_improvement_interval, improvement_interval, probability_of_improvement
from cvxrl.stats.permutation import holm, permutation_p_value, required_seeds, sign_flip_p_value

FEWEST = 2  # seeds per method without which there is no interval


@dataclass(frozen=True)
class Pair:
    """One method against the baseline.

    Attributes:
        label, baseline: the two groups.
        seeds, baseline_seeds: numbers of scored seeds.
        paired_seeds: seeds that both ran; fewer than two are not paired.
        difference: mean over the paired seeds of score minus baseline score (unpaired: difference of the means).
        difference_interval: its interval.
        improvement: P(score > baseline score) over all pairs of runs.
        improvement_interval: Newcombe's score interval.
        plain_improvement_interval: rliable's bootstrap interval.
        p_value: permutation test over all runs.
        p_adjusted: after Holm's correction over the comparisons of the table.
        sign_flip_p_value: test on the paired differences; None where nothing is paired.
        verdict: better, worse (or higher, lower), not resolved, or no verdict.
        seeds_needed: seeds per method that would resolve the observed difference; None where resolved or hopeless.
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
    sign_flip_p_value: float | None = None
    verdict: str = "no verdict"
    seeds_needed: int | None = None


def compare_pairs(pairs: Sequence[tuple[GroupSummary, GroupSummary]], options: Options) -> list[Pair]:
    """Each (method, baseline) on its own, then Holm's correction and verdicts over all of them."""
    measured = [_measure(one, base, options) for one, base in pairs]
    tested = [i for i, pair in enumerate(measured) if pair.p_value is not None]
    adjusted = holm([p for pair in measured if (p := pair.p_value) is not None])
    level = (1 - options.confidence) / max(1, len(tested))
    for i, p_adjusted in zip(tested, adjusted, strict=True):
        one, base = pairs[i]
        measured[i] = _judge(replace(measured[i], p_adjusted=p_adjusted), one.score_N, base.score_N, options, level)
    return measured


def improvement(one: GroupSummary, other: GroupSummary) -> float | None:
    """P(one > other), or None where a method has fewer than two scores."""
    if min(len(one.scores), len(other.scores)) < FEWEST:
        return None
    return float(probability_of_improvement(one.score_N[:, None], other.score_N[:, None]))


def difference(one: GroupSummary, other: GroupSummary) -> float | None:
    """Mean difference over common seeds, or of the means where fewer than two are common."""
    x, y = common_scores(one, other)
    if len(x) >= FEWEST:
        return float((x - y).mean())
    return None if one.mean is None or other.mean is None else one.mean - other.mean


def common_scores(one: GroupSummary, other: GroupSummary) -> tuple[Array, Array]:
    """Scores of the seeds that both methods ran."""
    a, b = dict(zip(one.seeds, one.scores, strict=True)), dict(zip(other.seeds, other.scores, strict=True))
    common = sorted(a.keys() & b.keys())
    return np.array([a[s] for s in common], dtype=float), np.array([b[s] for s in common], dtype=float)


def _measure(one: GroupSummary, base: GroupSummary, options: Options) -> Pair:
    x, y = one.score_N, base.score_N
    empty = Pair(one.label, base.label, len(x), len(y))
    if min(len(x), len(y)) < FEWEST:
        return replace(empty, difference=difference(one, base))
    a, b = common_scores(one, base)
    paired = len(a) >= FEWEST
    names = (one.label, base.label)
    rng = generator(options, "difference", *names)
    return replace(
        empty,
        paired_seeds=len(a) if paired else 0,
        difference=difference(one, base),
        difference_interval=_difference_interval((a, b) if paired else (x, y), paired, rng, options),
        improvement=improvement(one, base),
        improvement_interval=improvement_interval(x, y, options.confidence),
        plain_improvement_interval=bootstrap_improvement_interval(
            x[:, None],
            y[:, None],
            generator(options, "improvement", *names),
            confidence=options.confidence,
            resamples=options.resamples,
        ),
        p_value=permutation_p_value(x, y, generator(options, "permutation", *names), options.resamples),
        sign_flip_p_value=sign_flip_p_value(a - b, rng, options.resamples) if paired else None,
    )


def _difference_interval(
    scores: tuple[Array, Array], paired: bool, rng: np.random.Generator, options: Options
) -> Interval:
    interval = paired_interval if paired else unpaired_interval
    return interval(*scores, rng, confidence=options.confidence, resamples=options.resamples)


def _judge(pair: Pair, x: Array, y: Array, options: Options, level: float) -> Pair:
    """Verdict by the adjusted p-value; its direction is that of the means that the test compared."""
    assert pair.p_adjusted is not None
    if pair.p_adjusted > 1 - options.confidence:
        return replace(pair, verdict="not resolved", seeds_needed=required_seeds(x, y, level, options.power))
    up, down = ("better", "worse") if options.higher_is_better else ("higher", "lower")
    return replace(pair, verdict=up if x.mean() > y.mean() else down)
