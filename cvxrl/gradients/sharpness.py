"""Critical sharpness (arXiv 2601.16979): how far along an update the loss stays below its start, by forward passes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class CriticalSharpness:
    """Where the loss along a direction comes back to its start.

    Attributes:
        value: 2 / critical step, in units of the direction; infinity if no step of the search lowers the loss,
            an upper bound if all do.
        low: longest step found that lowers the loss; 0 if none.
        high: shortest step above ``low`` found that does not; infinity if all do.
        start: loss at step 0.
        evaluations: forward passes made.
    """

    value: float
    low: float
    high: float
    start: float
    evaluations: int


def critical_sharpness(
    loss_at: Callable[[float], float],
    *,
    first: float = 1.0,
    evaluations: int = 14,
    progress: Callable[[int, int], None] | None = None,
) -> CriticalSharpness:
    """Doubling, then bisection of the step length on a logarithmic scale.

    The critical step is the geometric mean of the last bracket. On a quadratic along its gradient it is 2 / (curvature
    along the gradient), so that the value is that curvature. Where the loss crosses its start several times the search
    finds one of the crossings.

    Args:
        loss_at: loss after a step of this length along the actual update; 1 is the update itself. Must be
            deterministic. A loss that is not finite counts as not below.
        first: step length to begin with.
        evaluations: bound on the calls, the one at 0 included; at least 3.
        progress: called with (calls made, bound).

    Raises:
        ValueError: fewer than three evaluations, or the loss at the start is not finite.
    """
    if evaluations < 3:
        raise ValueError(f"a line search needs at least 3 evaluations, got {evaluations}")
    made = 0

    def evaluate(step: float) -> float:
        nonlocal made
        made += 1
        loss = loss_at(step)
        if progress is not None:
            progress(made, evaluations)
        return loss

    start = evaluate(0.0)
    if not math.isfinite(start):
        raise ValueError(f"the loss at the start is {start}")
    low, high, step = 0.0, math.inf, first
    while made < evaluations:
        if evaluate(step) < start:
            low = step
        else:
            high = step
        if high == math.inf:
            step = 2.0 * low
        elif low == 0.0:
            step = 0.5 * high
        else:
            step = math.sqrt(low * high)
    if low == 0.0:
        return CriticalSharpness(math.inf, low, high, start, made)
    critical = low if high == math.inf else math.sqrt(low * high)
    return CriticalSharpness(2.0 / critical, low, high, start, made)
