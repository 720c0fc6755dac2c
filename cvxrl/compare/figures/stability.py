"""Gradient norm, KL and entropy over training."""

from __future__ import annotations

import warnings

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cvxrl.compare.figures.canvas import Panel, panels
from cvxrl.compare.figures.curves import stack, thin
from cvxrl.compare.result import Comparison
from cvxrl.report.figure import GREY, legend, new_figure, same_scale

_SHOWN = (
    ("grad/norm", "gradient norm before clipping", True),
    ("policy/kl", "KL(before || after step) [nats]", True),
    ("policy/entropy", "entropy [nats per token]", True),
)


def stability_curves(c: Comparison) -> Figure:
    """Median over seeds with thin seed lines; one row per method where a key is varied."""
    shown = panels(c)
    figure, grid = new_figure(len(shown), len(_SHOWN), 0.9 + 2.7 * len(shown))
    for panel, axes in zip(shown, grid, strict=True):
        for axis, (key, name, log) in zip(axes, _SHOWN, strict=True):
            _draw(axis, panel, key, log)
            axis.set_xlabel("step")
            axis.set_ylabel(name, fontsize="small")
        axes[0].set_title(panel.title, loc="left", fontsize="medium")
    for column in zip(*grid, strict=True):
        same_scale(column)
    legend(figure, [axis for axes in grid for axis in axes])
    return figure


def _draw(axis: Axes, panel: Panel, key: str, log: bool) -> None:
    positive = False
    for strand in panel.strands:
        step_T, value_NT = stack([run.series(key) for run in strand.group.runs])
        if not len(step_T):
            continue
        if log:
            value_NT = np.where(value_NT > 0, value_NT, np.nan)  # a log axis has no place for them
        positive = positive or bool(np.isfinite(value_NT).any())
        # The largest of each bin: thinning a long run must not hide its spikes.
        thin_T, peak_NT = thin(step_T, value_NT, np.nanmax)
        axis.plot(thin_T, peak_NT.T, color=strand.colour, linewidth=0.4, alpha=0.25)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # a step without a positive value has no median
            middle = np.nanmedian(value_NT, axis=0)  # of the runs that have not diverged yet
        thin_T, middle_1T = thin(step_T, middle[None], np.nanmedian)
        axis.plot(thin_T, middle_1T[0], color=strand.colour, linestyle=strand.dash, linewidth=1.4, label=strand.name)
    if positive and log:
        axis.set_yscale("log")
    if not axis.lines:
        axis.text(0.5, 0.5, "not measured", transform=axis.transAxes, ha="center", color=GREY)
