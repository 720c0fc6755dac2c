"""All pictures of an inspection, and the self-contained HTML page that holds them with its words and tables."""

from __future__ import annotations

from cvxrl.inspection.direction_figure import direction_figure
from cvxrl.inspection.figures import side_by_side, trajectory_figure
from cvxrl.inspection.record import InspectRecord
from cvxrl.inspection.reuse_figure import reuse_figure
from cvxrl.inspection.tables import all_tables
from cvxrl.report.document import Page
from cvxrl.report.figure import Shown


def figure_of(record: InspectRecord, option: str) -> Shown:
    """What an option of the command writes: `--plot`, `--plot-reuse` or `--plot-direction`."""
    if option == "--plot-reuse":
        return reuse_figure(record)
    if option == "--plot-direction":
        return direction_figure(record)
    return trajectory_figure(record) if len(record.snapshots) > 1 else side_by_side(record)


def all_figures(record: InspectRecord) -> list[Shown]:
    """The trajectory, if there is one, and what was measured at the last checkpoint."""
    shown = [trajectory_figure(record)] if len(record.snapshots) > 1 else []
    shown.append(side_by_side(record))
    last = record.snapshots[-1].objectives
    if any(o.direction is not None for o in last):
        shown.append(direction_figure(record))
    if any(o.reuse is not None for o in last):
        shown.append(reuse_figure(record))
    return shown


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
