"""`cvxrl compare`."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import typer

from cvxrl.commands import GATE_NOT_MET, USER_ERROR, command_to_go_on
from cvxrl.commands.help import Command
from cvxrl.commands.options import with_options, writable_file, writable_folder
from cvxrl.comparison.options import Options, split_vary
from cvxrl.errors import Problem, UserError

if TYPE_CHECKING:
    from cvxrl.comparison.gate import Gate, Verdict
    from cvxrl.comparison.result import Comparison

_TRAIN, _JUDGE, _WRITE = "Training what is missing", "Judging", "Output"


@dataclass(frozen=True)
class Training:
    """How missing runs are made."""

    set_: Annotated[
        list[str],
        typer.Option("--set", metavar="KEY=VALUE", help="Override a recipe key; repeatable.", rich_help_panel=_TRAIN),
    ] = field(default_factory=list)
    out: Annotated[Path, typer.Option(help="Output folder of the runs.", rich_help_panel=_TRAIN)] = Path("outputs")
    jobs: Annotated[int, typer.Option(min=1, help="Runs at a time; changes no number.", rich_help_panel=_TRAIN)] = 1
    threads: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Processor threads of each run, which decide the last bits of sums; none means OMP_NUM_THREADS, or 1.",
            rich_help_panel=_TRAIN,
        ),
    ] = None


@dataclass(frozen=True)
class Output:
    """What is written, and where."""

    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON document on stdout.", rich_help_panel=_WRITE)
    ] = False
    csv: Annotated[
        Path | None, typer.Option(parser=writable_file, help="Write one line per run.", rich_help_panel=_WRITE)
    ] = None
    md: Annotated[Path | None, typer.Option(parser=writable_file, help="Write the tables.", rich_help_panel=_WRITE)] = (
        None
    )
    html: Annotated[
        Path | None, typer.Option(parser=writable_file, help="Write one page with figures.", rich_help_panel=_WRITE)
    ] = None
    figures: Annotated[
        Path | None,
        typer.Option(
            parser=writable_folder,
            metavar="FOLDER",
            help="Write each figure as PNG, SVG and PDF.",
            rich_help_panel=_WRITE,
        ),
    ] = None


def _gate(text: str) -> Gate:
    from cvxrl.comparison.gate import parse_gate  # brings NumPy, which --help does without

    return parse_gate(text)


class CompareCommand(Command):
    """A command with its examples."""

    examples: ClassVar = {
        "cvxrl compare outputs/math_*": "runs that are there",
        "cvxrl compare math_grpo math_lco_kld --seeds 0-4 --jobs 2": "train what is missing, then compare",
        "cvxrl compare math_grpo --vary optim.lr=1e-4,1e-3 --seeds 0-2": "one method at several settings",
        'cvxrl compare outputs/* --require "P(a > b) > 0.9" --json': "for a script: exit code 3 if not met",
    }


@with_options
def compare(
    paths: Annotated[
        list[str], typer.Argument(metavar="PATH...", help="Run directories, folders, globs, recipes or their names.")
    ],
    training: Training,
    options: Options,
    output: Output,
    require: Annotated[
        list[Any] | None,
        typer.Option(
            parser=_gate,
            metavar="EXPR",
            help='Exit with 3 unless it holds, e.g. "P(a > b) > 0.9"; repeatable.',
            rich_help_panel=_JUDGE,
        ),
    ] = None,
) -> None:
    """Compare methods over training seeds; with recipes and --seeds, train first what is missing."""
    key, values = split_vary(options.vary)
    comparison = _compare(paths, replace(options, vary=key), values, training)
    verdicts = _judge(comparison, require or [])
    written = _write(comparison, verdicts, output)
    if output.as_json:
        from cvxrl.comparison.export import to_document
        from cvxrl.runs.files import json_line

        typer.echo(json_line(to_document(comparison, verdicts)))
    else:
        from cvxrl.comparison.export import print_comparison

        print_comparison(comparison, sys.stdout)
    _leave(comparison, verdicts, written)


def _compare(paths: Sequence[str], options: Options, values: Sequence[str], training: Training) -> Comparison:
    """Find the runs, train those that are missing, read all, compare.

    Args:
        paths: run directories, folders, globs, recipes or their names.
        options: how to compare.
        values: of the varied key, for which recipes are trained.
        training: how.
    """
    from cvxrl.comparison.plan import plan_runs
    from cvxrl.comparison.result import build
    from cvxrl.comparison.sources import discover, read_runs

    found, sets = discover(paths), training.set_
    if not found.recipes:
        wrong = [text for text, given in (("--set", sets), ("--vary KEY=A,B", values)) if given]
        found.problems += [Problem("is for training recipes", text, remedy="give recipes as PATH") for text in wrong]
    elif values and options.seeds is None:
        found.problems.append(Problem("trains, so it needs seeds", "--vary KEY=A,B", remedy="add --seeds 0-4"))
    try:
        plan = plan_runs(found.recipes, sets, options.seeds, training.out, (options.vary, values))
    except UserError as error:
        raise UserError(*found.problems, *error.problems) from None
    if plan.jobs and found.problems:
        raise UserError(*found.problems)  # before hours of training, not after
    if plan.jobs:
        from cvxrl.comparison.train import make_watcher, train_all

        with make_watcher(sys.stderr, sum(job.steps for job in plan.jobs)) as watcher:
            found.problems += train_all(plan.jobs, training.jobs, training.threads, watcher, command_to_go_on())
    failed = {problem.file for problem in found.problems}
    asked = dict.fromkeys([*plan.runs, *found.runs])
    runs, unreadable = read_runs(path for path in asked if str(path) not in failed)
    return build(runs, options, [*found.problems, *unreadable])


def _judge(comparison: Comparison, gates: Sequence[Gate]) -> list[Verdict]:
    from cvxrl.comparison.gate import check_names, judge

    unknown = [problem for gate in gates for problem in check_names(gate, comparison)]
    if unknown:
        raise UserError(*comparison.problems, *unknown)
    return [judge(gate, comparison) for gate in gates]


def _write(comparison: Comparison, verdicts: Sequence[Verdict], output: Output) -> list[Path]:
    """Write the files that were asked for; the figures stand beside whatever else is in their folder."""
    from cvxrl.comparison.export import to_csv, to_html_page, to_markdown_page
    from cvxrl.runs.files import write_text

    command = shlex.join(["cvxrl", *sys.argv[1:]])
    if output.csv:
        write_text(output.csv, to_csv(comparison))
    if output.md:
        write_text(output.md, to_markdown_page(comparison, command))
    if output.html:
        write_text(output.html, to_html_page(comparison, verdicts, command))
    pictures: dict[Path, bytes] = {}
    if output.figures:
        from cvxrl.comparison.figures.gallery import figure_files

        output.figures.mkdir(parents=True, exist_ok=True)
        pictures = {output.figures / name: content for name, content in figure_files(comparison).items()}
    for file, content in pictures.items():
        file.write_bytes(content)
    return [*(file for file in (output.csv, output.md, output.html) if file), *pictures]


def _leave(comparison: Comparison, verdicts: Sequence[Verdict], written: Sequence[Path]) -> None:
    """Say on stderr what went wrong, what was written and which requirements hold; then exit."""
    for warning in comparison.warnings:
        typer.echo(f"warning: {warning}", err=True)
    for file in written:
        typer.echo(f"wrote {file}", err=True)
    for verdict in verdicts:
        typer.echo(f"require: {verdict}", err=True)
    for problem in comparison.problems:
        typer.echo(f"error: {problem}", err=True)
    if comparison.problems:
        raise typer.Exit(USER_ERROR)
    if not all(verdict.met for verdict in verdicts):
        raise typer.Exit(GATE_NOT_MET)
