"""An inspection on the terminal, or plain in a pipe."""

from __future__ import annotations

import textwrap
from typing import TextIO

from cvxrl.inspection.record import InspectRecord, Snapshot
from cvxrl.inspection.tables import all_tables
from cvxrl.report.document import WIDTH, print_report
from cvxrl.report.format import percent


def print_record(record: InspectRecord, stream: TextIO) -> None:
    """Write a header, every table, and what the numbers of the last checkpoint say."""
    last = record.snapshots[-1]
    print_report([*_header(record, last), ""], all_tables(record), _verdicts(last), stream)


def _header(record: InspectRecord, last: Snapshot) -> list[str]:
    where = "" if last.step is None else f", step {last.step}"
    lines = [
        f"weights   sha256 {last.policy[:12]}, {record.parameters:,} of them trained",
        f"rollouts  {last.prompts} prompts x {last.samples}, {last.tokens:,} tokens, {percent(last.correct)} right",
        f"target    {record.target}",
        *(f"note      {note}" for note in record.notes),
    ]
    # The path stays on one line, where it can be copied.
    return [f"policy    {record.path}{where}", *(part for line in lines for part in _wrapped(line, "", " " * 10))]


def _wrapped(text: str, first: str, later: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent=first, subsequent_indent=later)


def _verdicts(last: Snapshot) -> list[str]:
    lines = []
    for objective in last.objectives:
        own = " (the run's own)" if objective.own else ""
        lines.append(f"{objective.label}{own}: {objective.verdict[0]}")
        for sentence in objective.verdict[1:]:
            lines += _wrapped(sentence, "  - ", "    ")
    return lines
