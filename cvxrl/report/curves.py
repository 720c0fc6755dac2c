"""Learning curves of one run as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

Records = Sequence[Mapping[str, float]]

# Okabe and Ito's colours, told apart with any colour vision.
_BLUE, _ORANGE, _GREEN, _GREY = "#0072B2", "#D55E00", "#009E73", "#8C8C8C"
_Z95 = 1.96
_SMOOTHING = 9  # steps in the centred moving average


def plot_curves(records: Records, path: Path, title: str) -> None:
    """Draw reward and accuracy, entropy, KL, gradient norm, length and loss against the step; write a PNG.

    Args:
        records: lines of metrics.jsonl.
        path: PNG to write, whole or not at all.
        title: heading of the figure.
    """
    figure = Figure(figsize=(11, 6), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title)
    axes = figure.subplots(2, 3)
    panels = list(axes.flat)
    _scores(panels[0], records)
    _line(panels[1], records, "policy/entropy", "entropy [nats per token]", _BLUE)
    _line(panels[2], records, "policy/kl", "KL(before || after step) [nats]", _BLUE, log=True)
    _gradients(panels[3], records)
    _line(panels[4], records, "response/length", "response length [tokens]", _BLUE)
    _line(panels[5], records, "loss", "loss", _BLUE)
    for axis in panels:
        axis.set_xlabel("step")
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    figure.savefig(temporary, format="png", dpi=150)
    temporary.replace(path)


def _scores(axis: Axes, records: Records) -> None:
    """Training reward, and held-out accuracy with its 95% interval."""
    steps, rewards = _series(records, "reward/mean")
    if steps:
        axis.plot(steps, rewards, color=_BLUE, alpha=0.3, linewidth=0.8)
        axis.plot(steps, _smooth(rewards), color=_BLUE, label="training reward")
    evaluated = [r for r in records if r.get("eval/accuracy") is not None]
    if evaluated:
        axis.errorbar(
            [r["step"] for r in evaluated],
            [r["eval/accuracy"] for r in evaluated],
            yerr=[_Z95 * (r.get("eval/stderr") or 0.0) for r in evaluated],
            fmt="o",
            markersize=4,
            capsize=3,
            color=_ORANGE,
            label="held-out accuracy, 95%",
        )
    if steps or evaluated:
        axis.legend(frameon=False, loc="lower right", fontsize="small")
    axis.set_ylabel("reward, accuracy")


def _gradients(axis: Axes, records: Records) -> None:
    """Global norm before and after clipping, on a log axis."""
    steps, norms = _series(records, "grad/norm")
    _, clipped = _series(records, "grad/norm_clipped")
    if clipped != norms:
        # Wide and pale below the other line: what sticks out above it is what clipping took away.
        axis.plot(steps, clipped, color=_ORANGE, alpha=0.5, linewidth=3.0, label="after clipping")
    axis.plot(steps, norms, color=_BLUE, linewidth=1.0, label="before clipping")
    if any(norm > 0 for norm in norms):
        axis.set_yscale("log")
    if steps:
        axis.legend(frameon=False, fontsize="small")
    axis.set_ylabel("gradient norm")


def _line(axis: Axes, records: Records, key: str, label: str, colour: str, log: bool = False) -> None:
    steps, values = _series(records, key)
    if steps:
        axis.plot(steps, values, color=colour, alpha=0.3, linewidth=0.8)
        axis.plot(steps, _smooth(values), color=colour)
        if log and min(values) > 0:
            axis.set_yscale("log")
    else:
        axis.text(0.5, 0.5, "not measured", transform=axis.transAxes, ha="center", color=_GREY)
        axis.set_xticks([])
        axis.set_yticks([])
    axis.set_ylabel(label)


def _series(records: Records, key: str) -> tuple[list[float], list[float]]:
    """Steps and finite values of one metric."""
    found = [(r["step"], r[key]) for r in records if r.get(key) is not None and r[key] - r[key] == 0]
    return [step for step, _ in found], [value for _, value in found]


def _smooth(values: Sequence[float]) -> list[float]:
    """Centred moving average, narrower at the ends."""
    half = _SMOOTHING // 2
    windows = (values[max(0, i - half) : i + half + 1] for i in range(len(values)))
    return [sum(window) / len(window) for window in windows]
