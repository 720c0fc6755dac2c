"""Score against the varied setting, and how wide the good range is."""

from __future__ import annotations

from collections.abc import Callable

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cvxrl.comparison.result import Comparison
from cvxrl.comparison.sensitivity import TOLERANCE, Sensitivity
from cvxrl.report.figure import RED, legend, method_style, new_figure

_DECADE = 10  # from this ratio of largest to smallest value on, the axis is logarithmic
_DODGE = 0.012  # share of the axis by which methods stand beside one another, so that no bar hides another


def sensitivity_curves(c: Comparison) -> Figure | None:
    """Mean score with interval at each value, failures marked; None where nothing numeric was varied."""
    if not c.sensitivities:
        return None
    figure, grid = new_figure(2, 1, 3.4 + 0.3 * len(c.sensitivities))
    axes = [row[0] for row in grid]
    values = sorted({p.value for s in c.sensitivities for p in s.points})
    logarithmic = values[0] > 0 and values[-1] / values[0] >= _DECADE
    middle = (len(c.sensitivities) - 1) / 2
    for index, s in enumerate(c.sensitivities):
        draw_scores(axes[0], s, index, value_shift(values, logarithmic, (index - middle) * _DODGE))
        _range(axes[1], s, index)
    if any(p.failures for s in c.sensitivities for p in s.points):
        axes[0].plot([], [], "x", color=RED, markersize=9, markeredgewidth=2, label="failed runs")
    for axis in axes:
        if logarithmic:
            axis.set_xscale("log")
        axis.set_xlabel(c.options.varied)
    axes[0].set_ylabel(f"mean final {c.options.metric}")
    axes[1].set_yticks(range(len(c.sensitivities)), [s.method for s in c.sensitivities], fontsize="small")
    axes[1].set_ylim(len(c.sensitivities) - 0.5, -0.5)
    axes[1].set_xlim(axes[0].get_xlim())
    axes[1].set_title(f"values within {TOLERANCE:.0%} of the best (marker)", fontsize="medium")
    legend(figure, axes[:1])
    return figure


def draw_scores(axis: Axes, s: Sensitivity, index: int, shift: Callable[[float], float]) -> None:
    """Means, intervals, and a red cross where runs failed; how many stands in the other panel."""
    colour, dash, marker = method_style(index)
    points = [(shift(p.value), p) for p in s.points]
    axis.plot(
        [x for x, _ in points],
        [p.mean for _, p in points],
        color=colour,
        linestyle=dash,
        marker=marker,
        markersize=5,
        label=s.method,
    )
    for x, p in points:
        if p.interval is not None:
            ends = [p.interval.low, p.interval.high]
            axis.plot([x, x], ends, color=colour, linewidth=3, alpha=0.35, solid_capstyle="butt")
        if p.failures:
            axis.plot(x, p.mean, "x", color=RED, markersize=9, markeredgewidth=2)


def _range(axis: Axes, s: Sensitivity, index: int) -> None:
    """Ticks where values were tried, a bar over the good range, a marker at the best, failures counted in red."""
    colour, _, marker = method_style(index)
    axis.plot([s.low, s.high], [index, index], color=colour, linewidth=6, alpha=0.5, solid_capstyle="butt")
    axis.plot([p.value for p in s.points], [index] * len(s.points), "|", color=colour, markersize=9)
    axis.plot(s.best, index, marker=marker, color=colour, markersize=7)
    for p in s.points:
        if p.failures:
            text = f"{p.failures} of {p.seeds}"
            here = (p.value, index)
            axis.annotate(
                text, here, xytext=(0, 8), textcoords="offset points", ha="center", color=RED, fontsize="small"
            )


def value_shift(values: list[float], logarithmic: bool, share: float) -> Callable[[float], float]:
    """Move a value by a share of the axis."""
    if logarithmic:
        factor: float = (values[-1] / values[0]) ** share
        return lambda value: value * factor
    step = (values[-1] - values[0]) * share
    return lambda value: value + step
