"""Curves over training: mean, band and thin seed lines."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cvxrl.compare.figures.canvas import Panel, Strand, panels
from cvxrl.compare.options import Options
from cvxrl.compare.result import Comparison
from cvxrl.compare.run import Array, Series
from cvxrl.compare.score import curve
from cvxrl.compare.summary import generator
from cvxrl.report.figure import legend, new_figure, same_scale
from cvxrl.stats.aggregate import mean
from cvxrl.stats.bootstrap import bootstrap_interval

_RESAMPLES = 1000  # per point of a band; a band needs less precision than a printed interval
_COLUMNS = 2
_MOST_POINTS = 500  # of a line; more cannot be told apart, and make a page of many megabytes


def learning_curves(c: Comparison) -> Figure:
    """The compared metric against the step, one panel per method where a key is varied."""
    shown = panels(c)
    columns = 1 if len(shown) == 1 else _COLUMNS
    rows = -(-len(shown) // columns)
    figure, grid = new_figure(rows, columns, 1.0 + 3.2 * rows)
    axes = [axis for row in grid for axis in row]
    for axis, panel in zip(axes, shown, strict=False):
        _draw(axis, panel, c.options)
        axis.set_xlabel("step")
        axis.set_ylabel(c.options.metric)
    for axis in axes[len(shown) :]:
        axis.set_visible(False)
    same_scale(axes[: len(shown)])
    legend(figure, axes[: len(shown)])
    return figure


def on_grid(strand: Strand, key: str, options: Options) -> tuple[Array, Array]:
    """Steps, and one interpolated score curve per run: shapes (T,) and (N, T); (0,) and (0, 0) where none has it.

    A diverged run goes on with what it counts as.
    """
    return stack([curve(run, key, options) for run in strand.group.runs])


def stack(series: Sequence[Series]) -> tuple[Array, Array]:
    """Series on their common steps, interpolated; NaN before a series begins and after it ends."""
    found = [s for s in series if len(s.step_T)]
    if not found:
        return np.zeros(0), np.zeros((0, 0))
    step_T = np.unique(np.concatenate([s.step_T for s in found]))
    return step_T, np.stack([np.interp(step_T, s.step_T, s.value_T, np.nan, np.nan) for s in found])


def thin(step_T: Array, value_NT: Array, how: Callable[..., Array]) -> tuple[Array, Array]:
    """At most `_MOST_POINTS` points of a long run: each is ``how`` (such as np.nanmax) of a bin, at the bin's end."""
    size = -(-len(step_T) // _MOST_POINTS)
    if size <= 1:
        return step_T, value_NT
    starts = np.arange(0, len(step_T), size)
    ends = np.append(starts[1:], len(step_T)) - 1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a bin in which nothing was measured stays empty
        bins = [how(value_NT[:, a : b + 1], axis=1) for a, b in zip(starts, ends, strict=True)]
    return step_T[ends], np.stack(bins, axis=1)


def _draw(axis: Axes, panel: Panel, options: Options) -> None:
    axis.set_title(panel.title, fontsize="medium")
    for strand in panel.strands:
        step_T, value_NT = on_grid(strand, options.metric, options)
        # Runs of one recipe are measured at the same steps; where one was not, an average would change its members.
        whole_T = np.isfinite(value_NT).all(axis=0)
        step_T, value_NT = thin(step_T[whole_T], value_NT[:, whole_T], np.nanmean)
        if not len(step_T):
            continue
        axis.plot(step_T, value_NT.T, color=strand.colour, linewidth=0.6, alpha=0.35)
        if len(value_NT) > 1:
            low_T, high_T = _band(strand, value_NT, options)
            axis.fill_between(step_T, low_T, high_T, color=strand.colour, alpha=0.15, linewidth=0)
        axis.plot(
            step_T,
            value_NT.mean(axis=0),
            color=strand.colour,
            linestyle=strand.dash,
            linewidth=1.8,
            marker=strand.marker if len(step_T) <= 30 else "",
            markersize=4,
            label=f"{strand.name} ({len(value_NT)} seeds)" if not panel.title else strand.name,
        )
        _mark_divergence(axis, strand, options)


def _band(strand: Strand, value_NT: Array, options: Options) -> tuple[Array, Array]:
    """Interval of the mean at every step."""
    ends = [
        bootstrap_interval(
            value_NT[:, t, None],
            mean,
            generator(options, "band", strand.group.label),
            confidence=options.confidence,
            resamples=_RESAMPLES,
        ).within(*options.bounds)
        for t in range(value_NT.shape[1])
    ]
    return np.array([e.low for e in ends]), np.array([e.high for e in ends])


def _mark_divergence(axis: Axes, strand: Strand, options: Options) -> None:
    for run in strand.group.runs:
        if run.record.divergence is not None:
            series = run.series(options.metric)
            height = float(series.value_T[-1]) if len(series.value_T) else 0.0
            axis.plot(run.record.divergence.step, height, marker="x", color=strand.colour, markersize=9, linestyle="")
