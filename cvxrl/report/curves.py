"""Learning curves of one run as a picture."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes

from cvxrl.report.figure import BLUE, GREY, VERMILION, new_figure, not_measured, step_axis, to_png
from cvxrl.report.format import NO_ERROR
from cvxrl.runs.files import write_bytes

Records = Sequence[Mapping[str, float]]

_HEIGHT = 6.6  # inches
_Z95 = 1.96
_SMOOTHING = 9  # steps in the centred moving average


def plot_curves(records: Records, path: Path, title: str) -> None:
    """Draw reward and accuracy, entropy, KL, gradient norm, length and loss against the step; write a PNG.

    Args:
        records: lines of metrics.jsonl, at least one.
        path: PNG to write, whole or not at all.
        title: heading of the figure.
    """
    figure, grid = new_figure(3, 2, _HEIGHT)
    figure.suptitle(title)
    panels = [axis for row in grid for axis in row]
    for axis in panels:
        step_axis(axis)
    _scores(panels[0], records)
    _line(panels[1], records, "policy/entropy", "entropy [nats]", BLUE)
    _line(panels[2], records, "policy/kl", "KL per step [nats]", BLUE, log=True)
    _gradients(panels[3], records)
    _lengths(panels[4], records)
    _line(panels[5], records, "loss", "loss", BLUE)
    first, last = min(r["step"] for r in records), max(r["step"] for r in records)
    margin = 0.02 * (last - first) or 1.0
    for axis in panels:
        axis.set_xlim(first - margin, last + margin)  # the same in every panel, so that they can be read together
    write_bytes(path, to_png(figure))


def _scores(axis: Axes, records: Records) -> None:
    """Training reward, and held-out accuracy with its 95% interval."""
    steps, rewards = _series(records, "reward/mean")
    if steps:
        axis.plot(steps, rewards, color=BLUE, alpha=0.3, linewidth=0.8)
        axis.plot(steps, _smooth(rewards), color=BLUE, label="training reward")
    evaluated = [r for r in records if r.get("eval/accuracy") is not None]
    if evaluated:
        # Without an error there is no bar; one of length 0 would be a claim.
        errors = [math.nan if (error := r.get("eval/stderr")) is None else _Z95 * error for r in evaluated]
        axis.errorbar(
            [r["step"] for r in evaluated],
            [r["eval/accuracy"] for r in evaluated],
            yerr=_within(evaluated, errors),
            fmt="o",
            markersize=4,
            capsize=3,
            color=VERMILION,
            label=f"held-out accuracy, {NO_ERROR if all(map(math.isnan, errors)) else '95%'}",
        )
    if steps or evaluated:
        axis.legend(frameon=False, loc="lower right", fontsize="x-small", handlelength=1.0, handletextpad=0.5)
    axis.set_ylabel("reward, accuracy")


def _within(evaluated: Records, errors: Sequence[float]) -> list[list[float]]:
    """Lengths of the bars below and above, which end where an accuracy can: at 0 and 1."""
    values = [r["eval/accuracy"] for r in evaluated]
    pairs = list(zip(values, errors, strict=True))
    return [[min(e, v) if e == e else e for v, e in pairs], [min(e, 1.0 - v) if e == e else e for v, e in pairs]]


def _gradients(axis: Axes, records: Records) -> None:
    """Global norm before and after clipping, on a log axis."""
    axis.set_ylabel("gradient norm")
    steps, norms = _series(records, "grad/norm")
    if not steps:
        not_measured(axis)
        return
    _, clipped = _series(records, "grad/norm_clipped")
    if clipped != norms:
        # Wide and pale below the other line: what sticks out above it is what clipping took away.
        axis.plot(steps, clipped, color=VERMILION, alpha=0.5, linewidth=3.0, label="after clipping")
    axis.plot(steps, norms, color=BLUE, linewidth=1.0, marker=_marker(steps), label="before clipping")
    if any(norm > 0 for norm in norms):
        axis.set_yscale("log")
    if clipped != norms:
        axis.legend(frameon=False, fontsize="small")
    else:
        axis.set_title("never clipped", loc="right", fontsize="small", color=GREY)


def _lengths(axis: Axes, records: Records) -> None:
    """Mean response length, and on the right the share that hit the length limit."""
    _line(axis, records, "response/length", "length [tokens]", BLUE)
    steps, shares = _series(records, "response/truncated")
    if not any(shares):
        if steps:
            axis.set_title("never truncated", loc="right", fontsize="small", color=GREY)
        return
    right = axis.twinx()
    right.plot(steps, [100 * share for share in shares], color=VERMILION, linewidth=0.8)
    right.set_ylim(0, min(100.0, max(5.0, 110 * max(shares))))  # a rare cut should look rare
    right.set_ylabel("cut at the limit [%]", color=VERMILION)
    right.tick_params(axis="y", colors=VERMILION)
    right.spines["top"].set_visible(False)


def _line(axis: Axes, records: Records, key: str, label: str, colour: str, log: bool = False) -> None:
    steps, values = _series(records, key)
    if steps:
        log = log and min(values) > 0
        # On a log axis an arithmetic mean would sit on the peaks; the mean of the logarithms follows the curve.
        smooth = [math.exp(v) for v in _smooth([math.log(v) for v in values])] if log else _smooth(values)
        axis.plot(steps, values, color=colour, alpha=0.3, linewidth=0.8)
        axis.plot(steps, smooth, color=colour, marker=_marker(steps))
        if log:
            axis.set_yscale("log")
    else:
        not_measured(axis)
    axis.set_ylabel(label)


def _marker(steps: Sequence[float]) -> str:
    """A line through a single point cannot be seen."""
    return "." if len(steps) == 1 else ""


def _series(records: Records, key: str) -> tuple[list[float], list[float]]:
    """Steps and finite values of one metric."""
    found = [(r["step"], r[key]) for r in records if r.get(key) is not None and r[key] - r[key] == 0]
    return [step for step, _ in found], [value for _, value in found]


def _smooth(values: Sequence[float]) -> list[float]:
    """Centred moving average, narrower at the ends."""
    half = _SMOOTHING // 2
    windows = (values[max(0, i - half) : i + half + 1] for i in range(len(values)))
    return [sum(window) / len(window) for window in windows]
