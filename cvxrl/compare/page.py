"""One self-contained HTML page: nothing on it comes from anywhere else."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from cvxrl.compare.figures.gallery import all_figures
from cvxrl.compare.gate import Verdict
from cvxrl.compare.result import Comparison
from cvxrl.compare.tables import all_tables
from cvxrl.report.page import figure_section, head
from cvxrl.report.table import to_html


def make_page(c: Comparison, verdicts: Sequence[Verdict], command: str) -> str:
    """The page as text."""
    methods = list(dict.fromkeys(s.method for s in c.summaries))
    title = "Comparison of " + ", ".join(methods)
    parts = [head(title), f"<h1>{escape(title)}</h1>", f"<pre>{escape(command)}</pre>"]
    parts += [f"<p class='problem'>{escape(str(p))}</p>" for p in c.problems]
    parts += [f"<p class='warning'>{escape(w)}</p>" for w in c.warnings]
    parts += [f"<p class='{'note' if v.met else 'problem'}'>require: {escape(str(v))}</p>" for v in verdicts]
    tables = {table.title: to_html(table) for table in all_tables(c)}
    figures = [figure_section(shown.title, shown.figure, shown.caption) for shown in all_figures(c)]
    # The answer first: scores and verdicts, then the pictures, then the rest of the tables.
    ordered = list(tables.values())
    parts += [*ordered[:2], *figures, *ordered[2:], "</body>\n</html>\n"]
    return "\n".join(parts)
