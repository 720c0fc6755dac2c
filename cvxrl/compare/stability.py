"""How quietly one run went: gradient norms, spikes, KL and entropy."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cvxrl.compare.run import Array, Run

_RUNNING = 20  # steps before a gradient norm that its running median looks at
_EARLIEST = 5  # norms there must be before one can be called a spike
_ENDS = 10  # steps averaged at the start and at the end of a run


@dataclass(frozen=True)
class Stability:
    """Stability of a run; None where the metric was not recorded.

    Attributes:
        grad_p50, grad_p99: quantiles of the global gradient norm before clipping, over optimizer steps.
        spikes: norms above `spike` times the median of the 20 before.
        kl_p99: 99% quantile of KL(before || after a step), in nats.
        entropy_start, entropy_end: means over the first and last ten steps, in nats per token.
    """

    grad_p50: float | None
    grad_p99: float | None
    spikes: int | None
    kl_p99: float | None
    entropy_start: float | None
    entropy_end: float | None


def stability_of(run: Run, spike: float) -> Stability:
    """Measure a run from its metrics."""
    norms = run.series("grad/norm").value_T
    entropy = run.series("policy/entropy").value_T
    ends = min(_ENDS, max(1, len(entropy) // 2))
    return Stability(
        grad_p50=_quantile(norms, 0.5),
        grad_p99=_quantile(norms, 0.99),
        spikes=count_spikes(norms, spike) if len(norms) else None,
        kl_p99=_quantile(run.series("policy/kl").value_T, 0.99),
        entropy_start=float(entropy[:ends].mean()) if len(entropy) else None,
        entropy_end=float(entropy[-ends:].mean()) if len(entropy) else None,
    )


def count_spikes(norm_T: Array, factor: float) -> int:
    """Norms above ``factor`` times the median of the (up to) 20 norms before them."""
    return sum(
        bool(norm_T[t] > factor * np.median(norm_T[max(0, t - _RUNNING) : t])) for t in range(_EARLIEST, len(norm_T))
    )


def _quantile(values: Array, share: float) -> float | None:
    return float(np.quantile(values, share)) if len(values) else None
