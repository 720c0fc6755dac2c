"""Every figure of a comparison with its title and caption, in the order in which they are read."""

from __future__ import annotations

from collections.abc import Callable

from matplotlib.figure import Figure

from cvxrl.comparison.figures.curves import learning_curves, stability_curves
from cvxrl.comparison.figures.headroom import failure_curves
from cvxrl.comparison.figures.maps import failure_maps, score_maps
from cvxrl.comparison.figures.scores import improvement_intervals, location_intervals, performance_profiles
from cvxrl.comparison.figures.sensitivity import sensitivity_curves
from cvxrl.comparison.result import Comparison
from cvxrl.report.figure import FORMATS, Shown, to_file

# Title, function and caption. A function returns None where the comparison has nothing for it to show. A caption may
# name the {metric}, the {percent} of intervals, and that values of a varied key are {pooled}.
GALLERY: list[tuple[str, Callable[[Comparison], Figure | None], str]] = [
    (
        "Learning curves",
        learning_curves,
        "{metric}: mean over seeds, {percent} band, thin lines for seeds. A cross marks where a run diverged; from "
        "there on it counts as the options say.",
    ),
    ("Scores", location_intervals, "Grey ticks: seeds. Bars: {percent} intervals."),
    ("Against the baseline", improvement_intervals, "Bars: {percent} intervals."),
    ("Sensitivity", sensitivity_curves, "Bars: {percent} intervals of the mean; red: failures, counted."),
    (
        "Score maps",
        score_maps,
        "Mean {metric} over the seeds (n); a red corner and ! mark failed runs among them. Hatched: not run.",
    ),
    (
        "Failure maps",
        failure_maps,
        "Failed runs of all that ended, with the exact {percent} interval of their share. Hatched: not run.",
    ),
    (
        "Failures and headroom",
        failure_curves,
        "Above: share of seeds that fail, exact {percent} intervals, fitted probit curves with pointwise {percent} "
        "bands. Below: bars hold the value at which half fail; arrows: beyond the tried values. Headroom is the full "
        "marker over the open one.",
    ),
    (
        "Performance profile",
        performance_profiles,
        "Further up and right is better{pooled}; {percent} pointwise bootstrap band.",
    ),
    (
        "Stability over training",
        stability_curves,
        "Median over the seeds still running and over a few steps; up to two methods, thin lines for seeds; log axes. "
        "The line of a diverged run ends.",
    ),
]


def all_figures(c: Comparison) -> list[Shown]:
    """The figures that this comparison has data for; none where no run has a score."""
    if not any(s.scores for s in c.summaries):
        return []
    words = {
        "metric": c.options.metric,
        "percent": f"{100 * c.options.confidence:g}%",
        "pooled": f"; the runs of all values of {c.options.varied} together" if c.options.vary else "",
    }
    drawn = ((title, draw(c), caption.format(**words)) for title, draw, caption in GALLERY)
    return [Shown(title, figure, caption) for title, figure, caption in drawn if figure is not None]


def figure_files(c: Comparison) -> dict[str, bytes]:
    """File name -> content: each figure as PNG, to look at, and as SVG and PDF, to print."""
    files: dict[str, bytes] = {}
    for shown in all_figures(c):
        files |= {f"{shown.slug}{suffix}": to_file(shown.figure, suffix) for suffix in FORMATS}
    return files
