"""Every figure of a comparison with its title and caption, in the order in which they are read."""

from __future__ import annotations

from matplotlib.figure import Figure

from cvxrl.compare.figures.curves import learning_curves
from cvxrl.compare.figures.intervals import improvement_intervals, location_intervals
from cvxrl.compare.figures.profile import performance_profiles
from cvxrl.compare.figures.sensitivity import sensitivity_curves
from cvxrl.compare.figures.stability import stability_curves
from cvxrl.compare.result import Comparison
from cvxrl.report.figure import Shown, to_png, to_svg


def all_figures(c: Comparison) -> list[Shown]:
    """The figures that this comparison has data for; none where no run has a score."""
    if not any(s.scores for s in c.summaries):
        return []
    percent = f"{c.options.confidence:.0%}"
    pooled = f"; the runs of all values of {c.options.vary} together" if c.options.vary else ""
    shown: list[tuple[str, Figure | None, str]] = [
        (
            "Learning curves",
            learning_curves(c),
            f"{c.options.metric}: mean over seeds, {percent} band, thin lines for seeds. A cross marks where a run "
            "diverged; from there on it counts as the options say.",
        ),
        ("Scores", location_intervals(c), f"Grey ticks: seeds. Bars: {percent} intervals."),
        ("Against the baseline", improvement_intervals(c), f"Bars: {percent} intervals."),
        ("Sensitivity", sensitivity_curves(c), f"Bars: {percent} intervals of the mean; red: failures, counted."),
        (
            "Performance profile",
            performance_profiles(c),
            f"Further up and right is better{pooled}; {percent} pointwise bootstrap band.",
        ),
        (
            "Stability over training",
            stability_curves(c),
            "Median over the seeds still running, thin lines for seeds; log axes. The line of a diverged run ends.",
        ),
    ]
    return [Shown(title, figure, text) for title, figure, text in shown if figure is not None]


def figure_files(c: Comparison) -> dict[str, bytes]:
    """File name -> content: each figure as SVG, to print, and as PNG, to look at."""
    files = {}
    for shown in all_figures(c):
        files[f"{shown.slug}.svg"] = to_svg(shown.figure)
        files[f"{shown.slug}.png"] = to_png(shown.figure)
    return files
