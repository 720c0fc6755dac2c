"""`cvxrl inspect-grads`."""

from __future__ import annotations

import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import typer

from cvxrl.commands import INTERRUPTED, command_to_go_on, complain
from cvxrl.commands.help import Command
from cvxrl.commands.options import with_options
from cvxrl.errors import Mistakes, Problem, UserError
from cvxrl.imports import loading_libraries
from cvxrl.inspection.options import InspectOptions, InspectOutput
from cvxrl.report.stream import write_out

if TYPE_CHECKING:
    from cvxrl.inspection.plan import InspectionPlan
    from cvxrl.inspection.record import InspectRecord

_FIGURES = (".png", ".svg", ".pdf")


class InspectCommand(Command):
    """A command with its examples."""

    examples: ClassVar = {
        "cvxrl inspect-grads outputs/math_grpo/seed-0": "the run's objective beside the usual ones",
        "cvxrl inspect-grads RUN --objectives lco-kld,grpo --step 0,4,8": "some objectives along a run",
        "cvxrl inspect-grads RUN --updates 16 --plot-reuse reuse.pdf": "along 16 updates on the same rollouts",
        "cvxrl inspect-grads RUN --html page.html --plot figure.svg": "to look at and to publish",
    }


@with_options
def inspect_grads(options: InspectOptions, output: InspectOutput) -> None:
    """See why a run is stable or not: several objectives on one checkpoint and the same frozen rollouts."""
    from cvxrl.inspection.plan import make_plan

    mistakes = Mistakes()
    mistakes.problems += _figure_problems(output)
    options = replace(options, also=output.shown)
    plan = mistakes.attempt(make_plan, options)  # before the seconds that importing torch takes
    if mistakes.problems or plan is None:
        raise UserError(*mistakes.problems)
    record = _inspect(plan)
    _write(record, plan.folder / "INSPECT.json", output)
    if output.as_json:
        from cvxrl.runs.files import json_line

        write_out(json_line(record.model_dump(mode="json")) + "\n", sys.stdout)
        return
    from cvxrl.inspection.tables import print_record

    print_record(record, sys.stdout)


def _inspect(plan: InspectionPlan) -> InspectRecord:
    with loading_libraries():
        from rich.progress import TaskProgressColumn

        from cvxrl.inspection.runner import run_inspection
        from cvxrl.report.progress import ProgressBar
        from cvxrl.report.stop import interrupted_at_once

    bar = ProgressBar(sys.stderr, TaskProgressColumn(), lambda done, total: f"{done / total:>5.0%}")
    try:
        with interrupted_at_once(), bar as progress:
            return run_inspection(plan, progress)
    except KeyboardInterrupt:
        kept = f"frozen rollouts that are whole are kept: {plan.folder}"
        complain(f"interrupted; {kept}; go on with: {command_to_go_on()}")
        raise typer.Exit(INTERRUPTED) from None


def _write(record: InspectRecord, file: Path, output: InspectOutput) -> None:
    """The record, and what else was asked for."""
    from cvxrl.runs.files import write_bytes, write_json, write_text

    write_json(file, record.model_dump(mode="json"))
    figures = {name: plot for name, plot in _figures(output).items() if plot is not None}
    if figures or output.html is not None:
        from cvxrl.inspection.page import figure_of, make_page
        from cvxrl.report.figure import to_file

        for name, plot in figures.items():
            write_bytes(plot, to_file(figure_of(record, name).figure, plot.suffix))
        if output.html is not None:
            write_text(output.html, make_page(record, shlex.join(["cvxrl", *sys.argv[1:]])))
    for written in (file, *figures.values(), output.html):
        if written is not None:
            complain(f"wrote {written}")


def _figures(output: InspectOutput) -> dict[str, Path | None]:
    """Files of the figures, by option."""
    return {
        "--plot": output.plot,
        "--plot-reuse": output.plot_reuse,
        "--plot-direction": output.plot_direction,
    }


def _figure_problems(output: InspectOutput) -> list[Problem]:
    return [
        Problem(f"`{plot}` is no PNG, SVG or PDF file", option, remedy="end its name in .png, .svg or .pdf")
        for option, plot in _figures(output).items()
        if plot is not None and plot.suffix not in _FIGURES
    ]
