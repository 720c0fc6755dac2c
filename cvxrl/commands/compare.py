"""`cvxrl compare`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, NoReturn

import typer

from cvxrl.commands import DONE, GATE_NOT_MET, USER_ERROR, complain
from cvxrl.commands.compare_output import Output, write_outputs
from cvxrl.commands.completion import recipe_names
from cvxrl.commands.help import Command
from cvxrl.commands.options import with_options
from cvxrl.commands.study_options import StudyOptions
from cvxrl.commands.training import Training, train_plan
from cvxrl.comparison.foreign.label import parse_alias, parse_label
from cvxrl.comparison.options import Options, check_varied, split_vary
from cvxrl.errors import Problem, UserError
from cvxrl.report.stream import write_out

if TYPE_CHECKING:
    from cvxrl.comparison.gate import Gate, Verdict
    from cvxrl.comparison.plan import Plan, Varied
    from cvxrl.comparison.result import Comparison
    from cvxrl.comparison.run import Run

_READ, _JUDGE = "Reading runs", "Judging"


@dataclass(frozen=True)
class Given:
    """What is compared.

    Attributes:
        labels: logs of other programs, each a path with its method and seed.
        aliases: names of ours with what the logs call them.
    """

    paths: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="PATH...",
            autocompletion=recipe_names,
            help="Run directories, folders, globs, logs of other programs, recipes or their names; or one plan.",
        ),
    ] = None
    labels: Annotated[
        list[Any] | None,
        typer.Option(
            "--as",
            parser=parse_label,
            metavar="METHOD:SEED=PATH",
            help="A log of another program, and what it is a run of; repeatable.",
            rich_help_panel=_READ,
        ),
    ] = None
    aliases: Annotated[
        list[Any] | None,
        typer.Option(
            "--alias",
            parser=parse_alias,
            metavar="OURS=THEIRS",
            help="What other programs call a metric; repeatable.",
            rich_help_panel=_READ,
        ),
    ] = None

    def require_some(self) -> None:
        """Refuse a command without anything to compare.

        Raises:
            UserError: it is one.
        """
        if not self.paths and not self.labels:
            remedy = "give run directories, logs of other programs or recipes as PATH"
            raise UserError(Problem("there is nothing to compare", "PATH", remedy=remedy))


def _gate(text: str) -> Gate:
    from cvxrl.comparison.gate import parse_gate  # brings NumPy, which --help does without

    return parse_gate(text)


class CompareCommand(Command):
    """A command with its examples."""

    examples: ClassVar = {
        "cvxrl compare outputs/math_*": "runs that are there",
        "cvxrl compare trl_runs/* outputs/math_*": "beside runs that TRL logged",
        "cvxrl compare math_grpo math_lco_kld --seeds 0-4 --jobs 2": "train what is missing, then compare",
        "cvxrl compare recipes/plans/small.yaml --jobs 2 --yes": "a study: tune, confirm, and judge by its own rule",
        "cvxrl compare recipes/plans/stability.yaml --jobs 2 --yes --for 40m": "forty minutes of a longer one",
        "cvxrl compare math_grpo --vary optim.lr=1e-4,1e-3 --seeds 0-2": "one method at several settings",
        'cvxrl compare outputs/* --require "low(diff(a, b)) > 0" --json': "for a script: exit code 3 if not met",
    }


@with_options
def compare(
    given: Given,
    training: Training,
    pieces: StudyOptions,
    options: Options,
    output: Output,
    vary: Annotated[
        list[Any] | None,
        typer.Option(
            parser=split_vary,
            metavar="KEY[=A,B]",
            help="Recipe key in which runs of a method differ; with values and recipes, train each. Twice: a grid.",
            rich_help_panel=_READ,
        ),
    ] = None,
    require: Annotated[
        list[Any] | None,
        typer.Option(
            parser=_gate,
            metavar="EXPR",
            help='Exit with 3 unless it holds, e.g. "low(diff(a, b)) > 0"; repeatable.',
            rich_help_panel=_JUDGE,
        ),
    ] = None,
) -> None:
    """Compare methods over training seeds; with recipes and --seeds, train first what is missing; or run a plan."""
    varied, paths = vary or [], given.paths or []
    given.require_some()
    check_varied(varied)
    options = replace(options, vary=tuple(key for key, _ in varied))
    if any(_is_study(path) for path in paths):
        from cvxrl.commands.study import run_study

        run_study(paths, training, pieces, options, output, require or [])
        return
    pieces.refuse_without_plan()
    comparison = _compare(given, options, varied, training)
    verdicts = _judge(comparison, require or [])
    written = write_outputs(comparison, verdicts, output)
    if output.as_json:
        from cvxrl.comparison.export import to_document
        from cvxrl.runs.files import json_line

        write_out(json_line(to_document(comparison, verdicts)) + "\n", sys.stdout)
    else:
        from cvxrl.comparison.export import print_comparison

        print_comparison(comparison, sys.stdout)
    _leave(comparison, verdicts, written)


def _is_study(path: str) -> bool:
    if not path.endswith((".yaml", ".yml")):
        return False
    from cvxrl.study.plan import is_study

    return is_study(Path(path))


def _compare(given: Given, options: Options, varied: Sequence[Varied], training: Training) -> Comparison:
    """Find the runs, train those that are missing, read all, compare.

    Args:
        given: run directories, folders, globs, logs, recipes or their names.
        options: how to compare.
        varied: the varied keys with the values for which recipes are trained.
        training: how.
    """
    from cvxrl.comparison.plan import plan_runs, split_bases
    from cvxrl.comparison.result import build
    from cvxrl.comparison.sources import discover, discover_stated, read_runs

    found, sets, values = discover(given.paths or []), training.set_, any(values for _, values in varied)
    named, stated = discover_stated(given.labels or [], dict(given.aliases or []))
    found.add(named)
    if not found.recipes:
        wrong = [text for text, given in (("--set", sets), ("--vary KEY=A,B", values)) if given]
        found.problems += [Problem("is for training recipes", text, remedy="give recipes as PATH") for text in wrong]
    elif values and options.seeds is None:
        found.problems.append(Problem("trains, so it needs seeds", "--vary KEY=A,B", remedy="add --seeds 0-4"))
    try:
        recipes, bases = split_bases(found.recipes)
        plan = plan_runs(recipes, sets, options.seeds, training.out, varied)
    except UserError as error:
        raise UserError(*found.problems, *error.problems) from None
    for base in bases:
        complain(f"left out {base}: no method, but what others of the recipes share")
    runs, unreadable = read_runs(found.runs, stated)
    if plan.jobs:
        for line in plan.describe(training.jobs):
            complain(line)
        _check(plan, runs, found.problems, options)
    if training.dry_run:
        complain("trains nothing" if plan.jobs else "nothing is to be trained")
        raise typer.Exit(DONE)
    if plan.jobs:
        found.problems += train_plan(plan, training)
        left = plan_runs(recipes, sets, options.seeds, training.out, varied) if training.is_over else None
        if left is not None and left.jobs:
            _leave_unfinished(left, found.problems, training)
    failed = {problem.file for problem in found.problems}
    read_already = {run.path for run in runs}
    trained, broken = read_runs(path for path in plan.runs if str(path) not in failed and path not in read_already)
    return build([*trained, *runs], options, [*found.problems, *unreadable, *broken])


def _leave_unfinished(left: Plan, problems: Sequence[Problem], training: Training) -> NoReturn:
    """The time was over before all runs had been trained: say what is left."""
    for problem in problems:
        complain(f"error: {problem}")
    for line in left.describe(training.jobs):
        complain(line)
    complain("unfinished, so nothing is compared yet; the same command goes on")
    raise typer.Exit(USER_ERROR if problems else GATE_NOT_MET)


def _check(plan: Plan, runs: Sequence[Run], problems: Sequence[Problem], options: Options) -> None:
    """Find before hours of training what would be found after them, or when a run's turn comes; all of it at once."""
    from cvxrl.comparison.preflight import incomparable, missing_parts  # reads data, which takes a second to import

    wrong = [*problems, *incomparable(plan.planned, runs, options), *missing_parts(plan.planned, plan.jobs)]
    if wrong:
        raise UserError(*wrong)


def _judge(comparison: Comparison, gates: Sequence[Gate]) -> list[Verdict]:
    from cvxrl.comparison.gate import check_names, judge

    unknown = [problem for gate in gates for problem in check_names(gate, comparison)]
    if unknown:
        raise UserError(*comparison.problems, *unknown)
    return [judge(gate, comparison) for gate in gates]


def _leave(comparison: Comparison, verdicts: Sequence[Verdict], written: Sequence[Path]) -> None:
    """Say on stderr what went wrong, what was written and which requirements hold; then exit."""
    for warning in comparison.warnings:
        complain(f"warning: {warning}")
    for file in written:
        complain(f"wrote {file}")
    for verdict in verdicts:
        complain(f"require: {verdict}")
    for problem in comparison.problems:
        complain(f"error: {problem}")
    if comparison.problems:
        raise typer.Exit(USER_ERROR)
    if not all(verdict.met for verdict in verdicts):
        raise typer.Exit(GATE_NOT_MET)
