"""An inspection as one self-contained HTML page."""

from __future__ import annotations

from html import escape

from cvxrl.inspection.figures import all_figures
from cvxrl.inspection.record import InspectRecord
from cvxrl.inspection.tables import all_tables
from cvxrl.report.page import figure_section, head
from cvxrl.report.table import to_html


def make_page(record: InspectRecord, command: str) -> str:
    """The page as text: what it says first, then pictures, then tables."""
    title = f"Gradients of {record.recipe}"
    parts = [head(title), f"<h1>{escape(title)}</h1>", f"<pre>{escape(command)}</pre>"]
    parts.append(f"<p class='note'>Target: {escape(record.target)}</p>")
    parts += [f"<p class='warning'>{escape(note)}</p>" for note in record.notes]
    for objective in record.snapshots[-1].objectives:
        sentences = "".join(f"<li>{escape(line)}</li>" for line in objective.verdict[1:])
        heading = f"{escape(objective.label)}: {escape(objective.verdict[0])}"
        parts.append(
            f"<section>\n<h2>{heading}</h2>\n<pre>{escape(objective.equation)}</pre>\n<ul>{sentences}</ul>\n</section>"
        )
    parts += [figure_section(s.title, s.figure, s.caption) for s in all_figures(record)]
    parts += [to_html(table) for table in all_tables(record)]
    return "\n".join([*parts, "</body>\n</html>\n"])
