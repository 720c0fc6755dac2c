"""Performance profile: share of runs above every score."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from cvxrl.compare.result import Comparison
from cvxrl.compare.summary import generator
from cvxrl.report.figure import legend, method_style, new_figure
from cvxrl.stats.bootstrap import performance_profile

_RESAMPLES = 2000


def performance_profiles(c: Comparison) -> Figure:
    """One staircase per method; with a varied key, all its values together, which rewards being good at each."""
    figure, ((axis,),) = new_figure(1, 1, 3.8)
    scores = {m: [x for s in c.summaries if s.method == m for x in s.scores] for m in _methods(c)}
    every = np.array([x for values in scores.values() for x in values])
    margin = 0.05 * float(np.ptp(every)) or 0.01
    # The share only changes where a run scores, so these thresholds give the exact staircase.
    threshold_T = np.unique(np.concatenate([[every.min() - margin], every, [every.max() + margin]]))
    for index, (method, values) in enumerate(scores.items()):
        if not values:
            continue
        colour, dash, _ = method_style(index)
        profile = performance_profile(
            np.array(values)[:, None],
            threshold_T,
            generator(c.options, "profile", method),
            confidence=c.options.confidence,
            resamples=_RESAMPLES,
        )
        if len(values) > 1:
            axis.fill_between(
                threshold_T, profile.low_T, profile.high_T, step="post", color=colour, alpha=0.15, linewidth=0
            )
        name = f"{method} ({len(values)} runs)"
        axis.plot(
            threshold_T,
            profile.share_T,
            drawstyle="steps-post",
            color=colour,
            linestyle=dash,
            linewidth=1.8,
            label=name,
        )
    axis.set_xlabel(f"final {c.options.metric}, x")
    axis.set_ylabel("share of runs above x")
    axis.set_ylim(-0.03, 1.03)
    legend(figure, [axis])
    return figure


def _methods(c: Comparison) -> list[str]:
    return list(dict.fromkeys(s.method for s in c.summaries))
