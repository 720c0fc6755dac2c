"""A judged study as one JSON document, as Markdown tables, and as an HTML page."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from cvxrl.comparison.export import to_document as comparison_document
from cvxrl.report.document import Page, to_markdown
from cvxrl.runs.files import finite
from cvxrl.study.choices import Choice
from cvxrl.study.collected import Collected, lacking
from cvxrl.study.contrasts import contrasts
from cvxrl.study.plan import Study
from cvxrl.study.tables import study_tables
from cvxrl.study.verdict import Judged


def to_document(study: Study, chosen: Mapping[str, Choice], collected: Collected, judged: Judged) -> dict[str, Any]:
    """The plan, what was chosen and what is missing, every rule with its requirements, and the comparisons."""
    rules = [{"verdict": name, "requirements": [vars(result) for result in results]} for name, results in judged.rules]
    whole: dict[str, Any] = finite(
        {
            "study": {
                "plan": study.model_dump(mode="json"),
                "chosen": {label: choice.model_dump(mode="json") for label, choice in chosen.items()},
                "missing": [
                    {"stage": cell.stage, "cell": cell.label, "at": cell.place, "seeds": list(seeds)}
                    for cell, seeds in lacking(collected.every)
                ],
                "contrasts": [asdict(contrast) for contrast in contrasts(study, judged)],
                "verdict": judged.verdict,
                "rules": rules,
            },
            "best": {regime: comparison_document(best, []) for regime, best in judged.best.items()},
            "sweep": comparison_document(judged.sweep, []) if judged.sweep else None,
            "grids": {name: comparison_document(grid, []) for name, grid in judged.grids.items()},
        }
    )
    return whole


def to_markdown_page(
    study: Study, chosen: Mapping[str, Choice], collected: Collected, judged: Judged, command: str
) -> str:
    """All tables under the question and the command that made them."""
    tables = [to_markdown(table) for table in study_tables(study, chosen, collected, judged)]
    return "\n".join([f"```\n{command}\n```\n", f"{study.question}\n", *tables])


def to_html_page(study: Study, chosen: Mapping[str, Choice], collected: Collected, judged: Judged, command: str) -> str:
    """The verdict, the figures, and the tables on one page."""
    from cvxrl.study.figures.gallery import all_figures  # tables alone need no plotting library

    page = Page(f"Study {study.name}", command)
    page.note(study.question)
    *tables, verdict = study_tables(study, chosen, collected, judged)
    page.table(verdict)
    for shown in all_figures(study, collected, judged):
        page.figure(shown)
    for table in tables:
        page.table(table)
    return page.html()
