"""Maps of a study's grids: final accuracy against the varied key, a panel per grid and regime."""

from __future__ import annotations

from dataclasses import replace

from matplotlib.figure import Figure

from cvxrl.comparison.figures.sensitivity import draw_scores, value_shift
from cvxrl.report.figure import RED, legend, new_figure
from cvxrl.study.figures.panels import regimes_of, split, style_of, value_axis
from cvxrl.study.plan import Study
from cvxrl.study.verdict import Judged

_HEIGHT = 2.4  # inches a panel
_DODGE = 0.012  # share of the axis by which methods stand beside one another


def grid_maps(study: Study, judged: Judged) -> Figure | None:
    """Mean scores with intervals, failures crossed; None without a grid of several values."""
    panels = [
        (f"{name}: {regime}", [s for label in labels for s in grid.sensitivities if s.method == label])
        for name, grid in judged.grids.items()
        for regime, labels in regimes_of(study, [s.method for s in grid.sensitivities]).items()
    ]
    if not panels:
        return None
    figure, rows = new_figure(len(panels), 1, 0.8 + _HEIGHT * len(panels))
    for (axis,), (title, lines) in zip(rows, panels, strict=True):
        values = sorted({p.value for s in lines for p in s.points})
        for place, s in enumerate(lines):
            shift = value_shift(values, True, (place - (len(lines) - 1) / 2) * _DODGE)
            method = split(s.method)[0]
            draw_scores(axis, replace(s, method=method), style_of(study, method), shift)
        if any(p.failures for s in lines for p in s.points):
            axis.plot([], [], "x", color=RED, markersize=9, markeredgewidth=2, label="failed runs")
        value_axis(axis, values)
        axis.set_ylim(-0.03, 1.03)
        axis.set_ylabel("mean final accuracy", fontsize="small")
        axis.set_title(title, loc="left", fontsize="medium")
    rows[-1][0].set_xlabel(study.vary)
    legend(figure, [axis for (axis,) in rows])
    return figure
