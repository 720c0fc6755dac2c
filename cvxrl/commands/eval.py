"""`cvxrl eval`."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import typer

from cvxrl.commands import INTERRUPTED, command_to_go_on, complain
from cvxrl.commands.help import Command
from cvxrl.commands.options import with_options, writable_file
from cvxrl.errors import Problem, UserError
from cvxrl.evaluation.options import Options
from cvxrl.imports import loading_libraries
from cvxrl.ranks import is_main
from cvxrl.report.stream import write_out

if TYPE_CHECKING:
    from cvxrl.evaluation.record import EvalRecord


class EvalCommand(Command):
    """A command with its examples."""

    examples: ClassVar = {
        "cvxrl eval --ckpt outputs/math_grpo/seed-0": "the run's own held-out questions",
        "cvxrl eval --ckpt org/model --task gsm8k --samples 16 --k 1,4,16": "a model of the Hub",
        "cvxrl eval --from EVAL.json --k 2 --json": "other numbers from stored verdicts",
    }


@with_options
def evaluate(
    options: Options,
    device: Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="Where to run.")] = "auto",
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an evaluation; --samples may grow.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Start an evaluation again.")] = False,
    from_: Annotated[
        Path | None,
        typer.Option(
            "--from",
            metavar="FILE",
            help="Recompute from stored verdicts (EVAL.json, or evals/step-N.json of a run); asks nothing.",
        ),
    ] = None,
    export_samples: Annotated[
        Path | None,
        typer.Option(parser=writable_file, metavar="FILE", help="Also write samples as lm-eval --log_samples does."),
    ] = None,
    html: Annotated[
        Path | None,
        typer.Option(
            parser=writable_file,
            metavar="FILE",
            help="Also write the page of completions there, e.g. of stored verdicts; it is completions.html of OUT.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")] = False,
) -> None:
    """Measure a policy on a task: accuracy, pass@k and maj@k, with their errors."""
    from cvxrl.runs.entry import entry_of

    options = replace(options, entry=entry_of(resume, overwrite))
    if from_ is not None:
        record, file = _recompute(from_, options), from_
        kept = f"verdicts: {file}"
    else:
        record, file = _ask(options, device)
        kept = f"verdicts and completions: {file.parent}, to read: {file.parent / 'completions.html'}"
    if is_main():
        if html is not None:
            from cvxrl.evaluation.page import stored_page
            from cvxrl.runs.files import write_text

            write_text(html, stored_page(file, record))
        _show(record, file.parent, kept, export_samples, as_json)


def _recompute(file: Path, options: Options) -> EvalRecord:
    """The numbers of a stored evaluation, for other values of k."""
    others = replace(options, ks=None).given
    if others:
        what = f"recomputes stored verdicts and cannot be combined with {', '.join(others)}"
        raise UserError(Problem(what, "--from", remedy="only --k, --html, --export-samples and --json go with it"))
    from cvxrl.evaluation.folder import read_record
    from cvxrl.evaluation.summary import check_ks, default_ks, parse_ks, summarize

    wanted = parse_ks(options.ks) if options.ks is not None else None
    record = read_record(file)
    samples = record.sampling.samples
    if wanted is not None:
        check_ks(wanted, samples, "evaluate with --resume and more --samples, or lower k")
    results = summarize(record.questions, wanted or default_ks(samples))
    # Version 0.1 stored some shares without the verdicts behind them.
    stored = {name: getattr(record.results, name) for name in ("truncated", "grader_errors")}
    kept = {name: share for name, share in stored.items() if getattr(results, name) is None}
    return record.model_copy(update={"results": results.model_copy(update=kept)})


def _ask(options: Options, device: str) -> tuple[EvalRecord, Path]:
    """Run an evaluation; its numbers and its EVAL.json."""
    from cvxrl.evaluation.plan import make_plan

    plan = make_plan(options)  # before the seconds that importing torch takes
    with loading_libraries():
        from cvxrl.engine.process import settle_algorithms
        from cvxrl.engine.torch_world import world_on
        from cvxrl.evaluation.progress import BarProgress
        from cvxrl.evaluation.runner import Exam
        from cvxrl.report.stop import StopRequest

    exam, go_on = Exam.prepare(plan, device, world_on(device)), command_to_go_on("--resume")
    if plan.target.recipe is not None:
        settle_algorithms(exam.evaluator.policy.device, plan.target.recipe.train.deterministic)
    try:
        with BarProgress(sys.stderr) as progress, StopRequest(go_on) as stop:
            stop.doing = "this batch of completions"
            for note in plan.notes:
                progress.note(note)
            record = exam.run(progress, lambda: stop.requested)
    finally:
        exam.close()
    if record is None:
        complain(f"interrupted; what was asked is in {plan.folder.path}; go on with: {go_on}")
        raise typer.Exit(INTERRUPTED)
    return record, plan.folder.record


def _show(record: EvalRecord, folder: Path, kept: str, export: Path | None, as_json: bool) -> None:
    """Export if asked, then print."""
    from cvxrl.evaluation.folder import EvalDir, read_samples

    if export is not None:
        from cvxrl.evaluation.export import export_samples

        export_samples(record, read_samples(EvalDir(folder).samples), export)
    if as_json:
        from cvxrl.runs.files import json_line

        write_out(
            json_line(record.model_dump(mode="json", exclude={"questions"}) | {"out": str(folder)}) + "\n", sys.stdout
        )
        return
    from cvxrl.evaluation.table import print_record

    print_record(record, sys.stdout)
    write_out(f"{kept}\n", sys.stdout)
