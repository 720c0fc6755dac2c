"""An inspection as one self-contained HTML page."""

from __future__ import annotations

from cvxrl.inspection.figures import all_figures
from cvxrl.inspection.record import InspectRecord
from cvxrl.inspection.tables import all_tables
from cvxrl.report.document import Page


def make_page(record: InspectRecord, command: str) -> str:
    """The page as text: what it says first, then pictures, then tables."""
    page = Page(f"Gradients of {record.recipe}", command)
    page.note(f"Target: {record.target}")
    for note in record.notes:
        page.warning(note)
    for objective in record.snapshots[-1].objectives:
        page.section(f"{objective.label}: {objective.verdict[0]}", objective.equation, objective.verdict[1:])
    for shown in all_figures(record):
        page.figure(shown)
    for table in all_tables(record):
        page.table(table)
    return page.html()
