"""A table of text, and its three renderings: terminal, Markdown and HTML."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

from rich import box
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

_NAME_WIDTH = 30
_ENDLESS = 10_000  # columns; a measurement is cut off at the console's width otherwise


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
    """Write to a console: ruled on a terminal, bare in a pipe; a wide table sits closer before it breaks words."""
    shown = _rich(table, console.is_terminal, gap=2)
    natural = console.measure(shown, options=console.options.update(width=_ENDLESS)).maximum
    if natural > console.width:
        shown = _rich(table, console.is_terminal, gap=1)
    console.print(Text(table.title, style="bold"))
    console.print(shown)
    if table.note:
        console.print(Text(table.note, style="dim"))
    console.print()


def _rich(table: Table, ruled: bool, gap: int) -> RichTable:
    shown = RichTable(box=box.SIMPLE_HEAD if ruled else None, padding=(0, gap, 0, 0), pad_edge=False)
    for index, name in enumerate(table.names):
        cells = [row[index] for row in table.rows]
        shown.add_column(
            Text(name),
            justify="left" if table.left(index) else "right",
            overflow="fold",
            # Names of methods stay whole while they leave room for the numbers.
            no_wrap=index == 0 and max(map(len, cells), default=0) <= _NAME_WIDTH,
        )
    for row in table.rows:
        shown.add_row(*map(Text, row))
    return shown


def to_markdown(table: Table) -> str:
    """A GitHub-flavoured Markdown table under a heading."""
    lines = [f"### {table.title}", ""]
    lines.append(_markdown_row(table.names))
    lines.append(_markdown_row([":--" if table.left(i) else "--:" for i in range(len(table.columns))]))
    lines += [_markdown_row(row) for row in table.rows]
    return "\n".join([*lines, *(["", table.note] if table.note else []), ""])


def to_html(table: Table) -> str:
    """An HTML section with a heading, the table and its note."""
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


def _markdown_row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(c.replace("|", "\\|").replace("\n", " ") for c in cells) + " |"


def _html_cell(text: str) -> str:
    return escape(text).replace("\n", "<br>")
