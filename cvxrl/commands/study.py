"""`cvxrl compare PLAN.yaml`: tune, keep what was chosen, confirm on fresh seeds, and say what the plan's rule says."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from cvxrl.commands import GATE_NOT_MET, USER_ERROR
from cvxrl.commands.training import Training, train_plan
from cvxrl.comparison.options import Options
from cvxrl.comparison.plan import Plan
from cvxrl.comparison.run import Run
from cvxrl.comparison.study import Study, load_study
from cvxrl.comparison.study_stages import (
    Choice,
    Setting,
    alternatives,
    choose,
    confirmation,
    plan_setting,
    read_choices,
    read_setting,
    tuning,
    write_choices,
)
from cvxrl.comparison.study_verdict import choices_table, judge_study, missing, rules_table, to_document
from cvxrl.errors import Mistakes, Problem, UserError
from cvxrl.report.document import print_report

if TYPE_CHECKING:
    from cvxrl.commands.compare import Output
    from cvxrl.comparison.study_verdict import Judged

_Found = list[tuple[Setting, list[Run]]]


def run_study(
    paths: Sequence[str], training: Training, options: Options, output: Output, require: Sequence[Any]
) -> None:
    """Bring a study to its verdict, or as far as its runs go.

    Raises:
        UserError: the plan, its recipes or what is there of its runs is wrong.
    """
    file = _only_plan(paths, training, options, require)
    study = load_study(file)
    kept = training.out / study.name / "choices.json"
    chosen = read_choices(kept, study)
    if chosen is None:
        chosen = _tune(study, file, training)
        write_choices(kept, study, chosen)
        typer.echo(f"wrote {kept}", err=True)
    found = _train(study, file, confirmation(study, chosen), training)
    left = missing(found)
    if left:
        _report([choices_table(study, chosen)], output)
        typer.echo(f"unfinished: {left} runs have not ended, so nothing is judged; the same command goes on", err=True)
        raise typer.Exit(GATE_NOT_MET)
    _show(study, chosen, judge_study(study, chosen, found), output)


def _only_plan(paths: Sequence[str], training: Training, options: Options, require: Sequence[Any]) -> Path:
    """The plan; what it decides itself cannot be given beside it."""
    problems = []
    if len(paths) > 1:
        problems.append(Problem("a plan is run alone", "PATH", remedy="give the plan and nothing else"))
    plain = Options()
    given = [
        f"--{f.name.replace('_', '-')}" for f in fields(Options) if getattr(options, f.name) != getattr(plain, f.name)
    ]
    given += ["--set"] if training.set_ else []
    given += ["--require"] if require else []
    problems += [Problem("is decided by the plan", option, remedy="change the plan") for option in given]
    if problems:
        raise UserError(*problems)
    return Path(paths[0])


def _tune(study: Study, file: Path, training: Training) -> dict[str, Choice]:
    """Train the first stage, its second round with the alternatives included, and choose."""
    options = Options(confidence=study.confidence)
    first = _train(study, file, tuning(study), training)
    _require_all(first)
    round_two = alternatives(study, choose(study, first, options))
    second = _train(study, file, round_two, training) if round_two else []
    _require_all(second)
    return choose(study, [*first, *second], options)


def _require_all(found: _Found) -> None:
    left = missing(found)
    if left:
        typer.echo(f"unfinished: {left} tuning runs have not ended, so nothing is chosen yet", err=True)
        raise typer.Exit(GATE_NOT_MET)


def _train(study: Study, file: Path, settings: Sequence[Setting], training: Training) -> _Found:
    """Train what is missing of some settings, after everything that they need has been looked at; read all of them."""
    from cvxrl.comparison.preflight import missing_parts

    mistakes = Mistakes()
    plans = [mistakes.attempt(plan_setting, study, file, setting, training.out) for setting in settings]
    if mistakes.problems:
        raise UserError(*mistakes.problems)
    made = [plan for plan in plans if plan is not None]
    whole = Plan(planned=[one for plan in made for one in plan.planned])
    whole.runs = [run for plan in made for run in plan.runs]
    whole.jobs = [job for plan in made for job in plan.jobs]
    done = len(whole.runs) - len(whole.jobs)
    typer.echo(f"{study.name}, {settings[0].stage}: {len(whole.runs)} runs, {done} of them finished", err=True)
    problems = []
    if whole.jobs:
        wrong = missing_parts(whole.planned, whole.jobs)
        if wrong:
            raise UserError(*wrong)
        problems = train_plan(whole, training)
    for problem in problems:
        typer.echo(f"error: {problem}", err=True)
    if problems:
        raise typer.Exit(USER_ERROR)
    return [(setting, read_setting(setting, plan.runs)) for setting, plan in zip(settings, made, strict=True)]


def _report(tables: Sequence[Any], output: Output) -> None:
    print_report([], tables, [], sys.stderr if output.as_json else sys.stdout)


def _show(study: Study, chosen: dict[str, Choice], judged: Judged, output: Output) -> None:
    """Print the tables of both comparisons and the verdict, and write what was asked for."""
    from cvxrl.commands.compare import write_outputs
    from cvxrl.comparison.export import to_document as comparison_document
    from cvxrl.comparison.headroom_table import headroom_table
    from cvxrl.comparison.tables import all_tables, sensitivity_table
    from cvxrl.runs.files import json_line

    verdicts = [result for _, results in judged.rules for result in results]
    written = write_outputs(judged.sweep, verdicts, output)
    if output.as_json:
        parts = {"best": comparison_document(judged.best, []), "sweep": comparison_document(judged.sweep, [])}
        typer.echo(json_line({"study": to_document(study, chosen, judged), **parts}))
    else:
        best = [replace(table, title=f"At the chosen {study.vary}: {table.title}") for table in all_tables(judged.best)]
        sweep = [sensitivity_table(judged.sweep), headroom_table(judged.sweep)]
        tables = [choices_table(study, chosen), *best, *sweep, rules_table(judged)]
        print_report([study.question], tables, [], sys.stdout)
    for path in written:
        typer.echo(f"wrote {path}", err=True)
