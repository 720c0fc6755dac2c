"""The strands of a comparison's figures: which line stands for which runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import matplotlib

from cvxrl.compare.group import Group, show_value
from cvxrl.compare.result import Comparison
from cvxrl.compare.summary import GroupSummary
from cvxrl.report.figure import MARKERS, method_style


@dataclass(frozen=True)
class Strand:
    """One group in a figure, and how it is drawn.

    Attributes:
        name: what the legend calls it.
        group, summary: its runs and numbers.
        colour, dash, marker: told apart also without colour.
    """

    name: str
    group: Group
    summary: GroupSummary
    colour: Any
    dash: str
    marker: str


@dataclass(frozen=True)
class Panel:
    """Strands that share axes."""

    title: str
    strands: list[Strand]


def panels(c: Comparison) -> list[Panel]:
    """One panel with a strand per method; with a varied key, one panel per method with a strand per value."""
    pairs = [(g, s) for g, s in zip(c.groups, c.summaries, strict=True) if g.runs]
    if not c.options.vary:
        return [Panel("", [_strand(s.label, g, s, i) for i, (g, s) in enumerate(pairs)])]
    values = sorted({s.value for _, s in pairs if isinstance(s.value, int | float)})
    shades = matplotlib.colormaps["viridis"]
    made: dict[str, list[Strand]] = {}
    for group, summary in pairs:
        place = values.index(summary.value) if summary.value in values else 0
        shade = shades(0.9 * place / max(1, len(values) - 1))
        name = f"{c.options.vary} = {show_value(summary.value)}"
        strand = Strand(name, group, summary, shade, "-", MARKERS[place % len(MARKERS)])
        made.setdefault(summary.method, []).append(strand)
    return [Panel(method, strands) for method, strands in made.items()]


def _strand(name: str, group: Group, summary: GroupSummary, index: int) -> Strand:
    return Strand(name, group, summary, *method_style(index))
