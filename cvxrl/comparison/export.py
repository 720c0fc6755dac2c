"""A comparison as JSON, CSV, Markdown, text on the terminal, and an HTML page."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, TextIO

from cvxrl.comparison.gate import Verdict
from cvxrl.comparison.group import settings
from cvxrl.comparison.result import Comparison
from cvxrl.comparison.tables import all_tables
from cvxrl.report.document import Page, print_report, to_markdown
from cvxrl.runs.files import finite

SCHEMA_VERSION = 2
_ANSWERS = 2  # tables that answer the question: scores and verdicts


def to_document(c: Comparison, verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """The JSON document of `--json`; docs/compare.md describes every key."""
    document = {
        "schema_version": SCHEMA_VERSION,
        "options": asdict(c.options) | {"vary": _one_or_more(c.options.vary)},
        "methods": [asdict(s) for s in c.summaries],
        "comparisons": [asdict(p) for p in c.pairs],
        "sensitivity": [asdict(s) for s in c.sensitivities],
        "maps": [asdict(m) for m in c.maps],
        "headroom": [_without(asdict(h), "draws") for h in c.headrooms],
        "headroom_comparisons": [asdict(p) for p in c.headroom_pairs],
        "differing_keys": [asdict(f) for f in c.factors],
        "unfinished": [{"path": str(r.path), "status": r.status} for g in c.groups for r in g.unfinished],
        "require": [asdict(v) for v in verdicts],
        "warnings": c.warnings,
        "problems": [asdict(p) for p in c.problems],
    }
    whole: dict[str, Any] = finite(document)
    return whole


def _one_or_more(keys: Sequence[str]) -> Any:
    """One key as it was given, two as a list."""
    return keys[0] if len(keys) == 1 else list(keys) or None


def _without(document: dict[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in document.items() if name != key}


def to_csv(c: Comparison) -> str:
    """One line per ended run: what it takes to recompute every table."""
    stream = io.StringIO()
    writer: csv.DictWriter[str] | None = None
    for summary in c.summaries:
        for row in summary.rows:
            reached = row.reached or (None, None)
            line = {
                "method": row.method,
                **dict(zip(c.options.vary, settings(row.value), strict=False)),
                "seed": row.seed,
                "status": row.status,
                "metric": c.options.metric,
                **asdict(row.score),
                "failures": "+".join(row.outcome.failures),
                "failed_at": row.outcome.step,
                "unlearned": row.outcome.unlearned,
                **asdict(row.stability),
                "threshold": c.options.threshold,
                "steps_to_threshold": reached[0],
                "tokens_to_threshold": reached[1],
                "path": row.path,
            }
            if writer is None:
                writer = csv.DictWriter(stream, list(line), lineterminator="\n")
                writer.writeheader()
            writer.writerow(finite(line))
    return stream.getvalue()


def to_markdown_page(c: Comparison, command: str) -> str:
    """All tables as Markdown under the command that made them."""
    parts = [f"```\n{command}\n```\n", *(to_markdown(table) for table in all_tables(c))]
    if c.warnings:
        parts.append("".join(f"- warning: {text}\n" for text in c.warnings))
    return "\n".join(parts)


def print_comparison(c: Comparison, stream: TextIO) -> None:
    """Write every table, at most 80 columns wide."""
    print_report([], all_tables(c), [], stream)


def to_html_page(c: Comparison, verdicts: Sequence[Verdict], command: str) -> str:
    """Everything on one page, the answer first: scores and verdicts, then the figures, then the rest of the tables."""
    from cvxrl.comparison.figures.gallery import all_figures  # tables alone need no plotting library

    page = Page("Comparison of " + ", ".join(dict.fromkeys(s.method for s in c.summaries)), command)
    for problem in c.problems:
        page.problem(str(problem))
    for warning in c.warnings:
        page.warning(warning)
    for verdict in verdicts:
        (page.note if verdict.met else page.problem)(f"require: {verdict}")
    tables = all_tables(c)
    for table in tables[:_ANSWERS]:
        page.table(table)
    for shown in all_figures(c):
        page.figure(shown)
    for table in tables[_ANSWERS:]:
        page.table(table)
    return page.html()
