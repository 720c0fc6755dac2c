"""Headroom of every method, and the ratios of headrooms, as a forest plot: a point and an interval a row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from cvxrl.report.figure import BLACK, GREY, method_style, new_figure
from cvxrl.stats.bootstrap import Interval
from cvxrl.study.contrasts import contrasts
from cvxrl.study.figures.panels import regimes_of, split, style_of
from cvxrl.study.plan import Study
from cvxrl.study.verdict import Judged

_ROW, _AROUND = 0.24, 0.85  # inches
_BEYOND = 2.0  # factor by which the axis goes on beyond what is shown


@dataclass(frozen=True)
class _Row:
    name: str
    value: float | None
    interval: Interval | None
    colour: str
    marker: str
    filled: bool


def headroom_forest(study: Study, judged: Judged) -> Figure | None:
    """Headrooms above, contrasts below (filled: those that the rules speak of); None without any."""
    rooms = {h.method: h for h in (judged.sweep.headrooms if judged.sweep else [])}
    if not rooms:
        return None
    ordered = [label for labels in regimes_of(study, list(rooms)).values() for label in labels]
    above = [
        _row(study, label, label, rooms[label].headroom, rooms[label].headroom_interval, filled=True)
        for label in ordered
    ]
    below = [
        _row(study, c.one, f"{c.one} / {split(c.other)[0]}", c.ratio, c.interval, filled=c.judged)
        for c in contrasts(study, judged)
    ]
    parts = [part for part in (above, below) if part]
    heights = [_AROUND + _ROW * len(part) for part in parts]
    figure, grid = new_figure(len(parts), 1, sum(heights), heights=heights)
    titles = (f"headroom: {study.vary} where half the seeds fail / chosen", "headroom / headroom of the other")
    for (axis,), part, title in zip(grid, parts, titles, strict=False):
        _draw(axis, part)
        axis.set_title(title, loc="left", fontsize="small")
    return figure


def _row(study: Study, label: str, name: str, value: float | None, interval: Interval | None, *, filled: bool) -> _Row:
    colour, _, marker = method_style(style_of(study, split(label)[0]))
    return _Row(name, value, interval, colour, marker, filled)


def _draw(axis: Axes, rows: Sequence[_Row]) -> None:
    low, high = _range(rows)
    axis.set_xscale("log")
    axis.set_xlim(low, high)
    axis.axvline(1, color=BLACK, linewidth=0.8)
    for place, row in enumerate(rows):
        face = row.colour if row.filled else "white"
        if row.interval is None:
            axis.text(1, place, " not known", va="center", color=GREY, fontsize="small")
        else:
            ends = (max(row.interval.low, low), min(row.interval.high, high))
            axis.plot(ends, [place] * 2, color=row.colour, linewidth=3.0, alpha=0.5, solid_capstyle="butt")
            for is_open, end, arrow in ((row.interval.low <= 0, low, "<"), (row.interval.high == inf, high, ">")):
                if is_open:
                    axis.plot(end, place, arrow, color=row.colour, markersize=6, clip_on=False)
        if row.value is not None:
            axis.plot(row.value, place, row.marker, color=row.colour, markerfacecolor=face, markersize=5.5)
    axis.set_yticks(range(len(rows)), [row.name for row in rows], fontsize="x-small")
    axis.set_ylim(len(rows) - 0.5, -0.5)
    axis.grid(axis="y", visible=False)
    axis.xaxis.set_major_locator(LogLocator(base=10, subs=(1.0, 2.0, 5.0), numticks=12))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"x{value:g}"))
    axis.xaxis.set_minor_formatter(NullFormatter())


def _range(rows: Sequence[_Row]) -> tuple[float, float]:
    """From below the smallest known number to above the largest one, 1 among them."""
    known = [1.0, *(row.value for row in rows if row.value is not None)]
    for row in rows:
        if row.interval is not None:
            known += [end for end in (row.interval.low, row.interval.high) if 0 < end < inf]
    return min(known) / _BEYOND, max(known) * _BEYOND
