"""A comparison on the terminal, or plain in a pipe."""

from __future__ import annotations

from typing import TextIO

from cvxrl.compare.result import Comparison
from cvxrl.compare.tables import all_tables
from cvxrl.report.terminal import print_report


def print_comparison(comparison: Comparison, stream: TextIO) -> None:
    """Write every table, at most 80 columns wide."""
    print_report([], all_tables(comparison), [], stream)
