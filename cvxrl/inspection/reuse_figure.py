"""Picture of the objectives along the updates that they make from one rollout."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, NullLocator

from cvxrl.inspection.figures import marker_size, with_gaps
from cvxrl.inspection.metrics import Range
from cvxrl.inspection.record import InspectRecord
from cvxrl.inspection.step_metrics import ReuseMetrics, ReusePoint
from cvxrl.report.figure import Shown, legend, line_width, method_style, new_figure, not_measured

_COLUMNS = 2
_MOST_TICKS = 6
_NORM = "gradient norm"
# Ratios that span more than this are seen on a logarithmic axis.
_WIDE = 30.0


@dataclass(frozen=True)
class _Panel:
    """A number of every look, with its interval over prompts where there is one."""

    name: str
    value: Callable[[ReusePoint], float | None]
    interval: Callable[[ReusePoint], Range | None] = lambda _: None
    log: bool = False
    also: Callable[[ReusePoint], float] | None = None


_PANELS = (
    _Panel("tokens convex", lambda p: p.logits.convex, lambda p: p.logits.intervals.get("convex")),
    _Panel("pulling away", lambda p: p.logits.away, lambda p: p.logits.intervals.get("away")),
    _Panel("frozen off target", lambda p: p.logits.frozen, lambda p: p.logits.intervals.get("frozen")),
    _Panel(_NORM, lambda p: p.norm or None, log=True),
    _Panel("KL(target || policy)", lambda p: p.target_kl, lambda p: p.intervals.get("target_kl"), log=True),
    _Panel("ratio, 1% and 99%", lambda p: p.ratio["p99"], also=lambda p: p.ratio["p01"]),
    _Panel("entropy [nats]", lambda p: p.entropy, lambda p: p.intervals.get("entropy")),
    _Panel("reward, reweighted", lambda p: p.reward, lambda p: p.intervals.get("reward")),
)


def reuse_figure(record: InspectRecord) -> Shown:
    """Eight numbers against the update, one curve per objective."""
    checkpoint = record.snapshots[-1]
    rows = len(_PANELS) // _COLUMNS
    figure, grid = new_figure(rows, _COLUMNS, 1.75 * rows)
    axes = [axis for row in grid for axis in row]
    reused = [(o.label, o.reuse) for o in checkpoint.objectives if o.reuse is not None]
    for axis, panel in zip(axes, _PANELS, strict=True):
        for index, (label, reuse) in enumerate(reused):
            _curve(axis, panel, index, label, reuse)
        _finish(axis, panel, reused)
    figure.supxlabel("optimizer steps on one rollout", fontsize="small")
    legend(figure, axes)
    where = "" if checkpoint.step is None else f" after {checkpoint.step} steps"
    cut = reused[0][1].minibatches if reused else 1
    caption = (
        f"{record.recipe}{where}: every objective from the same policy, on the same {checkpoint.prompts} x "
        f"{checkpoint.samples} completions, whose probabilities stay those of the policy that sampled; {cut} optimizer "
        "step(s) per pass. Points are of the whole rollout; bands are 95% intervals over prompts, none where a "
        "share is exactly none or all; thin: gradient norm of every step's own minibatch. frozen off target: the "
        "gradient is gone although the target is not near. reward, reweighted: of these completions by the policy's "
        "ratios; the steps were made from them, so that others score lower."
    )
    return Shown("Along the updates", figure, caption)


def _curve(axis: Axes, panel: _Panel, index: int, label: str, reuse: ReuseMetrics) -> None:
    colour, dash, marker = method_style(index)
    updates = [float(p.update) for p in reuse.points]
    for value in (panel.value, panel.also):
        if value is not None:
            axis.plot(
                updates,
                with_gaps([value(p) for p in reuse.points]),
                color=colour,
                linestyle=dash,
                marker=marker,
                markersize=0.6 * marker_size(index),
                linewidth=0.8 * line_width(index),
                label=label,
            )
    # Where a share is exactly none or all, its interval says how many prompts there were, and hides what is above it.
    ends = [panel.interval(p) if panel.value(p) not in (0, 1) else None for p in reuse.points]
    if any(ends):
        low, high = (with_gaps([getattr(end, name) if end else None for end in ends]) for name in ("low", "high"))
        axis.fill_between(updates, low, high, color=colour, alpha=0.13, linewidth=0)
    if panel.name == _NORM:
        norms = with_gaps([s.norm or None for s in reuse.steps])
        # What step n was made from is the policy after n - 1 steps.
        axis.plot([s.update - 1.0 for s in reuse.steps], norms, color=colour, linewidth=0.6, alpha=0.55)


def _finish(axis: Axes, panel: _Panel, reused: list[tuple[str, ReuseMetrics]]) -> None:
    axis.set_ylabel(panel.name, fontsize="small")
    drawn = np.concatenate([np.asarray(line.get_ydata(), dtype=float) for line in axis.lines] or [np.full(1, np.nan)])
    if not np.isfinite(drawn).any():
        not_measured(axis)
        return
    above = drawn[drawn > 0]
    if above.size and (panel.log or (panel.also is not None and above.max() > _WIDE)):
        axis.set_yscale("log")
    looks = sorted({p.update for _, reuse in reused for p in reuse.points})
    axis.set_xscale("symlog", base=2, linthresh=1)
    axis.set_xlim(-0.2, 1.15 * max(1, looks[-1]))
    spacing = -(-(len(looks) - 1) // _MOST_TICKS) or 1
    ticks = sorted({*looks[:-1:spacing], looks[-1]})
    axis.xaxis.set_major_locator(FixedLocator(ticks))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.set_xticklabels([str(tick) for tick in ticks])
