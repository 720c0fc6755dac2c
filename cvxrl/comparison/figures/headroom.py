"""Share of seeds that fail against the varied setting: exact intervals, fitted curves, and where half fail."""

from __future__ import annotations

from itertools import pairwise
from math import inf

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from cvxrl.comparison.headroom import Headroom
from cvxrl.comparison.result import Comparison
from cvxrl.report.figure import GREY, legend, method_style, new_figure

# Inches. Printed 80 mm wide, letters are 70% of their size here.
_WIDTH, _HEIGHT, _ROW = 4.5, 2.9, 0.3
_DODGE = 0.018  # share of the axis by which methods stand beside one another, so that no point hides another
_MARGIN = 0.07  # share of the axis beyond the tried values, for what lies there
_TICK = 0.15  # share of the axis that the label of a value takes
_DASHES = ("-", "--", "-.", ":")
_CAP = 3.0  # points


def failure_curves(c: Comparison) -> Figure | None:
    """Failures above, half-fail points with their intervals below; None where no positive setting was varied."""
    if not c.headrooms:
        return None
    count = len(c.headrooms)
    values = sorted({t.value for h in c.headrooms for t in h.trials})
    below = 0.5 + _ROW * count
    figure, grid = new_figure(2, 1, _HEIGHT + below, _WIDTH, heights=(_HEIGHT, below))
    top, bottom = grid[0][0], grid[1][0]
    ratio = values[-1] / values[0]
    for index, h in enumerate(c.headrooms):
        draw_shares(top, h, index, ratio ** ((index - (count - 1) / 2) * _DODGE))
        _half(bottom, h, index, values[0] / ratio**_MARGIN, values[-1] * ratio**_MARGIN)
    top.axhline(0.5, color=GREY, linewidth=0.8, linestyle=(0, (1, 2)))
    for axis in (top, bottom):
        axis.set_xscale("log")
        axis.set_xlim(values[0] / ratio**_MARGIN, values[-1] * ratio**_MARGIN)
        if min(b / a for a, b in pairwise(values)) > ratio**_TICK:
            axis.set_xticks(values, [f"{v:g}" for v in values])
            axis.xaxis.set_minor_locator(NullLocator())
    top.set_ylim(-0.04, 1.04)
    top.set_ylabel("share of seeds that fail")
    bottom.set_yticks([])
    bottom.set_ylim(count - 0.5, -0.5)
    bottom.set_xlabel(c.options.varied)
    bottom.set_title("half fail at; open: best tried value", fontsize="small", loc="left")
    legend(figure, [top])
    return figure


def draw_shares(axis: Axes, h: Headroom, index: int, shift: float) -> None:
    """Points with exact intervals, the fitted curve, and its band."""
    colour, _, marker = method_style(index)
    dash = _DASHES[index % len(_DASHES)]
    curve = h.curve
    axis.fill_between(curve.values, curve.low, curve.high, color=colour, alpha=0.12, linewidth=0)
    axis.plot(curve.values, curve.share, color=colour, linestyle=dash, linewidth=1.4)
    shares = [t.failures / t.runs for t in h.trials]
    axis.errorbar(
        [t.value * shift for t in h.trials],
        shares,
        yerr=[
            [s - t.interval.low for s, t in zip(shares, h.trials, strict=True)],
            [t.interval.high - s for s, t in zip(shares, h.trials, strict=True)],
        ],
        color=colour,
        marker=marker,
        markersize=5,
        linestyle="",
        elinewidth=1.0,
        capsize=_CAP,
        clip_on=False,
        zorder=3,
    )
    axis.plot([], [], color=colour, linestyle=dash, marker=marker, markersize=5, label=f"{h.method} ({runs_text(h)})")


def _half(axis: Axes, h: Headroom, index: int, first: float, last: float) -> None:
    """Interval as a bar, with an arrow where it is open; the point if it is known; the best value as an open marker."""
    colour, _, marker = method_style(index)
    low, high = h.half_interval.low, h.half_interval.high
    ends = (low if low > 0 else first, high if high < inf else last)
    axis.plot(ends, [index, index], color=colour, linewidth=3.5, alpha=0.45, solid_capstyle="butt")
    if low <= 0:
        axis.plot(first, index, marker="<", color=colour, markersize=7, clip_on=False)
    if high == inf:
        axis.plot(last, index, marker=">", color=colour, markersize=7, clip_on=False)
    if h.half is not None:
        axis.plot(h.half, index, marker=marker, color=colour, markersize=5)
    if h.best is not None:
        axis.plot(h.best, index, marker=marker, markerfacecolor="white", color=colour, markersize=6, zorder=4)


def runs_text(h: Headroom) -> str:
    """`5 seeds`, or `2-5 seeds` where not all values have as many."""
    counts = [t.runs for t in h.trials]
    fewest, most = min(counts), max(counts)
    return f"{fewest if fewest == most else f'{fewest}-{most}'} seed{'' if most == 1 else 's'}"
