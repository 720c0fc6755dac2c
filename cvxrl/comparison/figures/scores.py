"""Scores over seeds: each method's location, what it has over the baseline, and the share of runs above a score."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cvxrl.comparison.figures.strands import Strand, panels
from cvxrl.comparison.result import Comparison
from cvxrl.comparison.summary import generator
from cvxrl.report.figure import GREY, legend, line_width, method_style, new_figure
from cvxrl.stats.bootstrap import Interval, performance_profile

_LOCATIONS = (("mean", "mean"), ("median", "median"), ("iqm", "interquartile mean"))
_RESAMPLES = 2000  # of a profile's band


def location_intervals(c: Comparison) -> Figure:
    """Mean, median and IQM with their intervals over the seeds' scores, one row per group."""
    strands = [s for panel in panels(c) for s in panel.strands]
    figure, grid = new_figure(len(_LOCATIONS), 1, len(_LOCATIONS) * (0.75 + 0.24 * len(strands)))
    for (axis,), (name, title) in zip(grid, _LOCATIONS, strict=True):
        for row, strand in enumerate(strands):
            axis.plot(strand.summary.scores, [row] * len(strand.summary.scores), "|", color=GREY, markersize=7)
            value = getattr(strand.summary, name)
            if value is not None:
                _interval(axis, row, value, strand.summary.intervals.get(name), strand.colour, strand.marker)
        _rows(axis, [s.summary.label for s in strands], len(strands))
        axis.set_title(title, fontsize="medium", loc="left")
    grid[-1][0].set_xlabel(c.options.metric)
    return figure


def improvement_intervals(c: Comparison) -> Figure | None:
    """P(better than the baseline) and the difference from it, with intervals; None without a tested pair."""
    pairs = [p for p in c.pairs if p.improvement is not None and p.difference is not None]
    if not pairs:
        return None
    strands = {s.summary.label: s for panel in panels(c) for s in panel.strands}
    figure, grid = new_figure(2, 1, 2 * (0.85 + 0.24 * len(pairs)))
    axes = [row[0] for row in grid]
    for row, pair in enumerate(pairs):
        strand: Strand = strands[pair.label]
        _interval(axes[0], row, pair.improvement or 0.0, pair.improvement_interval, strand.colour, strand.marker)
        _interval(axes[1], row, pair.difference or 0.0, pair.difference_interval, strand.colour, strand.marker)
    against = {p.baseline for p in pairs}
    base = f"than {against.pop()}" if len(against) == 1 else f"than the baseline at the same {c.options.varied}"
    word = "better" if c.options.higher_is_better else "higher"
    for axis, middle, text in (
        (axes[0], 0.5, f"P(a run is {word} {base})"),
        (axes[1], 0.0, f"difference in {c.options.metric}"),
    ):
        axis.axvline(middle, color=GREY, linewidth=1, linestyle="--")
        axis.set_xlabel(text)
    axes[0].set_xlim(-0.03, 1.03)
    _rows(axes[0], [p.label for p in pairs], len(pairs))
    _rows(axes[1], [p.label for p in pairs], len(pairs))
    return figure


def performance_profiles(c: Comparison) -> Figure:
    """One staircase per method; with a varied key, all its values together, which rewards being good at each."""
    figure, ((axis,),) = new_figure(1, 1, 3.2)
    methods = dict.fromkeys(s.method for s in c.summaries)
    scores = {m: [x for s in c.summaries if s.method == m for x in s.scores] for m in methods}
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
            linewidth=line_width(index),
            label=name,
        )
    axis.set_xlabel(f"final {c.options.metric}, x")
    axis.set_ylabel("share of runs above x")
    axis.set_ylim(-0.03, 1.03)
    legend(figure, [axis])
    return figure


def _interval(axis: Axes, row: int, value: float, interval: Interval | None, colour: object, marker: str) -> None:
    if interval is not None:
        axis.plot(
            [interval.low, interval.high], [row, row], color=colour, linewidth=4, alpha=0.45, solid_capstyle="butt"
        )
    axis.plot(value, row, marker=marker, color=colour, markersize=6)


def _rows(axis: Axes, names: Sequence[str] | None, count: int) -> None:
    """First group on top; names only on the leftmost axes."""
    axis.set_yticks(range(count), names or [""] * count, fontsize="small")
    axis.set_ylim(count - 0.5, -0.5)
    axis.grid(axis="y", visible=False)
    axis.locator_params(axis="x", nbins=5)
