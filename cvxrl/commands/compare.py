"""`cvxrl compare`."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from cvxrl.commands import compare_options as option
from cvxrl.commands.exit_codes import GATE_NOT_MET, USER_ERROR
from cvxrl.errors import Problem, UserError

if TYPE_CHECKING:
    from cvxrl.compare.gate import Gate, Verdict
    from cvxrl.compare.options import Options
    from cvxrl.compare.result import Comparison


def compare(
    paths: option.Paths,
    seeds: option.Seeds = None,
    set_: option.Set = None,
    out: option.Out = Path("outputs"),
    jobs: option.Jobs = 1,
    threads: option.Threads = None,
    metric: option.Metric = "eval/accuracy",
    window: option.Window = None,
    vary: option.Vary = None,
    allow_diff: option.AllowDiff = False,
    baseline: option.Baseline = None,
    threshold: option.Threshold = None,
    collapse: option.Collapse = 0.5,
    spike: option.Spike = 5.0,
    diverged_as: option.DivergedAs = "0",
    confidence: option.Confidence = 0.95,
    require: option.Require = None,
    as_json: option.Json = False,
    csv: option.Csv = None,
    md: option.Markdown = None,
    html: option.Html = None,
    figures: option.Figures = None,
) -> None:
    """Compare methods over training seeds; with recipes and --seeds, train first what is missing."""
    from cvxrl.compare.arguments import parse_arguments
    from cvxrl.compare.options import Options
    from cvxrl.compare.plan import split_vary

    key, values = split_vary(vary)
    asked = parse_arguments(
        seeds, require or [], diverged_as, [f for f in (csv, md, html) if f], [figures] if figures else []
    )
    options = Options(
        metric=metric,
        window=window,
        baseline=baseline,
        vary=key,
        threshold=threshold,
        collapse=collapse,
        spike=spike,
        diverged_as=asked.diverged_as,
        confidence=confidence,
        allow_diff=allow_diff,
        seeds=asked.seeds,
    )
    comparison = _compare(paths, options, (set_ or [], values), out, (jobs, threads))
    verdicts = _judge(comparison, asked.gates)
    written = _write(comparison, verdicts, csv, md, html) + (_draw(comparison, figures) if figures else [])
    if as_json:
        from cvxrl.compare.export import to_document

        typer.echo(json.dumps(to_document(comparison, verdicts)))
    else:
        from cvxrl.compare.terminal import print_comparison

        print_comparison(comparison, sys.stdout)
    _leave(comparison, verdicts, written)


def _compare(
    paths: Sequence[str],
    options: Options,
    overrides: tuple[Sequence[str], Sequence[str]],
    out: Path,
    at_work: tuple[int, int | None],
) -> Comparison:
    """Find the runs, train those that are missing, read all, compare.

    Args:
        paths: run directories, folders, globs or recipes.
        options: how to compare.
        overrides: of recipe keys: the same for all runs, and values of the varied key.
        out: output folder.
        at_work: runs at a time, and threads of each.
    """
    from cvxrl.compare.discover import discover
    from cvxrl.compare.plan import plan_runs
    from cvxrl.compare.result import build
    from cvxrl.compare.run import read_run

    found, (sets, values) = discover(paths), overrides
    if not found.recipes:
        wrong = [text for text, given in (("--set", sets), ("--vary KEY=A,B", values)) if given]
        found.problems += [Problem("is for training recipes", text, remedy="give recipes as PATH") for text in wrong]
    elif values and options.seeds is None:
        found.problems.append(Problem("trains, so it needs seeds", "--vary KEY=A,B", remedy="add --seeds 0-4"))
    try:
        plan = plan_runs(found.recipes, sets, options.seeds, out, (options.vary, values))
    except UserError as error:
        raise UserError(*found.problems, *error.problems) from None
    if plan.jobs and found.problems:
        raise UserError(*found.problems)  # before hours of training, not after
    if plan.jobs:
        from cvxrl.compare.train import train_all
        from cvxrl.compare.watch import make_watcher

        with make_watcher(sys.stderr, sum(job.steps for job in plan.jobs)) as watcher:
            found.problems += train_all(plan.jobs, *at_work, watcher)
    failed = {problem.file for problem in found.problems}
    runs = []
    for path in dict.fromkeys([*plan.runs, *found.runs]):
        try:
            if str(path) not in failed:
                runs.append(read_run(path))
        except UserError as error:
            found.problems += error.problems
    return build(runs, options, found.problems)


def _judge(comparison: Comparison, gates: Sequence[Gate]) -> list[Verdict]:
    from cvxrl.compare.gate import check_names, judge

    unknown = [problem for gate in gates for problem in check_names(gate, comparison)]
    if unknown:
        raise UserError(*comparison.problems, *unknown)
    return [judge(gate, comparison) for gate in gates]


def _write(
    comparison: Comparison, verdicts: Sequence[Verdict], csv: Path | None, md: Path | None, html: Path | None
) -> list[Path]:
    """Write the files that were asked for."""
    from cvxrl.compare.export import to_csv, to_markdown_page
    from cvxrl.runs.files import write_text

    command = shlex.join(["cvxrl", *sys.argv[1:]])
    if csv:
        write_text(csv, to_csv(comparison))
    if md:
        write_text(md, to_markdown_page(comparison, command))
    if html:
        from cvxrl.compare.page import make_page

        write_text(html, make_page(comparison, verdicts, command))
    return [file for file in (csv, md, html) if file]


def _draw(comparison: Comparison, folder: Path) -> list[Path]:
    """Write every figure into a folder, beside whatever else is there."""
    from cvxrl.compare.figures.gallery import figure_files

    folder.mkdir(parents=True, exist_ok=True)
    files = figure_files(comparison)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return [folder / name for name in files]


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
