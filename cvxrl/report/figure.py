"""What all figures share: colours, lines, axes, the words around them, and how they become files."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib import rc_context
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator

# Okabe and Ito's colours, told apart with any colour vision, without the yellow, which cannot be seen on white.
BLUE, VERMILION, GREEN, PINK = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
ORANGE, SKY, BLACK = "#E69F00", "#56B4E9", "#000000"
_COLOURS = (BLUE, VERMILION, GREEN, PINK, ORANGE, SKY, BLACK)
_DASHES = ("-", "--", ":", "-.")  # for more methods than there are colours
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
GREY, PALE, RED = "#8C8C8C", "#D0D0D0", "#B00020"
# Inches. Shrunk to a column of 80 mm, letters of 10 points are then 6.3 points tall, and small ones 5.3.
WIDTH = 5.0
DPI = 300
FORMATS = (".png", ".svg", ".pdf")
# Letters of small print that fit the width, and those that a legend's line and gaps take.
_LEGEND_LETTERS, _HANDLE_LETTERS = 72, 7


def method_style(index: int) -> tuple[str, str, str]:
    """Colour, dash and marker of the n-th method."""
    colours = len(_COLOURS)
    return _COLOURS[index % colours], _DASHES[index // colours % len(_DASHES)], MARKERS[index % len(MARKERS)]


def line_width(index: int) -> float:
    """Of the n-th method; the first are the widest, so that a curve is still seen below one that covers it."""
    return max(1.1, 2.9 - 0.45 * index)


@dataclass(frozen=True)
class Shown:
    """A figure and the words around it."""

    title: str
    figure: Figure
    caption: str

    @property
    def slug(self) -> str:
        """Its title as a file name."""
        return self.title.lower().replace(" ", "_")


def new_figure(
    rows: int, columns: int, height: float, width: float = WIDTH, heights: Sequence[float] | None = None
) -> tuple[Figure, list[list[Axes]]]:
    """Figure with a grid of axes; ``height`` and ``width`` (the page's) in inches, ``heights`` of its rows in parts."""
    figure = Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08))
    FigureCanvasSVG(figure)
    grid = figure.subplots(rows, columns, squeeze=False, height_ratios=heights)
    axes = [list(row) for row in grid]
    for axis in (a for row in axes for a in row):
        axis.grid(alpha=0.25)
        axis.tick_params(which="both", labelsize="small")
        axis.locator_params(nbins=5)
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes


def step_axis(axis: Axes) -> None:
    """Training steps from left to right, with ticks at whole ones."""
    axis.set_xlabel("step")
    axis.xaxis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 5, 10], integer=True))


def not_measured(axis: Axes) -> None:
    """Say in empty axes why they are empty, without a scale that nothing is on."""
    axis.text(0.5, 0.5, "not measured", transform=axis.transAxes, ha="center", color=GREY)
    axis.set_xticks([])
    axis.set_yticks([])


def legend(figure: Figure, axes: Sequence[Axes]) -> None:
    """One legend above all panels, every name once."""
    handles: dict[str, Artist] = {}
    for axis in axes:
        for handle, name in zip(*axis.get_legend_handles_labels(), strict=True):
            handles.setdefault(name, handle)
    if handles:
        letters = _LEGEND_LETTERS * figure.get_figwidth() / WIDTH
        columns = max(1, int(letters // (max(map(len, handles)) + _HANDLE_LETTERS)))
        figure.legend(
            list(handles.values()),
            list(handles),
            loc="outside upper left",
            ncols=min(columns, len(handles)),
            frameon=False,
            fontsize="small",
            columnspacing=1.2,
        )


def same_scale(axes: Sequence[Axes]) -> None:
    """Give all panels the same vertical range, so that they can be read against one another."""
    ranges = [axis.get_ylim() for axis in axes if axis.lines]
    for axis in axes if ranges else ():
        axis.set_ylim(min(low for low, _ in ranges), max(high for _, high in ranges))


def to_svg(figure: Figure) -> bytes:
    """The figure as SVG with text as outlines, so that it looks the same without any font; same input, same bytes."""
    stream = io.BytesIO()
    with rc_context({"svg.hashsalt": "cvxrl", "svg.fonttype": "path"}):
        figure.savefig(stream, format="svg", metadata={"Date": None})
    return stream.getvalue()


def to_pdf(figure: Figure) -> bytes:
    """The figure as PDF with its fonts inside; same input, same bytes."""
    stream = io.BytesIO()
    with rc_context({"pdf.fonttype": 42}):
        figure.savefig(stream, format="pdf", metadata={"CreationDate": None, "Producer": None, "Creator": None})
    return stream.getvalue()


def to_file(figure: Figure, suffix: str) -> bytes:
    """The figure in the form that a file's ending asks for, one of `FORMATS`."""
    return {".png": to_png, ".svg": to_svg, ".pdf": to_pdf}[suffix](figure)


def to_png(figure: Figure) -> bytes:
    """The figure as a picture of 1500 pixels across."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=DPI, metadata={"Software": None})
    return stream.getvalue()
