"""Every figure of a study with its title and caption, in the order in which they are read."""

from __future__ import annotations

from collections.abc import Iterator

from matplotlib.figure import Figure

from cvxrl.report.figure import FORMATS, Shown, to_file
from cvxrl.study.collected import Collected
from cvxrl.study.figures.failures import failures_over_chosen
from cvxrl.study.figures.forest import headroom_forest
from cvxrl.study.figures.maps import grid_maps
from cvxrl.study.figures.plane import accuracy_entropy
from cvxrl.study.figures.seeds import seed_curves
from cvxrl.study.plan import Study
from cvxrl.study.verdict import Judged


def all_figures(study: Study, collected: Collected, judged: Judged) -> list[Shown]:
    """The figures that this study has runs for."""
    percent = f"{100 * study.confidence:g}%"
    return [
        Shown(title, figure, caption.format(percent=percent, vary=study.vary))
        for title, figure, caption in _drawn(study, collected, judged)
        if figure is not None
    ]


def figure_files(study: Study, collected: Collected, judged: Judged) -> dict[str, bytes]:
    """File name -> content: each figure as PNG, to look at, and as SVG and PDF, to print."""
    files: dict[str, bytes] = {}
    for shown in all_figures(study, collected, judged):
        files |= {f"{shown.slug}{suffix}": to_file(shown.figure, suffix) for suffix in FORMATS}
    return files


def _drawn(study: Study, collected: Collected, judged: Judged) -> Iterator[tuple[str, Figure | None, str]]:
    """Title, figure and caption, which may name the {percent} of intervals and the {vary} key."""
    yield (
        "Failures over the chosen value",
        failures_over_chosen(study, judged),
        "Share of seeds that fail, exact {percent} intervals, and fitted probit curves.",
    )
    yield (
        "Headroom and contrasts",
        headroom_forest(study, judged),
        "Bars: {percent} intervals; arrows: beyond the tried values. Filled below: contrasts that the rules speak of.",
    )
    yield (
        "Every seed",
        seed_curves(study, collected),
        "Held-out accuracy of every confirmatory run by multiple of the chosen {vary}; dotted: failed, from the cross.",
    )
    yield (
        "Accuracy and entropy",
        accuracy_entropy(study, collected, judged),
        "A mark a run: filled at the chosen {vary}, open above it, crossed where it failed. Straight left of the base "
        "policy lies what only became surer.",
    )
    yield (
        "Maps of the grids",
        grid_maps(study, judged),
        "Mean final accuracy, {percent} intervals; red: values with failed runs.",
    )
