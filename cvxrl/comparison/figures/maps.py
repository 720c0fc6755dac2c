"""Heat maps over two varied settings, one per method: mean score, and share of seeds that fail."""

from __future__ import annotations

from collections.abc import Callable

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Polygon, Rectangle

from cvxrl.comparison.group import name_value
from cvxrl.comparison.maps import Cell, FactorMap
from cvxrl.comparison.result import Comparison
from cvxrl.report.figure import BLACK, GREY, PALE, RED, new_figure
from cvxrl.report.format import number

# Inches. Printed 80 mm wide, letters are 70% of their size here.
_WIDTH, _ROW, _COLUMN, _AROUND, _BESIDE = 4.5, 0.46, 0.58, 0.85, 1.3
_LEAST_HEIGHT = 1.3  # of a map, which its key stands beside
_CORNER = 0.28  # share of a cell that the mark of failures takes
_DARK = 0.45  # luminance below which letters are white
_LETTERS = 8.0  # points
# Both can be read with any colour vision.
_SCORES, _FAILURES = "cividis", "Purples"


def score_maps(c: Comparison) -> Figure | None:
    """Mean scores on one scale for all methods; None unless two keys are varied."""
    means = [cell.mean for m in c.maps for line in m.cells for cell in line if cell and cell.mean is not None]
    if not means:
        return None
    low, high = min(means), max(means)
    scale = Normalize(low, high if high > low else low + 1e-9)
    return _maps(c, scale, _SCORES, lambda cell: cell.mean, _score_words, f"mean {c.options.metric}")


def failure_maps(c: Comparison) -> Figure | None:
    """Share of ended runs that fail, from none to all; None unless two keys are varied."""
    if not any(cell and cell.runs for m in c.maps for line in m.cells for cell in line):
        return None

    def share(cell: Cell) -> float | None:
        return cell.failures / cell.runs if cell.runs else None

    return _maps(c, Normalize(0, 1), _FAILURES, share, _failure_words, "share of seeds that fail")


def _maps(
    c: Comparison,
    scale: Normalize,
    colours: str,
    value: Callable[[Cell], float | None],
    words: Callable[[Cell], str],
    name: str,
) -> Figure:
    height = _AROUND + max(_LEAST_HEIGHT, _ROW * len(c.maps[0].rows))
    width = max(_WIDTH, _BESIDE + _COLUMN * len(c.maps[0].columns))
    figure, grid = new_figure(len(c.maps), 1, len(c.maps) * height + 0.1, width)
    colour_of = matplotlib.colormaps[colours]
    painted = ScalarMappable(scale, colour_of)
    for (axis,), m in zip(grid, c.maps, strict=True):
        _frame(axis, m)
        for y, line in enumerate(m.cells):
            for x, cell in enumerate(line):
                found = None if cell is None else value(cell)
                if cell is None or found is None:
                    _paint_missing(axis, x, y, cell)
                else:
                    _paint(axis, x, y, cell, colour_of(float(scale(found))), words(cell))
        bar = figure.colorbar(painted, ax=axis, pad=0.02, fraction=0.05)
        bar.set_label(name, fontsize="x-small")
        bar.ax.tick_params(labelsize="x-small")
    return figure


def _frame(axis: Axes, m: FactorMap) -> None:
    axis.grid(False)
    axis.spines[:].set_visible(False)
    axis.set_xticks(range(len(m.columns)), [name_value(v) for v in m.columns], fontsize="small")
    axis.set_yticks(range(len(m.rows)), [name_value(v) for v in m.rows], fontsize="small")
    axis.tick_params(length=0)
    axis.set_xlim(-0.5, len(m.columns) - 0.5)
    axis.set_ylim(len(m.rows) - 0.5, -0.5)
    axis.set_xlabel(m.keys[1], fontsize="small")
    axis.set_ylabel(m.keys[0], fontsize="small")
    axis.set_title(m.method, loc="left", fontsize="medium")


def _paint(axis: Axes, x: int, y: int, cell: Cell, colour: tuple[float, ...], words: str) -> None:
    """A cell with its words; a corner marks failures, whatever the colour."""
    axis.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, facecolor=colour, edgecolor=PALE, linewidth=1.0))
    if cell.failures:
        right, top = x + 0.47, y - 0.47
        corner = [(right, top), (right - _CORNER, top), (right, top + _CORNER)]
        axis.add_patch(Polygon(corner, facecolor=RED, edgecolor="white", linewidth=0.8))
    bright = float(np.dot(colour[:3], (0.299, 0.587, 0.114)))
    ink = "white" if bright < _DARK else BLACK
    axis.text(x, y, words, ha="center", va="center", color=ink, fontsize=_LETTERS, linespacing=1.15)


def _paint_missing(axis: Axes, x: int, y: int, cell: Cell | None) -> None:
    """A hatched cell: no run, or none that has ended."""
    corner = (x - 0.48, y - 0.48)
    axis.add_patch(Rectangle(corner, 0.96, 0.96, facecolor="white", edgecolor=PALE, hatch="////", linewidth=0.8))
    words = "not run" if cell is None or not cell.unfinished else f"{cell.unfinished}\nunfinished"
    box = {"facecolor": "white", "edgecolor": "none", "pad": 1.0}
    axis.text(x, y, words, ha="center", va="center", color=GREY, fontsize=_LETTERS, bbox=box)


def _score_words(cell: Cell) -> str:
    """Mean, seeds, and failed runs."""
    failed = f", ! {cell.failures}" if cell.failures else ""
    return f"{number(cell.mean)}\nn = {cell.seeds}{failed}"


def _failure_words(cell: Cell) -> str:
    """Failures, and the exact interval of their share in percent."""
    interval = cell.failure_interval
    ends = f"\n{100 * interval.low:.0f}-{100 * interval.high:.0f}%" if interval else ""
    return f"{cell.failures} of {cell.runs}{ends}"
