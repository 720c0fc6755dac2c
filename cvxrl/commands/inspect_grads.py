"""`cvxrl inspect-grads`."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from cvxrl.commands.exit_codes import INTERRUPTED
from cvxrl.commands.inspect_options import (
    AllSteps,
    AsJson,
    Device,
    Drift,
    Fresh,
    Html,
    Lanczos,
    Minibatches,
    Objectives,
    Out,
    Parts,
    PathArgument,
    Plot,
    Probes,
    Prompts,
    RecipeFile,
    Samples,
    Set,
    Step,
)
from cvxrl.commands.libraries import loading_libraries
from cvxrl.errors import Problem, UserError, suggest

if TYPE_CHECKING:
    from cvxrl.inspection.options import Part
    from cvxrl.inspection.plan import Plan
    from cvxrl.inspection.record import InspectRecord

_FIGURES = (".png", ".svg")


def inspect_grads(
    path: PathArgument,
    recipe: RecipeFile = None,
    set_: Set = None,
    objectives: Objectives = None,
    step: Step = None,
    all_steps: AllSteps = False,
    prompts: Prompts = None,
    samples: Samples = None,
    minibatches: Minibatches = None,
    drift: Drift = 4,
    parts: Parts = None,
    lanczos: Lanczos = 20,
    probes: Probes = 10,
    device: Device = "auto",
    fresh: Fresh = False,
    out: Out = None,
    plot: Plot = None,
    html: Html = None,
    as_json: AsJson = False,
) -> None:
    """See why a run is stable or not: several objectives on one checkpoint and the same frozen rollouts."""
    from cvxrl.errors import Mistakes
    from cvxrl.inspection.options import Options
    from cvxrl.inspection.plan import make_plan

    mistakes = Mistakes()
    mistakes.problems += _figure_problems(plot)
    chosen, steps = mistakes.attempt(_parts, parts), mistakes.attempt(_steps, step)
    options = Options(
        path=path,
        recipe=recipe,
        sets=set_ or [],
        objectives=None if objectives is None else [name.strip() for name in objectives.split(",") if name.strip()],
        steps=steps,
        all_steps=all_steps,
        prompts=prompts,
        samples=samples,
        minibatches=minibatches,
        drift=drift,
        parts=chosen,
        lanczos=lanczos,
        probes=probes,
        device=device,
        out=out,
        fresh=fresh,
    )
    plan = mistakes.attempt(make_plan, options)  # before the seconds that importing torch takes
    if mistakes.problems or plan is None:
        raise UserError(*mistakes.problems)
    record = _inspect(plan)
    _write(record, plan.folder / "INSPECT.json", plot, html)
    if as_json:
        typer.echo(json.dumps(record.model_dump(mode="json")))
        return
    from cvxrl.inspection.terminal import print_record

    print_record(record, sys.stdout)


def _inspect(plan: Plan) -> InspectRecord:
    with loading_libraries():
        from rich.progress import TaskProgressColumn

        from cvxrl.engine.process import StopRequest
        from cvxrl.inspection.runner import run_inspection
        from cvxrl.report.progress import ProgressBar

    with ProgressBar(sys.stderr, TaskProgressColumn(), lambda done, total: f"{done / total:>5.0%}") as progress:
        with StopRequest() as stop:
            record = run_inspection(plan, progress, lambda: stop.requested)
    if record is None:
        typer.echo(f"interrupted; the frozen rollouts are kept: {plan.folder}", err=True)
        raise typer.Exit(INTERRUPTED)
    return record


def _write(record: InspectRecord, file: Path, plot: Path | None, html: Path | None) -> None:
    """The record, and what else was asked for."""
    from cvxrl.runs.files import write_bytes, write_json, write_text

    write_json(file, record.model_dump(mode="json"))
    if plot is not None:
        from cvxrl.inspection.figures import main_figure
        from cvxrl.report.figure import to_png, to_svg

        figure = main_figure(record).figure
        write_bytes(plot, to_svg(figure) if plot.suffix == ".svg" else to_png(figure))
    if html is not None:
        from cvxrl.inspection.page import make_page

        write_text(html, make_page(record, shlex.join(["cvxrl", *sys.argv[1:]])))
    for written in (file, plot, html):
        if written is not None:
            typer.echo(f"wrote {written}", err=True)


def _figure_problems(plot: Path | None) -> list[Problem]:
    if plot is None or plot.suffix in _FIGURES:
        return []
    return [Problem(f"`{plot}` is neither a PNG nor an SVG file", "--plot", remedy="end its name in .png or .svg")]


def _steps(text: str | None) -> list[int] | None:
    if text is None:
        return None
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise UserError(
            Problem(f"`{text}` is not a list of steps", "--step", remedy="for example 50 or 0,50,100")
        ) from None


def _parts(text: str | None) -> tuple[Part, ...] | None:
    """The parts to measure, in their usual order."""
    if text is None:
        return None
    from cvxrl.inspection.options import PARTS

    asked = [name.strip() for name in text.split(",") if name.strip()]
    problems = []
    for name in asked:
        if name not in PARTS:
            remedy = f"{suggest(name, PARTS)}choose from {', '.join(PARTS)}"
            problems.append(Problem(f"there is no part `{name}`", "--parts", remedy=remedy))
    if not asked:
        problems.append(Problem("names no part", "--parts", remedy=f"choose from {', '.join(PARTS)}"))
    if "bands" in asked and "gradients" not in asked:
        problems.append(Problem("`bands` split the gradients", "--parts", remedy="add gradients"))
    if problems:
        raise UserError(*problems)
    return tuple(part for part in PARTS if part in asked)
