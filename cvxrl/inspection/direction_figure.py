"""Picture of each objective's loss along its own optimizer step."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
from matplotlib.axes import Axes

from cvxrl.inspection.figures import with_gaps
from cvxrl.inspection.record import InspectRecord
from cvxrl.inspection.step_metrics import DirectionMetrics, SharpnessMetrics
from cvxrl.report.figure import BLACK, BLUE, GREEN, GREY, VERMILION, Shown, legend, new_figure, not_measured

_COLUMNS = 2
# A step of which less than this fits is seen on a logarithmic axis alone.
_SMALL_ROOM = 0.25
# The lines from the start go down this many times as far as the loss does.
_BELOW = 1.6
_TICKS = ("1/64", "1/16", "1/4", "1", "4")


def direction_figure(record: InspectRecord) -> Shown:
    """L(theta + alpha d) of every objective, with the tangent, the step itself, and what a line search accepts."""
    checkpoint = record.snapshots[-1]
    shown = [o for o in checkpoint.objectives if o.direction is not None]
    rows = max(1, -(-len(shown) // _COLUMNS))
    figure, grid = new_figure(rows, _COLUMNS, 0.7 + 1.9 * rows)
    axes = [axis for row in grid for axis in row]
    rooms = [o.sharpness.room for o in shown if o.sharpness is not None and o.sharpness.room is not None]
    log = any(room < _SMALL_ROOM for room in rooms)
    for axis, objective in zip(axes, shown, strict=False):
        assert objective.direction is not None
        _panel(axis, objective.direction, objective.sharpness, log)
        axis.set_title(objective.label, fontsize="small")
    for axis in axes[max(1, len(shown)) :]:
        axis.set_visible(False)
    if not shown:
        not_measured(axes[0])
    figure.supxlabel(r"share $\alpha$ of the optimizer's step", fontsize="small")
    legend(figure, axes)
    where = "" if checkpoint.step is None else f" after {checkpoint.step} steps"
    caption = (
        f"{record.recipe}{where}: loss of each objective at theta + alpha d, d the step that its own optimizer takes "
        f"next, on the {checkpoint.prompts} x {checkpoint.samples} completions that made the step, against the target "
        "frozen where it began. Band: 95% interval over prompts of the change since alpha = 0. The line search takes "
        "the largest share tried, halving from 1, at which the loss is below the dotted line."
    )
    return Shown("Along the step", figure, caption)


def _panel(axis: Axes, line: DirectionMetrics, found: SharpnessMetrics | None, log: bool) -> None:
    first = 1 if log else 0
    shares, losses = np.array(line.shares), np.array(with_gaps(line.losses))
    start = losses[0]
    axis.axvline(1.0, color=GREY, linewidth=0.8)
    low, high = (
        start + np.array(with_gaps([getattr(change, end) if change else None for change in line.changes]))
        for end in ("low", "high")
    )
    axis.fill_between(shares[first:], low[first:], high[first:], color=BLUE, alpha=0.15, linewidth=0)
    axis.plot(shares[first:], losses[first:], color=BLUE, marker="o", markersize=2.6, linewidth=1.5, label="loss")
    fine = np.geomspace(shares[1], shares[-1], 200) if log else shares
    axis.plot(fine, start + line.slope * fine, color=GREY, linestyle="--", linewidth=1.2, label="tangent at 0")
    search = found.line_search if found else None
    if search is not None:
        label = f"{search.sufficient_decrease:g} of it (Armijo)"
        promised = start + search.sufficient_decrease * line.slope * fine
        axis.plot(fine, promised, color=GREEN, linestyle=":", linewidth=1.4, label=label)
    if search is not None and search.loss is not None:
        axis.plot(
            [search.share],
            [search.loss],
            color=VERMILION,
            marker="D",
            markersize=6,
            linestyle="",
            markeredgecolor=BLACK,
            markeredgewidth=0.6,
            label="line search accepts",
        )
    axis.set_ylim(_limits(losses, start))
    axis.set_ylabel("loss", fontsize="small")
    if log:
        axis.set_xscale("log", base=2)
        axis.set_xlim(shares[1], shares[-1])
        axis.set_xticks([float(Fraction(tick)) for tick in _TICKS], _TICKS)
        axis.minorticks_off()


def _limits(losses: np.ndarray, start: float) -> tuple[float, float]:
    """Vertical range: of the loss, but not of a wall that hides its valley, and below it room for the tangent."""
    drawn = losses[np.isfinite(losses)]
    fall = start - float(drawn.min())
    rise = float(drawn.max()) - start
    below = _BELOW * fall if fall > 0 else 0.3 * rise
    above = min(rise, 2.0 * fall) if fall > 0 else rise
    unit = below + above or 1.0
    return start - below - 0.02 * unit, start + above + 0.08 * unit
