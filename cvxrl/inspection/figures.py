"""Pictures of an inspection: over training, and side by side at one checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes

from cvxrl.inspection.record import CheckpointMetrics, InspectRecord, ObjectiveMetrics
from cvxrl.report.figure import (
    BLACK,
    GREEN,
    GREY,
    ORANGE,
    PALE,
    SKY,
    VERMILION,
    Shown,
    legend,
    line_width,
    method_style,
    new_figure,
    not_measured,
    step_axis,
)
from cvxrl.report.format import percent, short

_COLUMNS = 2


@dataclass(frozen=True)
class _Line:
    """A curve over training: of the policy, or one per objective."""

    name: str
    policy: Callable[[CheckpointMetrics], float | None] | None = None
    objective: Callable[[ObjectiveMetrics], float | None] | None = None
    log: bool = False
    from_zero: bool = False
    mark: float | None = None


_OVER_TRAINING = (
    _Line("right (sampled)", policy=lambda s: s.correct, from_zero=True),
    _Line("p(sampled token)", policy=lambda s: s.probability),
    _Line("entropy [nats]", policy=lambda s: s.entropy),
    _Line("gradient norm, q k v", objective=lambda o: o.gradients.qkv if o.gradients else None, log=True),
    _Line("KL of next step [nats]", objective=lambda o: o.update.kl if o.update else None, log=True),
    _Line(
        "room for the step",
        objective=lambda o: (o.sharpness.room or o.sharpness.searched) if o.sharpness else None,
        log=True,
        mark=1.0,
    ),
)


def trajectory_figure(record: InspectRecord) -> Shown:
    """The policy and every objective over the checkpoints of a run."""
    figure, grid = new_figure(3, _COLUMNS, 6.6)
    axes = [axis for row in grid for axis in row]
    labels = [o.label for o in record.snapshots[-1].objectives]
    steps = [float(s.step or 0) for s in record.snapshots]
    for axis, line in zip(axes, _OVER_TRAINING, strict=True):
        if line.policy is not None:
            axis.plot(
                steps, with_gaps([line.policy(s) for s in record.snapshots]), color=BLACK, marker=".", markersize=4
            )
        for index, label in enumerate(labels if line.objective is not None else ()):
            assert line.objective is not None
            found = [
                next((line.objective(o) for o in s.objectives if o.label == label), None) for s in record.snapshots
            ]
            colour, dash, _ = method_style(index)
            axis.plot(
                steps,
                with_gaps(found),
                color=colour,
                linestyle=dash,
                marker="o",
                markersize=0.6 * marker_size(index),
                linewidth=line_width(index),
                label=label,
            )
        _finish(axis, line)
    legend(figure, axes)
    caption = (
        f"Checkpoints of {record.recipe}; every objective is measured on the same frozen rollouts of each checkpoint. "
        "gradient norm: mean over query, key and value projections. room: how often the optimizer's next step fits "
        "before the loss is back at its start; below the grey line it overshoots, at the top the search ended."
    )
    return Shown("Over training", figure, caption)


def _finish(axis: Axes, line: _Line) -> None:
    step_axis(axis)
    axis.set_ylabel(line.name, fontsize="small")
    drawn = np.concatenate([np.asarray(curve.get_ydata(), dtype=float) for curve in axis.lines] or [np.zeros(1)])
    if not np.isfinite(drawn).any():
        not_measured(axis)
        return
    if line.mark is not None:
        axis.axhline(line.mark, color=GREY, linewidth=0.8)
    if line.log and bool((drawn > 0).any()):
        axis.set_yscale("log")
    if line.from_zero:
        axis.set_ylim(0, 1.08 * float(np.nanmax(drawn)) or 1.0)


def side_by_side(record: InspectRecord) -> Shown:
    """The objectives at the last checkpoint."""
    checkpoint = record.snapshots[-1]
    panels = [draw for measured, draw in _PANELS if any(measured(o) for o in checkpoint.objectives)]
    figure, grid = new_figure(max(1, len(panels)), 1, 0.6 + 2.1 * max(1, len(panels)))
    for draw, (axis,) in zip(panels, grid, strict=False):
        draw(axis, checkpoint)
    if not panels:
        not_measured(grid[0][0])
    by_objective = [axis for draw, (axis,) in zip(panels, grid, strict=False) if draw in (_bands, _layers)]
    legend(figure, by_objective)
    where = "" if checkpoint.step is None else f" after {checkpoint.step} steps"
    moved = ""
    if checkpoint.displaced_kl is not None:
        own = checkpoint.displaced_by or checkpoint.objectives[0].label
        moved = (
            f" Hatched: at a policy {record.drift} optimizer steps of {own} further on "
            f"(KL {short(checkpoint.displaced_kl, 2)} nats per token)."
        )
    caption = f"{record.recipe}{where}; {checkpoint.prompts} x {checkpoint.samples} completions.{moved}"
    return Shown("Side by side", figure, caption)


def _signs(axis: Axes, checkpoint: CheckpointMetrics) -> None:
    """Share of tokens by the signs of their Hessian's eigenvalues."""
    shown = [o for o in checkpoint.objectives if o.logits is not None and o.logits.convex is not None]
    left = np.zeros(len(shown))
    for name, colour in (("convex", GREEN), ("indefinite", ORANGE), ("concave", VERMILION)):
        width = np.array([getattr(o.logits, name) for o in shown])
        bars = axis.barh(range(len(shown)), width, left=left, color=colour, height=0.6)
        labels = [f"{name} {percent(w, 0)}" if w > 0.25 else "" for w in width]
        axis.bar_label(
            bars, labels, label_type="center", fontsize="small", color=BLACK if name == "indefinite" else "w"
        )
        left += width
    _rows(axis, shown)
    axis.set_xlim(0, 1)
    axis.set_xlabel("share of tokens, by their logits Hessian")


