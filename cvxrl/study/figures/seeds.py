"""Every seed's curve: a panel per method and regime, coloured by the multiple of the chosen value."""

from __future__ import annotations

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cvxrl.comparison.options import Options
from cvxrl.comparison.outcome import outcome_of
from cvxrl.comparison.run import Run
from cvxrl.comparison.score import curve
from cvxrl.report.figure import GREY, legend, new_figure
from cvxrl.study.collected import Collected
from cvxrl.study.plan import Study

_METRIC = "eval/accuracy"
_HEIGHT, _WIDTH = 1.25, 2.6  # inches a panel


def seed_curves(study: Study, collected: Collected) -> Figure | None:
    """Methods downwards, regimes across; None without confirmatory runs."""
    shown = [(cell, runs) for cell, runs in collected.confirmed if runs]
    methods = [m for m in study.methods if any(cell.method == m for cell, _ in shown)]
    regimes = [r for r in study.regimes if any(cell.regime == r for cell, _ in shown)]
    if not shown:
        return None
    options = Options(confidence=study.confidence)
    multiples = sorted({cell.multiple for cell, _ in shown if cell.multiple is not None})
    shades = matplotlib.colormaps["viridis"]
    colours = {m: shades(0.9 * place / max(1, len(multiples) - 1)) for place, m in enumerate(multiples)}
    figure, grid = new_figure(len(methods), len(regimes), 0.7 + _HEIGHT * len(methods), max(5.0, _WIDTH * len(regimes)))
    for method, axes in zip(methods, grid, strict=True):
        for regime, axis in zip(regimes, axes, strict=True):
            for cell, runs in shown:
                if (cell.method, cell.regime) == (method, regime) and cell.multiple is not None:
                    for run in runs:
                        _draw(axis, run, colours[cell.multiple], options)
            axis.set_ylim(-0.03, 1.03)
            axis.set_title(f"{method}, {regime}", loc="left", fontsize="small")
            if not axis.lines:
                axis.text(0.5, 0.5, "not run", transform=axis.transAxes, ha="center", color=GREY)
    for axis in grid[-1]:
        axis.set_xlabel("step", fontsize="small")
    for multiple, colour in colours.items():
        grid[0][0].plot([], [], color=colour, label=f"x{multiple:g}")
    grid[0][0].plot([], [], ":", color=GREY, label="failed")
    legend(figure, [axis for axes in grid for axis in axes])
    return figure


def _draw(axis: Axes, run: Run, colour: object, options: Options) -> None:
    """One seed, dotted where it failed, with a cross at the first step that shows it."""
    series, outcome = curve(run, _METRIC, options), outcome_of(run, _METRIC, options)
    axis.plot(
        series.step_T,
        series.value_T,
        color=colour,
        linewidth=0.9,
        linestyle=":" if outcome.failed else "-",
        alpha=0.8,
    )
    at = [value for step, value in zip(series.step_T, series.value_T, strict=True) if step == outcome.step]
    if at and outcome.step is not None:
        axis.plot(outcome.step, at[0], "x", color=colour, markersize=5)
