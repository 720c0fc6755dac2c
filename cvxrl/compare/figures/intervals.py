"""Interval plots: location of each method, and the probability that it beats the baseline."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cvxrl.compare.figures.canvas import Strand, panels
from cvxrl.compare.result import Comparison
from cvxrl.report.figure import GREY, new_figure
from cvxrl.stats.bootstrap import Interval

_SHOWN = (("mean", "mean"), ("median", "median"), ("iqm", "interquartile mean"))


def location_intervals(c: Comparison) -> Figure:
    """Mean, median and IQM with their intervals over the seeds' scores, one row per group."""
    strands = [s for panel in panels(c) for s in panel.strands]
    figure, grid = new_figure(1, len(_SHOWN), 1.2 + 0.34 * len(strands))
    for index, (axis, (name, title)) in enumerate(zip(grid[0], _SHOWN, strict=True)):
        for row, strand in enumerate(strands):
            axis.plot(strand.summary.scores, [row] * len(strand.summary.scores), "|", color=GREY, markersize=7)
            value = getattr(strand.summary, name)
            if value is not None:
                _interval(axis, row, value, strand.summary.intervals.get(name), strand.colour, strand.marker)
        _rows(axis, [s.summary.label for s in strands] if index == 0 else None, len(strands))
        axis.set_title(title, fontsize="medium")
        axis.set_xlabel(c.options.metric)
    return figure


def improvement_intervals(c: Comparison) -> Figure | None:
    """P(better than the baseline) and the difference from it, with intervals; None without a tested pair."""
    pairs = [p for p in c.pairs if p.improvement is not None and p.difference is not None]
    if not pairs:
        return None
    strands = {s.summary.label: s for panel in panels(c) for s in panel.strands}
    figure, (axes,) = new_figure(1, 2, 1.2 + 0.34 * len(pairs))
    for row, pair in enumerate(pairs):
        strand: Strand = strands[pair.label]
        _interval(axes[0], row, pair.improvement or 0.0, pair.improvement_interval, strand.colour, strand.marker)
        _interval(axes[1], row, pair.difference or 0.0, pair.difference_interval, strand.colour, strand.marker)
    against = {p.baseline for p in pairs}
    base = f"than {against.pop()}" if len(against) == 1 else f"than the baseline at the same {c.options.vary}"
    word = "better" if c.options.higher_is_better else "higher"
    for axis, middle, text in (
        (axes[0], 0.5, f"P(a run is {word} {base})"),
        (axes[1], 0.0, f"difference in {c.options.metric}"),
    ):
        axis.axvline(middle, color=GREY, linewidth=1, linestyle="--")
        axis.set_xlabel(text)
    axes[0].set_xlim(-0.03, 1.03)
    _rows(axes[0], [p.label for p in pairs], len(pairs))
    _rows(axes[1], None, len(pairs))
    return figure


def _interval(axis: Axes, row: int, value: float, interval: Interval | None, colour: object, marker: str) -> None:
    if interval is not None:
        axis.plot(
            [interval.low, interval.high], [row, row], color=colour, linewidth=4, alpha=0.45, solid_capstyle="butt"
        )
    axis.plot(value, row, marker=marker, color=colour, markersize=6)


def _rows(axis: Axes, names: Sequence[str] | None, count: int) -> None:
    """First group on top; names only on the leftmost axes."""
    axis.set_yticks(range(count), names or [""] * count)
    axis.set_ylim(count - 0.5, -0.5)
    axis.grid(axis="y", visible=False)
    axis.locator_params(axis="x", nbins=5)
