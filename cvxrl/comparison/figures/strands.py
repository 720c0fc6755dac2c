"""Which line of a figure stands for which runs, how it is drawn, and its runs' curves on common steps."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np

from cvxrl.comparison.group import Group, settings, show_value
from cvxrl.comparison.options import Options
from cvxrl.comparison.result import Comparison
from cvxrl.comparison.run import Array, Series
from cvxrl.comparison.score import curve
from cvxrl.comparison.summary import GroupSummary
from cvxrl.report.figure import MARKERS, line_width, method_style

_MOST_POINTS = 500  # of a line; more cannot be told apart, and make a page of many megabytes


@dataclass(frozen=True)
class Strand:
    """One group in a figure, and how it is drawn.

    Attributes:
        name: what the legend calls it.
        group, summary: its runs and numbers.
        colour, dash, marker: told apart also without colour.
        width: of its line; narrower than those below it.
    """

    name: str
    group: Group
    summary: GroupSummary
    colour: Any
    dash: str
    marker: str
    width: float


@dataclass(frozen=True)
class Panel:
    """Strands that share axes."""

    title: str
    strands: list[Strand]


def panels(c: Comparison) -> list[Panel]:
    """One panel with a strand per method; with a varied key, one panel per method with a strand per value.

    With two varied keys, one panel per method and value of the first, with a strand per value of the second.
    """
    pairs = [(g, s) for g, s in zip(c.groups, c.summaries, strict=True) if g.runs]
    if not c.options.vary:
        return [Panel("", [_strand(s.label, g, s, i) for i, (g, s) in enumerate(pairs)])]
    lasts = [settings(s.value)[-1] for _, s in pairs]
    values = sorted({value for value in lasts if isinstance(value, int | float)})
    shades = matplotlib.colormaps["viridis"]
    made: dict[str, list[Strand]] = {}
    for group, summary in pairs:
        *first, last = settings(summary.value)
        place = values.index(last) if last in values else 0
        shade = shades(0.9 * place / max(1, len(values) - 1))
        name = f"{c.options.vary[-1]} = {show_value(last)}"
        strand = Strand(name, group, summary, shade, "-", MARKERS[place % len(MARKERS)], line_width(place))
        where = [f"{key} = {show_value(value)}" for key, value in zip(c.options.vary, first, strict=False)]
        made.setdefault(", ".join([summary.method, *where]), []).append(strand)
    return [Panel(title, strands) for title, strands in made.items()]


def on_grid(strand: Strand, key: str, options: Options) -> tuple[Array, Array]:
    """Steps, and one interpolated score curve per run: shapes (T,) and (N, T); (0,) and (0, 0) where none has it.

    A diverged run goes on with what it counts as.
    """
    return stack([curve(run, key, options) for run in strand.group.runs])


def stack(series: Sequence[Series]) -> tuple[Array, Array]:
    """Series on their common steps, interpolated; NaN before a series begins and after it ends."""
    found = [s for s in series if len(s.step_T)]
    if not found:
        return np.zeros(0), np.zeros((0, 0))
    step_T = np.unique(np.concatenate([s.step_T for s in found]))
    return step_T, np.stack([np.interp(step_T, s.step_T, s.value_T, np.nan, np.nan) for s in found])


def thin(step_T: Array, value_NT: Array, how: Callable[..., Array], most: int = _MOST_POINTS) -> tuple[Array, Array]:
    """At most ``most`` points of a long run: each is ``how`` (such as np.nanmax) of a bin, at the bin's end."""
    size = -(-len(step_T) // most)
    if size <= 1:
        return step_T, value_NT
    starts = np.arange(0, len(step_T), size)
    ends = np.append(starts[1:], len(step_T)) - 1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a bin in which nothing was measured stays empty
        bins = [how(value_NT[:, a : b + 1], axis=1) for a, b in zip(starts, ends, strict=True)]
    return step_T[ends], np.stack(bins, axis=1)


def _strand(name: str, group: Group, summary: GroupSummary, index: int) -> Strand:
    return Strand(name, group, summary, *method_style(index), line_width(index))
