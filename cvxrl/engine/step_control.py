"""How much of an optimizer's step is taken: backtracking over its shares. Numbers alone; no torch, no policy."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from cvxrl.recipe.step import LineSearchStep, SearchedStep, TrustRegionStep


@dataclass(frozen=True)
class Accepted:
    """The share of a step that was accepted.

    Attributes:
        share: factor on the step; 0 where the step was refused.
        evaluations: shares that were tried.
        value: what was measured at the share; None where the step was refused.
        last: what the next search's first share is a multiple of; None for the first share of all.
    """

    share: float
    evaluations: int
    value: float | None
    last: float | None

    @property
    def refused(self) -> bool:
        """Whether none was accepted."""
        return self.share == 0.0


def first_share(spec: SearchedStep, last: float | None) -> float:
    """The first share that is tried: `growth` times the last one, or the whole step; at most `max_share`."""
    return min(spec.max_share, 1.0 if last is None else spec.growth * last)


def backtrack(
    evaluate: Callable[[float], float], accepts: Callable[[float, float], bool], spec: SearchedStep, last: float | None
) -> Accepted:
    """The first share that is accepted, each `shrink` times the one before.

    A share with a value that is not finite is not accepted. Where none is, the next search starts one `shrink` lower:
    further down while steps stay refused, while one minibatch that is at its minimum does not undo the warm start.

    Args:
        evaluate: what is measured at a share of the step.
        accepts: whether a share will do, by what was measured there.
        spec: first share, factors and bounds.
        last: `Accepted.last` of the step before.
    """
    first = share = first_share(spec, last)
    count = 0
    while True:
        value, count = evaluate(share), count + 1
        if math.isfinite(value) and accepts(share, value):
            return Accepted(share, count, value, share)
        smaller = spec.shrink * share
        if count == spec.max_evaluations or smaller < spec.min_share:
            return Accepted(0.0, count, None, max(spec.min_share, spec.shrink * first / spec.growth))
        share = smaller


def search(
    evaluate: Callable[[float], float],
    before: float,
    slope: float,
    spec: LineSearchStep,
    last: float | None = None,
    tolerance: float = 0.0,
) -> Accepted:
    """The largest share a of a backtracking sequence with L(x + a d) <= L(x) + c a <g, d> (Armijo 1966).

    A step that does not lead downhill, <g, d> >= 0, promises nothing at any length: refused without an evaluation.

    Args:
        evaluate: the loss at x + a d, by a.
        before: the loss at x.
        slope: <g, d>, its derivative there along the whole step.
        spec: c is `sufficient_decrease`.
        last: `Accepted.last` of the step before.
        tolerance: how far above the line a loss may lie.
    """
    if not slope < 0.0:
        return Accepted(0.0, 0, None, last)

    def decreases(share: float, value: float) -> bool:
        return value <= before + spec.sufficient_decrease * share * slope + tolerance

    return backtrack(evaluate, decreases, spec, last)


def confine(evaluate: Callable[[float], float], spec: TrustRegionStep, last: float | None = None) -> Accepted:
    """The largest share of a backtracking sequence whose KL is at most `kl`.

    Args:
        evaluate: KL(before || after) by the share of the step.
        spec: size of the region.
        last: `Accepted.last` of the step before.
    """
    return backtrack(evaluate, lambda _, kl: kl <= spec.kl, spec, last)
