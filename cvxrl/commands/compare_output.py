"""What `cvxrl compare` writes, and where."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cvxrl.commands.options import writable_file, writable_folder

if TYPE_CHECKING:
    from cvxrl.comparison.gate import Verdict
    from cvxrl.comparison.result import Comparison

_WRITE = "Output"


@dataclass(frozen=True)
class Output:
    """What is written, and where."""

    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON document on stdout.", rich_help_panel=_WRITE)
    ] = False
    csv: Annotated[
        Path | None, typer.Option(parser=writable_file, help="Write one line per run.", rich_help_panel=_WRITE)
    ] = None
    md: Annotated[Path | None, typer.Option(parser=writable_file, help="Write the tables.", rich_help_panel=_WRITE)] = (
        None
    )
    tex: Annotated[
        Path | None,
        typer.Option(parser=writable_file, help="Write the main table as LaTeX.", rich_help_panel=_WRITE),
    ] = None
    html: Annotated[
        Path | None, typer.Option(parser=writable_file, help="Write one page with figures.", rich_help_panel=_WRITE)
    ] = None
    figures: Annotated[
        Path | None,
        typer.Option(
            parser=writable_folder,
            metavar="FOLDER",
            help="Write each figure as PNG, SVG and PDF.",
            rich_help_panel=_WRITE,
        ),
    ] = None


def write_outputs(comparison: Comparison, verdicts: Sequence[Verdict], output: Output) -> list[Path]:
    """Write the files that were asked for; the figures stand beside whatever else is in their folder."""
    from cvxrl.comparison.export import to_csv, to_html_page, to_markdown_page
    from cvxrl.runs.files import write_text

    command = shlex.join(["cvxrl", *sys.argv[1:]])
    if output.csv:
        write_text(output.csv, to_csv(comparison))
    if output.md:
        write_text(output.md, to_markdown_page(comparison, command))
    if output.tex:
        from cvxrl.comparison.tex import to_tex

        write_text(output.tex, to_tex([("", comparison)], command))
    if output.html:
        write_text(output.html, to_html_page(comparison, verdicts, command))
    pictures: dict[Path, bytes] = {}
    if output.figures:
        from cvxrl.comparison.figures.gallery import figure_files

        output.figures.mkdir(parents=True, exist_ok=True)
        pictures = {output.figures / name: content for name, content in figure_files(comparison).items()}
    for file, content in pictures.items():
        file.write_bytes(content)
    return [*(file for file in (output.csv, output.md, output.tex, output.html) if file), *pictures]