def _pulls(axis: Axes, checkpoint: CheckpointMetrics) -> None:
    """Share of tokens that pull away from the target or are frozen far from it."""
    shown = [o for o in checkpoint.objectives if o.logits is not None]
    for row, o in enumerate(shown):
        for offset, metrics, hatch in ((-0.18, o.logits, ""), (0.18, o.displaced, "///")):
            if metrics is not None and metrics.away is not None and metrics.frozen is not None:
                axis.barh(row + offset, metrics.away, 0.32, color=VERMILION, hatch=hatch, edgecolor="white")
                axis.barh(
                    row + offset,
                    metrics.frozen,
                    0.32,
                    left=metrics.away,
                    color=SKY,
                    hatch=hatch,
                    edgecolor="white",
                )
    if shown:
        axis.barh(0, 0, color=VERMILION, label="pulls away")
        axis.barh(0, 0, color=SKY, label="gradient gone, target far")
        axis.legend(fontsize="small", frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=2)
    _rows(axis, shown)
    axis.set_xlim(left=0)
    axis.set_xlabel("share of tokens that have a target")


def _bands(axis: Axes, checkpoint: CheckpointMetrics) -> None:
    """Share of the gradient's norm by the probability of the sampled token."""
    for index, o in enumerate(checkpoint.objectives):
        if o.gradients is None or not o.gradients.bands:
            continue
        middle = [0.5 * (b.low + b.high) for b in o.gradients.bands]
        if index == 0:
            axis.bar(middle, [b.tokens for b in o.gradients.bands], width=0.09, color=PALE, label="tokens")
        colour, dash, marker = method_style(index)
        shares = with_gaps([b.share for b in o.gradients.bands])
        axis.plot(
            middle, shares, color=colour, linestyle=dash, marker=marker, markersize=marker_size(index), label=o.label
        )
    axis.set_xlabel("probability of the sampled token")
    axis.set_ylabel("share of tokens, of gradient norm", fontsize="small")
    axis.set_ylim(bottom=0)


def _layers(axis: Axes, checkpoint: CheckpointMetrics) -> None:
    """Gradient norm by layer."""
    measured = [(index, o.label, o.gradients) for index, o in enumerate(checkpoint.objectives) if o.gradients]
    # Where every answer of a prompt got one reward nothing has a gradient, and a log axis has no zero.
    log = any(norm > 0 for *_, gradients in measured for norm in gradients.by_layer.values())
    for index, label, gradients in measured:
        colour, dash, marker = method_style(index)
        names = list(gradients.by_layer)
        values = with_gaps([v if v > 0 or not log else None for v in gradients.by_layer.values()])
        axis.plot(
            range(len(names)),
            values,
            color=colour,
            linestyle=dash,
            marker=marker,
            markersize=marker_size(index),
            label=label,
        )
        axis.set_xticks(
            range(len(names))[:: max(1, len(names) // 8)], names[:: max(1, len(names) // 8)], fontsize="small"
        )
    if log:
        axis.set_yscale("log")
    axis.set_xlabel("layer")
    axis.set_ylabel("gradient norm", fontsize="small")


# Panels of the figure, each with what it needs of an objective: what was not measured takes no room.
_PANELS: tuple[tuple[Callable[[ObjectiveMetrics], object], Callable[[Axes, CheckpointMetrics], None]], ...] = (
    (lambda o: o.logits is not None and o.logits.convex is not None, _signs),
    (lambda o: o.logits is not None and o.logits.away is not None, _pulls),
    (lambda o: o.gradients is not None and o.gradients.bands, _bands),
    (lambda o: o.gradients is not None, _layers),
)


def marker_size(index: int) -> float:
    """Marker size; the first are the largest, so that a curve is still seen below one that covers it."""
    return max(3.0, 8.0 - 1.5 * index)


def _rows(axis: Axes, shown: list[ObjectiveMetrics]) -> None:
    axis.set_yticks(range(len(shown)), [o.label for o in shown], fontsize="small")
    axis.set_ylim(len(shown) - 0.4, -0.6)
    axis.grid(False, axis="y")


def with_gaps(found: list[float | None]) -> list[float]:
    """As matplotlib has them: a gap where there is nothing."""
    return [float("nan") if value is None else value for value in found]
