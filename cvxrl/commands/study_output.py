"""A study's runs as they are, wherever they are kept: judged, printed and written."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from cvxrl.commands import GATE_NOT_MET, complain
from cvxrl.comparison.tex import to_tex
from cvxrl.errors import Problem, UserError
from cvxrl.report.document import Table, print_report
from cvxrl.report.stream import write_out
from cvxrl.runs.files import json_line, write_bytes
from cvxrl.study.choices import Choice, read_choices
from cvxrl.study.collected import Collected, Finder, choose_from, collect, missing
from cvxrl.study.export import to_document, to_html_page, to_markdown_page
from cvxrl.study.plan import Study
from cvxrl.study.runs_csv import to_csv
from cvxrl.study.tables import cells_table, choices_table, main_comparisons, study_tables
from cvxrl.study.verdict import judge_study

if TYPE_CHECKING:
    from cvxrl.commands.compare_output import Output


@dataclass(frozen=True)
class Shown:
    """What is shown.

    Attributes:
        study: the plan.
        chosen: what tuning chose.
        collected: runs of every cell; all of them have ended.
        out: folder in which the study's runs have theirs.
    """

    study: Study
    chosen: dict[str, Choice]
    collected: Collected
    out: Path


def take(study: Study, find: Finder, kept: Path | None, partial: bool) -> tuple[dict[str, Choice], Collected]:
    """Runs as they are, at the values that a file keeps or that they choose themselves.

    Args:
        study: the plan.
        find: where the runs are.
        kept: file of the choices; without one, or where it is not there, the tuning stage's runs choose.
        partial: whether runs may be missing.

    Raises:
        UserError: something is missing and may not be.
    """
    told = None if kept is None else read_choices(kept, study)
    chosen, whole = choose_from(study, find)
    if told is not None:
        _warn_of_others(told, chosen, whole)
        chosen, whole = told, True
    elif not whole:
        if not partial:
            what = "runs of the tuning stage are missing, so nothing is chosen"
            raise UserError(Problem(what, remedy="give the choices with --choices, or add --partial"))
        complain("warning: runs of the tuning stage are missing; the values are chosen from those there are")
    collected = collect(study, chosen, find)
    left = missing([*collected.confirmed, *collected.in_grids])
    if left and not partial:
        what = f"{left} run{'s have' if left > 1 else ' has'} not ended, so nothing is judged"
        raise UserError(Problem(what, remedy="--partial judges what there is"))
    return chosen, collected


def show(shown: Shown, output: Output) -> None:
    """Judge, print the tables of all stages and the verdict, and write what was asked for."""
    study, chosen, collected = shown.study, shown.chosen, shown.collected
    if not any(runs for _, runs in [*collected.confirmed, *collected.in_grids]):
        show_choices(shown, output)
        complain("unfinished: no run has ended that the rules could be held against")
        raise typer.Exit(GATE_NOT_MET)
    judged = judge_study(study, chosen, collected)
    command = shlex.join(["cvxrl", *sys.argv[1:]])
    files: dict[Path, bytes] = {}
    if output.csv:
        files[output.csv] = to_csv(study, collected.every, shown.out / study.name).encode()
    if output.md:
        files[output.md] = to_markdown_page(study, chosen, collected, judged, command).encode()
    if output.tex:
        files[output.tex] = to_tex(main_comparisons(study, judged), command).encode()
    if output.html:
        files[output.html] = to_html_page(study, chosen, collected, judged, command).encode()
    if output.figures:
        from cvxrl.study.figures.gallery import figure_files

        drawn = figure_files(study, collected, judged)
        files |= {output.figures / name: content for name, content in drawn.items()}
    for file, content in files.items():
        write_bytes(file, content)
    if output.as_json:
        write_out(json_line(to_document(study, chosen, collected, judged)) + "\n", sys.stdout)
    else:
        print_report([study.question], study_tables(study, chosen, collected, judged), [], sys.stdout)
    for file in files:
        complain(f"wrote {file}")


def show_choices(shown: Shown, output: Output) -> None:
    """What the tuning stage came to, and its runs as CSV if that was asked for."""
    tables = [choices_table(shown.study, shown.chosen)] if shown.chosen else []
    report([*tables, cells_table(shown.study, shown.chosen, shown.collected)], output)
    if output.csv:
        rows = to_csv(shown.study, shown.collected.every, shown.out / shown.study.name)
        write_bytes(output.csv, rows.encode())
        complain(f"wrote {output.csv}")


def report(tables: Sequence[Table], output: Output) -> None:
    """Print tables where they are not taken for the JSON document."""
    print_report([], tables, [], sys.stderr if output.as_json else sys.stdout)


def _warn_of_others(told: dict[str, Choice], chosen: dict[str, Choice], whole: bool) -> None:
    """Say where the runs would choose otherwise than the file says."""
    if not whole:
        return
    for label, choice in told.items():
        mine = chosen.get(label)
        if mine is not None and (mine.value, mine.settings) != (choice.value, choice.settings):
            text = f"{label}: {choice.value:g} was chosen, these runs would choose {mine.value:g}"
            complain(f"warning: {text}")
