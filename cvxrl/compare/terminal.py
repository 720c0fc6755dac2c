"""A comparison on the terminal, or plain in a pipe."""

from __future__ import annotations

import os
from typing import TextIO

from rich.console import Console

from cvxrl.compare.result import Comparison
from cvxrl.compare.tables import all_tables
from cvxrl.report.table import print_table

_WIDTH = 80


def print_comparison(comparison: Comparison, stream: TextIO) -> None:
    """Write every table, at most 80 columns wide."""
    if stream.isatty():
        wide = Console(file=stream).width
        console = Console(file=stream, highlight=False, width=min(_WIDTH, wide))
    else:
        console = Console(file=stream, width=_WIDTH, no_color=True, force_terminal=False, highlight=False)
    with console.capture() as capture:
        for table in all_tables(comparison):
            print_table(console, table)
    try:
        stream.write("\n".join(line.rstrip() for line in capture.get().splitlines()) + "\n")
        stream.flush()
    except BrokenPipeError:
        # The reader has left (`cvxrl compare ... | head`); files, warnings and the exit code still count.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
