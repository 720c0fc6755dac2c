"""What a study chose, ran and did not run, what came of it, and what its rules say, as tables."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

from cvxrl.comparison.headroom_table import HALF_FAIL, factor, factor_span, headroom_table
from cvxrl.comparison.result import Comparison
from cvxrl.comparison.tables import all_tables, scores_table, sensitivity_table
from cvxrl.report.document import Table
from cvxrl.report.format import NOTHING, number
from cvxrl.study.cells import Cell
from cvxrl.study.choices import Choice
from cvxrl.study.collected import Collected, lacking
from cvxrl.study.contrasts import contrasts
from cvxrl.study.plan import Study
from cvxrl.study.verdict import CANNOT_BE_TOLD, Judged

_OWN = 4  # columns of the table of headrooms that are of one method
_EDGED = 3  # values from which on the best one can lie between others


def study_tables(study: Study, chosen: Mapping[str, Choice], collected: Collected, judged: Judged) -> list[Table]:
    """Everything in reading order: what was chosen, what ran, what the stages came to, and the verdict."""
    tables = [choices_table(study, chosen)] if chosen else []
    tables += [cells_table(study, chosen, collected)]
    for regime, best in judged.best.items():
        tables += [_under(f"{regime}, at the chosen {study.vary}", table) for table in all_tables(best)]
    if judged.sweep is not None:
        tables += [sensitivity_table(judged.sweep), _headrooms(judged.sweep)]
        tables += [contrasts_table(study, judged)]
    for name, grid in judged.grids.items():
        of_grid = (scores_table(grid), sensitivity_table(grid), _own_columns(headroom_table(grid)))
        tables += [_under(f"Grid {name}", table) for table in of_grid if table.rows]
    return [*(table for table in tables if table.rows), rules_table(judged)]


def main_comparisons(study: Study, judged: Judged) -> list[tuple[str, Comparison]]:
    """What a paper shows: the methods at their chosen values in every regime, or the grids of a study without any."""
    if judged.best:
        return [(f"{regime}, at the chosen {study.vary}", best) for regime, best in judged.best.items()]
    return [(f"Grid {name}", grid) for name, grid in judged.grids.items()]


def _headrooms(sweep: Comparison) -> Table:
    """Headrooms over the values that were chosen on other runs."""
    return replace(_own_columns(headroom_table(sweep)), note=f"{HALF_FAIL} Best: the chosen value.")


def _own_columns(table: Table) -> Table:
    """Without the ratios to one baseline for all regimes, in whose place contrasts stand."""
    note = f"{HALF_FAIL} Best: tried value with the largest mean score, on the same seeds, which the interval counts."
    return Table(table.title, table.columns[:_OWN], [row[:_OWN] for row in table.rows], note)


def _under(heading: str, table: Table) -> Table:
    return replace(table, title=f"{heading}: {table.title}")


def choices_table(study: Study, chosen: Mapping[str, Choice]) -> Table:
    """Chosen values and the candidates that they were chosen from."""
    rows = []
    for label, choice in chosen.items():
        others = "\n".join(f"{name}: {number(score)}" for name, score in choice.scores.items())
        settings = ", ".join(f"{key}={value}" for key, value in choice.settings.items()) or "as it is"
        rows.append([label, f"{choice.value:g}{_edge(choice)}", settings, others])
    seeds, by = (study.tuning.seeds, study.tuning.by) if study.tuning is not None else ("", "")
    note = f"Seeds {seeds}, which are not reported again; chosen by the highest {by}."
    return Table(f"Tuning of {study.vary}", ["<method@regime", "chosen", "<setting", f"<{by}"], rows, note)


def _side(value: float) -> str:
    """A side of a requirement; the open end of an interval is no number."""
    if math.isnan(value):
        return NOTHING
    return "open" if math.isinf(value) else number(value)


def _edge(choice: Choice) -> str:
    """Says that a better value may lie beyond those that were tried."""
    tried = sorted(float(name) for name in choice.scores if "," not in name)
    if len(tried) < _EDGED or tried[0] < choice.value < tried[-1]:
        return ""
    return "\nsmallest tried" if choice.value == tried[0] else "\nlargest tried"


def cells_table(study: Study, chosen: Mapping[str, Choice], collected: Collected) -> Table:
    """How many runs each method has in each stage, and which cells and seeds it lacks."""
    without = lacking(collected.every)
    rows = []
    by_label: dict[tuple[str, str], list[tuple[Cell, int]]] = {}
    for cell, runs in collected.every:
        by_label.setdefault((cell.stage, cell.label), []).append((cell, len(runs)))
    for (stage, label), members in by_label.items():
        gaps = [_gap(cell, seeds) for cell, seeds in without if (cell.stage, cell.label) == (stage, label)]
        planned = sum(len(cell.seeds) for cell, _ in members)
        ended = planned - sum(len(seeds) for cell, seeds in without if (cell.stage, cell.label) == (stage, label))
        places = ", ".join(cell.place for cell, _ in members)
        rows.append([stage, label, places, f"{ended} of {planned}", "\n".join(gaps) or NOTHING])
    for label in study.labels:
        if label not in chosen:
            rows.append(["confirmation", label, NOTHING, "0", "not run: no value is chosen"])
    columns = ["<stage", "<method@regime", f"<{study.vary}", "runs", "<missing"]
    return Table("Cells", columns, rows, "Runs that came to an end, diverged and failed ones among them.")


def _gap(cell: Cell, seeds: tuple[int, ...]) -> str:
    if len(seeds) == len(cell.seeds):
        return f"{cell.place}: not run"
    return f"{cell.place}: seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"


def contrasts_table(study: Study, judged: Judged) -> Table:
    """Ratios of headrooms, those that the rules speak of first."""
    rows = [
        [
            c.one,
            c.other,
            NOTHING if c.ratio is None else factor(c.ratio),
            NOTHING if c.interval is None else factor_span(c.interval),
            "yes" if c.judged else "",
        ]
        for c in contrasts(study, judged)
    ]
    columns = ["<headroom of", "<over that of", "ratio", f"<{study.confidence:g} interval", "<in rules"]
    return Table("Headroom: contrasts", columns, rows, "Each interval by itself, as the rules take it.")


def rules_table(judged: Judged) -> Table:
    """Every requirement with both of its sides."""
    rows = []
    for name, results in judged.rules:
        for index, result in enumerate(results):
            word = CANNOT_BE_TOLD if result.unfinished else "met" if result.met else "not met"
            gap = f"\nnot run: {', '.join(result.unfinished)}" if result.unfinished else ""
            rows.append(["" if index else name, word, _side(result.left), result.text + gap])
    note = "The first rule whose requirements all hold."
    return Table(f"Verdict: {judged.verdict}", ["<rule", "<", "left side", "<requirement"], rows, note)
