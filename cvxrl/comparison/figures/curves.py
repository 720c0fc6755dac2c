"""Curves over training: the compared metric, and gradient norm, KL and entropy."""

from __future__ import annotations

import warnings

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cvxrl.comparison.figures.strands import Panel, Strand, on_grid, panels, stack, thin
from cvxrl.comparison.options import Options
from cvxrl.comparison.result import Comparison
from cvxrl.comparison.run import Array
from cvxrl.comparison.summary import generator
from cvxrl.report.figure import WIDTH, legend, new_figure, not_measured, same_scale, step_axis
from cvxrl.stats.aggregate import mean
from cvxrl.stats.bootstrap import bootstrap_ends, draw_runs

_RESAMPLES = 1000  # per point of a band; a band needs less precision than a printed interval
_COLUMNS = 2
_MEDIANS = 25  # points of a median's line: fluctuations from step to step would hide the lines of other methods
_WITH_SEEDS = 2  # methods beside which the lines of single seeds can still be told apart
# (metric, axis label)
_STABILITY = (
    ("grad/norm", "gradient norm"),
    ("policy/kl", "KL per step [nats]"),
    ("policy/entropy", "entropy [nats]"),
)


def learning_curves(c: Comparison) -> Figure:
    """The compared metric against the step, one panel per method where a key is varied."""
    shown = panels(c)
    columns = 1 if len(shown) == 1 else _COLUMNS
    rows = -(-len(shown) // columns)
    figure, grid = new_figure(rows, columns, 0.8 + (2.6 if columns == 1 else 2.1) * rows)
    axes = [axis for row in grid for axis in row]
    for axis, panel in zip(axes, shown, strict=False):
        step_axis(axis)
        _draw_scores(axis, panel, c.options)
        axis.set_ylabel(c.options.metric)
    for axis in axes[len(shown) :]:
        axis.set_visible(False)
    same_scale(axes[: len(shown)])
    legend(figure, axes[: len(shown)])
    return figure


def stability_curves(c: Comparison) -> Figure:
    """Median over seeds with thin seed lines; one row per method where a key is varied."""
    shown = panels(c)
    across = 1 if len(shown) == 1 else len(shown)
    figure, grid = new_figure(len(_STABILITY), across, 0.8 + 1.9 * len(_STABILITY), max(WIDTH, 2.2 * across))
    for panel, axes in zip(shown, zip(*grid, strict=True), strict=True):
        for axis, (key, name) in zip(axes, _STABILITY, strict=True):
            step_axis(axis)
            _draw_medians(axis, panel, key)
            axis.set_ylabel(name, fontsize="small")
        axes[0].set_title(panel.title, loc="left", fontsize="medium")
    for row in grid:
        same_scale(row)
    legend(figure, [axis for axes in grid for axis in axes])
    return figure


def _draw_scores(axis: Axes, panel: Panel, options: Options) -> None:
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
            linewidth=strand.width,
            marker=strand.marker if len(step_T) <= 30 else "",
            markersize=4,
            label=f"{strand.name} ({len(value_NT)} seeds)" if not panel.title else strand.name,
        )
        _mark_divergence(axis, strand, options)


def _band(strand: Strand, value_NT: Array, options: Options) -> tuple[Array, Array]:
    """Interval of the mean at every step, all over the same resamples of runs."""
    drawn = draw_runs(value_NT[:, :1], generator(options, "band", strand.group.label), _RESAMPLES)
    ends = [
        bootstrap_ends(value_NT[:, t, None], drawn, mean, options.confidence)[1].within(*options.bounds)
        for t in range(value_NT.shape[1])
    ]
    return np.array([e.low for e in ends]), np.array([e.high for e in ends])


def _mark_divergence(axis: Axes, strand: Strand, options: Options) -> None:
    for run in strand.group.runs:
        if run.diverged_at is not None:
            series = run.series(options.metric)
            height = float(series.value_T[-1]) if len(series.value_T) else 0.0
            axis.plot(run.diverged_at, height, marker="x", color=strand.colour, markersize=9, linestyle="")


def _draw_medians(axis: Axes, panel: Panel, key: str) -> None:
    positive = False
    for strand in panel.strands:
        step_T, value_NT = stack([run.series(key) for run in strand.group.runs])
        if not len(step_T):
            continue
        value_NT = np.where(value_NT > 0, value_NT, np.nan)  # a log axis has no place for the others
        positive = positive or bool(np.isfinite(value_NT).any())
        # The largest of each bin: thinning a long run must not hide its spikes.
        if len(panel.strands) <= _WITH_SEEDS:
            thin_T, peak_NT = thin(step_T, value_NT, np.nanmax)
            axis.plot(thin_T, peak_NT.T, color=strand.colour, linewidth=0.4, alpha=0.25)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # a step without a positive value has no median
            middle = np.nanmedian(value_NT, axis=0)  # of the runs that have not diverged yet
        thin_T, middle_1T = thin(step_T, middle[None], np.nanmedian, _MEDIANS)
        axis.plot(
            *(thin_T, middle_1T[0]),
            color=strand.colour,
            linestyle=strand.dash,
            linewidth=strand.width,
            label=strand.name,
        )
    if positive:
        axis.set_yscale("log")
    if not axis.lines:
        not_measured(axis)
