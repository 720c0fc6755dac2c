"""What a command reports: tables on the terminal (80 columns), in Markdown, and on an HTML page with figures."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import TYPE_CHECKING, TextIO

from rich import box
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from cvxrl.report.stream import write_out

if TYPE_CHECKING:
    from cvxrl.report.figure import Shown

WIDTH = 80  # columns, of a terminal as of a pipe
_NAME_WIDTH = 30
_SENTENCE = 30  # letters from which on a cell is taken for one
_ENDLESS = 10_000  # columns; a measurement is cut off at the console's width otherwise
# What pages share; they look alike.
STYLE = """body { font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff; max-width: 72rem;
  margin: 0 auto; padding: 1.5rem 1rem 4rem; }
h1 { font-size: 1.6rem; margin: 0 0 .5rem; }
h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem; }
pre { background: #f4f4f4; padding: .6rem .8rem; overflow-x: auto; font-size: .85rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .9rem .25rem 0; vertical-align: top; text-align: right; white-space: nowrap; }
th { box-shadow: inset 0 -1px #888; font-weight: 600; vertical-align: bottom; }
th.left, td.left { text-align: left; }
td.left:nth-child(n+2) { white-space: normal; min-width: 7rem; }
th:first-child, td:first-child { position: sticky; left: 0; background: #fff; }
p, ul, figcaption { max-width: 48rem; }
img { width: 100%; max-width: 46rem; height: auto; display: block; }
@media (max-width: 40rem) { table { font-size: .8rem; } th, td { padding-right: .6rem; } }
figure { margin: 0; }
figcaption, .note { color: #555; font-size: .85rem; }
.warning { border-left: 4px solid #E69F00; padding-left: .7rem; margin: .4rem 0; }
.problem { border-left: 4px solid #B00020; padding-left: .7rem; margin: .4rem 0; white-space: pre-line; }
"""
# The policy forbids the browser to load anything; should a link slip in, it stays dead.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_HEAD = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
"""


def html_head(title: str, style: str = f"\n{STYLE}", policy: str = _POLICY) -> str:
    """Begin a page that is a file of its own, up to its body.

    Args:
        title: as text.
        style: all of its style sheet.
        policy: what the browser may load and run.
    """
    return _HEAD.format(title=escape(title), style=style, policy=policy)


@dataclass(frozen=True)
class Table:
    """Cells as text; a line break in a cell is kept where the rendering can.

    Attributes:
        title: heading.
        columns: headings of the columns; those that start with `<` are aligned left, the others right.
        rows: as many cells each as there are columns.
        note: how to read it.
    """

    title: str
    columns: Sequence[str]
    rows: list[list[str]] = field(default_factory=list)
    note: str = ""

    @property
    def names(self) -> list[str]:
        """Column headings without their alignment."""
        return [column.removeprefix("<") for column in self.columns]

    def left(self, index: int) -> bool:
        """Whether a column is aligned left."""
        return self.columns[index].startswith("<")


def print_table(console: Console, table: Table) -> None:
    """Write to a console: ruled on a terminal, bare in a pipe.

    A wide table sits closer, then its texts wrap between words, then its columns are dealt out to blocks below one
    another that begin with the same names. No number and no word that fits a line is ever broken.
    """
    console.print(Text(table.title, style="bold"))
    blocks = list(_blocks(table, console.width))
    for number, block in enumerate(blocks):
        shown = _rich(block, console.is_terminal, gap=2)
        if console.measure(shown, options=console.options.update(width=_ENDLESS)).maximum > console.width:
            shown = _rich(block, console.is_terminal, gap=1)
        console.print(shown)
        if number + 1 < len(blocks):
            console.print()
    if table.note:
        console.print(Text(table.note, style="dim"))
    console.print()


def _blocks(table: Table, width: int) -> Iterator[Table]:
    """The table, or its columns in groups that fit a line each, behind the columns that name the rows."""
    needed = [_narrowest(table, index) + 1 for index in range(len(table.columns))]
    names = next((i for i in range(len(table.columns)) if not table.left(i)), len(table.columns)) or 1
    room = width - sum(needed[:names]) + 1
    chosen: list[int] = []
    for index in range(names, len(table.columns)):
        if chosen and sum(needed[i] for i in chosen) + needed[index] > room:
            yield _columns(table, [*range(names), *chosen])
            chosen = []
        chosen.append(index)
    yield _columns(table, [*range(names), *chosen])


def _narrowest(table: Table, index: int) -> int:
    """Letters that a column cannot do without: a number's, or those of the longest word of a text."""
    cells = [table.names[index], *(row[index] for row in table.rows)]
    whole = index == 0 or not table.left(index)
    return max(len(part) for cell in cells for part in ([cell] if whole else cell.split() or [""]))


def _columns(table: Table, chosen: Sequence[int]) -> Table:
    rows = [[row[i] for i in chosen] for row in table.rows]
    return Table(table.title, [table.columns[i] for i in chosen], rows, table.note)


def _rich(table: Table, ruled: bool, gap: int) -> RichTable:
    shown = RichTable(box=box.SIMPLE_HEAD if ruled else None, padding=(0, gap, 0, 0), pad_edge=False)
    for index, name in enumerate(table.names):
        whole = not table.left(index) or (
            index == 0 and max((len(row[index]) for row in table.rows), default=0) <= _NAME_WIDTH
        )
        # Names of methods stay whole while they leave room for the numbers, and numbers always do.
        shown.add_column(Text(name), justify="left" if table.left(index) else "right", overflow="fold", no_wrap=whole)
    for row in table.rows:
        shown.add_row(*map(Text, row))
    return shown


def print_report(before: Sequence[str], tables: Sequence[Table], after: Sequence[str], stream: TextIO) -> None:
    """Write lines, tables and lines, at most `WIDTH` columns wide."""
    if stream.isatty():
        wide = Console(file=stream).width
        console = Console(file=stream, highlight=False, width=min(WIDTH, wide))
    else:
        console = Console(file=stream, width=WIDTH, no_color=True, force_terminal=False, highlight=False)
    with console.capture() as capture:
        for line in before:
            console.print(Text(line), soft_wrap=True)
        for table in tables:
            print_table(console, table)
        for line in after:
            console.print(Text(line), soft_wrap=True)
    write_out("\n".join(line.rstrip() for line in capture.get().splitlines()) + "\n", stream)


def to_markdown(table: Table) -> str:
    """A GitHub-flavoured Markdown table under a heading."""
    lines = [f"### {table.title}", ""]
    lines.append(_markdown_row(table.names))
    lines.append(_markdown_row([":--" if table.left(i) else "--:" for i in range(len(table.columns))]))
    lines += [_markdown_row(row) for row in table.rows]
    return "\n".join([*lines, *(["", table.note] if table.note else []), ""])


def to_html(table: Table) -> str:
    """An HTML section with a heading, the table and its note."""
    table = _answer_first(table)
    kinds = ["left" if table.left(i) else "right" for i in range(len(table.columns))]
    head = "".join(f'<th scope="col" class="{k}">{_html_cell(n)}</th>' for k, n in zip(kinds, table.names, strict=True))
    body = "\n".join(
        "<tr>" + "".join(f'<td class="{k}">{_html_cell(c)}</td>' for k, c in zip(kinds, row, strict=True)) + "</tr>"
        for row in table.rows
    )
    note = f"\n<p class='note'>{escape(table.note)}</p>" if table.note else ""
    return (
        f"<section>\n<h2>{escape(table.title)}</h2>\n<div class='scroll'><table>\n<thead><tr>{head}</tr></thead>\n"
        f"<tbody>\n{body}\n</tbody>\n</table></div>{note}\n</section>"
    )


def _answer_first(table: Table) -> Table:
    """A last column of sentences, such as a verdict, beside the names: a phone shows no more than that."""
    last = len(table.columns) - 1
    if last < 2 or not table.left(last) or max((len(row[last]) for row in table.rows), default=0) < _SENTENCE:
        return table
    return _columns(table, [0, last, *range(1, last)])


class Page:
    """A self-contained HTML page, built from top to bottom: nothing on it comes from anywhere else."""

    def __init__(self, title: str, command: str) -> None:
        """Begin with a title and the command that made the page."""
        self._parts = [html_head(title), f"<h1>{escape(title)}</h1>", f"<pre>{escape(command)}</pre>"]

    def note(self, text: str) -> None:
        """A paragraph in small print."""
        self._paragraph("note", text)

    def warning(self, text: str) -> None:
        """A paragraph that stands out."""
        self._paragraph("warning", text)

    def problem(self, text: str) -> None:
        """A paragraph in red; line breaks are kept."""
        self._paragraph("problem", text)

    def section(self, title: str, code: str, points: Sequence[str]) -> None:
        """A heading, preformatted text and a list."""
        items = "".join(f"<li>{escape(point)}</li>" for point in points)
        self._parts.append(
            f"<section>\n<h2>{escape(title)}</h2>\n<pre>{escape(code)}</pre>\n<ul>{items}</ul>\n</section>"
        )

    def table(self, table: Table) -> None:
        """A table under its heading."""
        self._parts.append(to_html(table))

    def figure(self, shown: Shown) -> None:
        """A figure under its heading, as a picture inside the page, with its caption."""
        from cvxrl.report.figure import WIDTH, to_svg  # tables alone need no plotting library

        share = min(1.0, shown.figure.get_figwidth() / WIDTH)
        data = base64.b64encode(to_svg(shown.figure)).decode()
        name, text = escape(shown.title), escape(shown.caption)
        self._parts.append(
            f"<section>\n<h2>{name}</h2>\n<figure>\n<img style='width:{share:.0%}' alt='{name}: {text}' "
            f"src='data:image/svg+xml;base64,{data}'>\n<figcaption>{text}</figcaption>\n</figure>\n</section>"
        )

    def html(self) -> str:
        """The page as text."""
        return "\n".join([*self._parts, "</body>\n</html>\n"])

    def _paragraph(self, kind: str, text: str) -> None:
        self._parts.append(f"<p class='{kind}'>{escape(text)}</p>")


def _markdown_row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(c.replace("|", "\\|").replace("\n", " ") for c in cells) + " |"


def _html_cell(text: str) -> str:
    return escape(text).replace("\n", "<br>")
