"""Share of seeds that fail over multiples of the chosen value, a panel per regime."""

from __future__ import annotations

from dataclasses import replace

from matplotlib.figure import Figure

from cvxrl.comparison.figures.headroom import draw_shares
from cvxrl.comparison.headroom import Headroom
from cvxrl.report.figure import GREY, legend, new_figure
from cvxrl.study.figures.panels import regimes_of, split, style_of, value_axis
from cvxrl.study.plan import Study
from cvxrl.study.verdict import Judged

_HEIGHT = 2.3  # inches a panel
_DODGE = 0.03  # share of the axis by which methods stand beside one another
_BANDS = 3  # methods whose bands can be told apart
_MARGIN = 0.09  # share of the axis beyond the tried multiples


def failures_over_chosen(study: Study, judged: Judged) -> Figure | None:
    """Exact intervals and fitted curves; None where nothing ran at several multiples."""
    rooms = {h.method: h for h in (judged.sweep.headrooms if judged.sweep else []) if h.best}
    panels = regimes_of(study, list(rooms))
    if not panels:
        return None
    figure, grid = new_figure(len(panels), 1, 0.7 + _HEIGHT * len(panels))
    for (axis,), (regime, labels) in zip(grid, panels.items(), strict=True):
        shown = [_relative(rooms[label], banded=len(labels) <= _BANDS) for label in labels]
        multiples = sorted({t.value for h in shown for t in h.trials})
        ratio = multiples[-1] / multiples[0]
        for place, h in enumerate(shown):
            shift = ratio ** ((place - (len(shown) - 1) / 2) * _DODGE)
            draw_shares(axis, h, style_of(study, h.method), shift)
        axis.axhline(0.5, color=GREY, linewidth=0.8, linestyle=(0, (1, 2)))
        value_axis(axis, multiples, "x{:g}")
        axis.set_xlim(multiples[0] / ratio**_MARGIN, multiples[-1] * ratio**_MARGIN)
        axis.set_ylim(-0.04, 1.04)
        axis.set_ylabel("share of seeds that fail", fontsize="small")
        axis.set_title(regime, loc="left", fontsize="medium")
    grid[-1][0].set_xlabel(f"{study.vary} over the chosen value")
    legend(figure, [axis for (axis,) in grid])
    return figure


def _relative(h: Headroom, *, banded: bool) -> Headroom:
    """In multiples of the chosen value, under the method's name alone."""
    assert h.best
    best = h.best
    trials = [replace(t, value=float(f"{t.value / best:.4g}")) for t in h.trials]
    curve = replace(h.curve, values=[value / best for value in h.curve.values])
    if not banded:
        curve = replace(curve, low=curve.share, high=curve.share)
    return replace(h, method=split(h.method)[0], trials=trials, curve=curve)
