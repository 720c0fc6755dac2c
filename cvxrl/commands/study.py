"""`cvxrl compare PLAN.yaml`: tune, keep what was chosen, confirm on fresh seeds, and say what the plan's rule says."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import typer

from cvxrl.commands import GATE_NOT_MET, USER_ERROR, complain
from cvxrl.commands.study_options import StudyOptions
from cvxrl.commands.study_output import Shown, report, show, show_choices, take
from cvxrl.commands.training import Training, train_plan
from cvxrl.comparison.options import Options
from cvxrl.errors import Problem, UserError
from cvxrl.report.document import print_report
from cvxrl.study import cells as of
from cvxrl.study.cells import Cell
from cvxrl.study.choices import Choice, choose, read_choices, write_choices
from cvxrl.study.collected import Collected, Found, collect, missing
from cvxrl.study.directories import plan_cells, read_cells, together
from cvxrl.study.forecast import forecast, forecast_table, runs_left, time_left
from cvxrl.study.plan import Study, load_study
from cvxrl.study.read_csv import CsvRuns
from cvxrl.study.tables import choices_table

if TYPE_CHECKING:
    from cvxrl.commands.compare_output import Output


@dataclass(frozen=True)
class _Work:
    """A study under way.

    Attributes:
        study, file: the plan.
        kept: file of the choices.
        training: how and how long runs are trained.
        stage: the only one that is trained; None trains all.
    """

    study: Study
    file: Path
    kept: Path
    training: Training
    stage: str | None

    def trains(self, stage: of.Stage) -> bool:
        return self.stage in (None, stage)

    def find(self, cells: Sequence[Cell]) -> Found:
        """Runs of cells in their directories."""
        return read_cells(plan_cells(self.study, self.file, cells, self.training.out))


def run_study(
    paths: Sequence[str],
    training: Training,
    pieces: StudyOptions,
    options: Options,
    output: Output,
    require: Sequence[Any],
) -> None:
    """Bring a study to its verdict, or as far as its runs go.

    Raises:
        UserError: the plan, its recipes or what is there of its runs is wrong.
    """
    file = _only_plan(paths, training, pieces, options, require)
    study = load_study(file)
    kept = pieces.choices or training.out / study.name / "choices.json"
    work = _Work(study, file, kept, training, pieces.stage)
    if training.dry_run:
        rows = forecast(study, file, training.out, read_choices(kept, study))
        print_report([study.question], [forecast_table(study, rows, training.jobs)], [], sys.stdout)
    elif pieces.source is not None:
        runs = CsvRuns(study, pieces.source)
        chosen, collected = take(study, runs.find, pieces.choices, pieces.partial)
        runs.require_planned(collected)
        show(Shown(study, chosen, collected.ended, training.out), output)
    elif pieces.partial:
        chosen, collected = take(study, work.find, kept, True)
        show(Shown(study, chosen, collected.ended, training.out), output)
    else:
        _bring_on(work, output)


def _bring_on(work: _Work, output: Output) -> None:
    """Train what is missing, stage by stage, and judge once nothing is."""
    study = work.study
    chosen = read_choices(work.kept, study)
    if chosen is None:
        chosen = _chosen(work)
    if work.stage == "tuning":
        collected = collect(study, chosen, work.find)
        show_choices(Shown(study, chosen, collected.ended, work.training.out), output)
        return
    confirmed = _train(work, "confirmation", of.confirmation(study, chosen))
    in_grids = _train(work, "grids", of.grids(study, chosen))
    if missing([*confirmed, *in_grids]):
        report([choices_table(study, chosen)] if chosen else [], output)
        _leave_unfinished(work, chosen, "so nothing is judged")
    tuned = work.find([*of.tuning(study), *of.alternatives(study, chosen)])
    show(Shown(study, chosen, Collected(tuned, confirmed, in_grids), work.training.out), output)


def _only_plan(
    paths: Sequence[str], training: Training, pieces: StudyOptions, options: Options, require: Sequence[Any]
) -> Path:
    """The plan; what it decides itself cannot be given beside it."""
    problems = pieces.problems
    if len(paths) > 1:
        problems.append(Problem("a plan is run alone", "PATH", remedy="give the plan and nothing else"))
    plain = Options()
    given = [
        f"--{f.name.replace('_', '-')}" for f in fields(Options) if getattr(options, f.name) != getattr(plain, f.name)
    ]
    given += ["--set"] if training.set_ else []
    given += ["--require"] if require else []
    if training.dry_run and pieces.source is not None:
        what = "says what training takes, where --from reads runs and trains nothing"
        problems.append(Problem(what, "--dry-run", remedy="give one of the two"))
    problems += [Problem("is decided by the plan", option, remedy="change the plan") for option in given]
    if problems:
        raise UserError(*problems)
    return Path(paths[0])


def _chosen(work: _Work) -> dict[str, Choice]:
    """What tuning chooses, once it is whole; nothing where the stage that is asked for needs none."""
    study = work.study
    if study.tuning is None:
        return {}
    if work.trains("tuning"):
        chosen = _tune(work)
        write_choices(work.kept, study, chosen)
        complain(f"wrote {work.kept}")
        return chosen
    if work.stage == "confirmation" or any(grid.multiples for grid in study.grids.values()):
        what = "nothing is chosen yet"
        raise UserError(Problem(what, file=str(work.kept), remedy="run --stage tuning first, or leave --stage out"))
    return {}


def _tune(work: _Work) -> dict[str, Choice]:
    """Train the first stage, its second round with the alternatives included, and choose."""
    study = work.study
    assert study.tuning is not None
    options = Options(confidence=study.confidence)
    first = _train(work, "tuning", of.tuning(study))
    if missing(first):
        _leave_unfinished(work, None, "so nothing is chosen yet")
    second = _train(work, "tuning", of.alternatives(study, choose(first, study.tuning.by, options)))
    if missing(second):
        _leave_unfinished(work, None, "so nothing is chosen yet")
    return choose([*first, *second], study.tuning.by, options)


def _train(work: _Work, stage: of.Stage, cells: Sequence[Cell]) -> Found:
    """Train what is missing of some cells, after everything that they need has been looked at; read all of them."""
    from cvxrl.comparison.preflight import missing_parts

    planned = plan_cells(work.study, work.file, cells, work.training.out)
    whole = together(planned)
    if not work.trains(stage) or not cells:
        return read_cells(planned)
    done = len(whole.runs) - len(whole.jobs)
    complain(f"{work.study.name}, {stage}: {len(whole.runs)} runs, {done} of them finished")
    problems = []
    if whole.jobs and not work.training.is_over:
        wrong = missing_parts(whole.planned, whole.jobs)
        if wrong:
            raise UserError(*wrong)
        problems = train_plan(whole, work.training)
    for problem in problems:
        complain(f"error: {problem}")
    if problems:
        raise typer.Exit(USER_ERROR)
    return read_cells(planned)


def _leave_unfinished(work: _Work, chosen: dict[str, Choice] | None, so: str) -> NoReturn:
    """Say what is left of the stages that are trained, and leave."""
    rows = [row for row in forecast(work.study, work.file, work.training.out, chosen) if work.trains(row.stage)]
    left = runs_left(rows)
    if not left:  # of the stage that was asked for
        complain(f"{work.stage} is finished; other stages are not, {so}")
        raise typer.Exit
    few = f"{left} runs have" if left > 1 else "1 run has"
    time = time_left(rows, work.training.jobs)
    complain(f"unfinished: {few} not ended, {so}; the same command goes on, {time}")
    raise typer.Exit(GATE_NOT_MET)
