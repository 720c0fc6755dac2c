"""A report on the terminal, or plain in a pipe: at most 80 columns."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TextIO

from rich.console import Console
from rich.text import Text

from cvxrl.report.table import Table, print_table

WIDTH = 80


def print_report(before: Sequence[str], tables: Sequence[Table], after: Sequence[str], stream: TextIO) -> None:
    """Write lines, tables and lines; a reader that has left (`... | head`) is no error."""
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
    try:
        stream.write("\n".join(line.rstrip() for line in capture.get().splitlines()) + "\n")
        stream.flush()
    except BrokenPipeError:
        # Files, warnings and the exit code still count.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
