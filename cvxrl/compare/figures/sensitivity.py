"""Score against the varied setting, and how wide the good range is."""

from __future__ import annotations

from matplotlib.figure import Figure

from cvxrl.compare.figures.canvas import RED, legend, method_style, new_figure
from cvxrl.compare.result import Comparison
from cvxrl.compare.sensitivity import TOLERANCE

_DECADE = 10  # from this ratio of largest to smallest value on, the axis is logarithmic


def sensitivity_curves(c: Comparison) -> Figure | None:
    """Mean score with interval at each value, failures marked; None where nothing numeric was varied."""
    if not c.sensitivities:
        return None
    figure, (axes,) = new_figure(1, 2, 3.9)
    values = sorted({p.value for s in c.sensitivities for p in s.points})
    logarithmic = values[0] > 0 and values[-1] / values[0] >= _DECADE
    failed = False
    for index, s in enumerate(c.sensitivities):
        colour, dash, marker = method_style(index)
        xs, means = [p.value for p in s.points], [p.mean for p in s.points]
        axes[0].plot(xs, means, color=colour, linestyle=dash, marker=marker, markersize=5, label=s.method)
        for p in s.points:
            if p.interval is not None:
                axes[0].plot([p.value] * 2, [p.interval.low, p.interval.high], color=colour, linewidth=3, alpha=0.35)
            if p.failures:
                name = "" if failed else "diverged or collapsed runs"
                failed = True
                axes[0].plot(p.value, p.mean, "x", color=RED, markersize=11, markeredgewidth=2, label=name)
                axes[0].annotate(
                    f"{p.failures}", (p.value, p.mean), color=RED, xytext=(7, 5), textcoords="offset points"
                )
        axes[1].plot([s.low, s.high], [index, index], color=colour, linewidth=6, alpha=0.5, solid_capstyle="butt")
        axes[1].plot(xs, [index] * len(xs), "|", color=colour, markersize=9)
        axes[1].plot(s.best, index, marker=marker, color=colour, markersize=7)
    for axis in axes:
        if logarithmic:
            axis.set_xscale("log")
        axis.set_xlabel(str(c.options.vary))
    axes[0].set_ylabel(f"mean final {c.options.metric}")
    axes[1].set_yticks(range(len(c.sensitivities)), [s.method for s in c.sensitivities])
    axes[1].set_ylim(len(c.sensitivities) - 0.5, -0.5)
    axes[1].set_xlim(axes[0].get_xlim())
    axes[1].set_title(f"values within {TOLERANCE:.0%} of the best (marker)", fontsize="medium")
    legend(figure, axes[:1])
    return figure
