"""What a study chose and what its rules say, as tables."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from cvxrl.comparison.headroom_table import headroom_table
from cvxrl.comparison.tables import all_tables, scores_table, sensitivity_table
from cvxrl.report.document import Table
from cvxrl.report.format import number
from cvxrl.study.choices import Choice
from cvxrl.study.plan import Study
from cvxrl.study.verdict import Judged


def study_tables(study: Study, chosen: Mapping[str, Choice], judged: Judged) -> list[Table]:
    """Everything in reading order: what was chosen, what the stages came to, and the verdict."""
    tables = [choices_table(study, chosen)] if chosen else []
    if judged.best is not None:
        tables += [_under(f"At the chosen {study.vary}", table) for table in all_tables(judged.best)]
    if judged.sweep is not None:
        tables += [sensitivity_table(judged.sweep), headroom_table(judged.sweep)]
    for name, grid in judged.grids.items():
        tables += [_under(f"Grid {name}", table) for table in (scores_table(grid), sensitivity_table(grid))]
    return [*(table for table in tables if table.rows), rules_table(judged)]


def _under(heading: str, table: Table) -> Table:
    return replace(table, title=f"{heading}: {table.title}")


def choices_table(study: Study, chosen: Mapping[str, Choice]) -> Table:
    """Chosen values and the candidates that they were chosen from."""
    rows = []
    for label, choice in chosen.items():
        others = "\n".join(f"{name}: {number(score)}" for name, score in choice.scores.items())
        settings = ", ".join(f"{key}={value}" for key, value in choice.settings.items()) or "as it is"
        rows.append([label, f"{choice.value:g}", settings, others])
    seeds, by = (study.tuning.seeds, study.tuning.by) if study.tuning is not None else ("", "")
    note = f"Seeds {seeds}, which are not reported again; chosen by the highest {by}."
    return Table(f"Tuning of {study.vary}", ["<method@regime", "chosen", "<setting", f"<{by}"], rows, note)


def rules_table(judged: Judged) -> Table:
    """Every requirement with both of its sides."""
    rows = []
    for name, results in judged.rules:
        for index, result in enumerate(results):
            word = "met" if result.met else "unfinished" if result.unfinished else "not met"
            rows.append(["" if index else name, result.text, number(result.left), word])
    return Table(
        f"Verdict: {judged.verdict}", ["<rule", "<requirement", "left side", "<"], rows, "The first rule that holds."
    )
