"""What `cvxrl train --dry-run` prints: the recipe, what it comes to, and what each rank takes of memory and time."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cvxrl.errors import Mistakes, Problem, UserError
from cvxrl.ranks import is_main

if TYPE_CHECKING:
    from cvxrl.engine.plan import Plan, RankPlan
    from cvxrl.engine.workload import Rates
    from cvxrl.recipe.schema import Recipe

_PANEL = "What --dry-run counts for"
_MOST_COLUMNS = 5
_LABEL, _COLUMN = 30, 10

Ranks = Annotated[
    str | None, typer.Option("--ranks", metavar="N,M", help="Numbers of ranks, one a GPU.", rich_help_panel=_PANEL)
]
Memory = Annotated[
    str | None,
    typer.Option(
        "--device-memory", metavar="80GiB", help="Of a rank's device; else this one's.", rich_help_panel=_PANEL
    ),
]
Flops = Annotated[
    str | None,
    typer.Option("--device-flops", metavar="400T", help="Operations a second, in bf16.", rich_help_panel=_PANEL),
]
Bandwidth = Annotated[
    str | None,
    typer.Option("--device-bandwidth", metavar="2.3T", help="Bytes a second, of its memory.", rich_help_panel=_PANEL),
]


@dataclass(frozen=True)
class Machine:
    """What the options say of the machine that a plan is for; a mistake in them is told before anything is counted.

    Attributes:
        ranks: numbers of ranks, if given.
        memory: bytes of a rank's device, if given.
        rates: what it does in a second, if given.
    """

    ranks: list[int] | None
    memory: int | None
    rates: Rates | None

    @classmethod
    def of(cls, ranks: str | None, memory: str | None, flops: str | None, bandwidth: str | None) -> Machine:
        """Parse the options.

        Raises:
            UserError: with every one that cannot be used.
        """
        from cvxrl.engine.device import parsed_size
        from cvxrl.engine.workload import Rates

        mistakes = Mistakes()
        counts = mistakes.attempt(_counts, ranks) if ranks is not None else None
        given = {"--device-memory": memory, "--device-flops": flops, "--device-bandwidth": bandwidth}
        found = {name: mistakes.attempt(parsed_size, text, name) for name, text in given.items() if text is not None}
        if mistakes.problems:
            raise UserError(*mistakes.problems)
        rates, default = None, Rates()
        if flops is not None or bandwidth is not None:
            fast = found.get("--device-flops") or default.flops
            read = found.get("--device-bandwidth") or default.bandwidth
            rates = replace(default, flops=fast, fp32=fast * default.fp32 / default.flops, bandwidth=read)
        room = found.get("--device-memory")
        return cls(counts, None if room is None else int(room), rates)


def print_plan(recipe: Recipe, machine: Machine, as_json: bool) -> None:
    """Print the plan of a recipe.

    Raises:
        UserError: it fits on no number of ranks that was asked for; the plan is printed first.
    """
    from cvxrl.engine.device import device_memory
    from cvxrl.engine.plan import describe

    memory = machine.memory or device_memory(recipe.train.device)
    plan = describe(recipe, machine.ranks, memory, machine.rates)
    if as_json and is_main():
        from cvxrl.engine.workload import Rates
        from cvxrl.recipe.digest import digest
        from cvxrl.runs.files import json_line

        document = {"recipe": recipe.model_dump(mode="json"), "digest": digest(recipe), "plan": _document(plan)}
        typer.echo(json_line({**document, "device": {"memory": memory, "rates": asdict(machine.rates or Rates())}}))
    elif is_main():  # of a launcher's processes
        for line in (*_summary(recipe, plan), *_per_rank(recipe, plan, memory, machine)):
            typer.echo(line)
    if memory is not None and plan.ranks and not any(planned.fits for planned in plan.ranks):
        from cvxrl.engine.remedies import too_large

        raise UserError(too_large(recipe, plan.ranks[-1], memory))


def _document(plan: Plan) -> dict[str, Any]:
    """The plan as JSON has it, with the sums."""
    document = asdict(plan)
    for one, planned in zip(document["ranks"], plan.ranks, strict=True):
        one["memory"]["peak"] = planned.memory.peak
        if planned.seconds is not None:
            one["seconds"]["step"] = planned.seconds.step
    return document


def _summary(recipe: Recipe, plan: Plan) -> Iterator[str]:
    from cvxrl.recipe.digest import digest
    from cvxrl.recipe.load import dump
    from cvxrl.recipe.task import MadeSource, space

    memory = f"{plan.memory_bytes / 2**20:,.0f} MiB (estimate)" if plan.memory_bytes else "unknown before loading"
    parameters = f"{plan.parameters:,}" if plan.parameters else "unknown before loading"
    if plan.parameters and plan.trainable != plan.parameters:
        parameters += f", {plan.trainable:,} more are trained"
    yield dump(recipe)
    yield f"digest            {digest(recipe)}"
    yield f"loss per token    {plan.equation}"
    yield f"reduction         {plan.reduction}"
    yield _filled("step", plan.step)
    if isinstance(source := recipe.task.source, MadeSource):
        yield f"prompts           {space(source):,} different ones, {source.held_out:.0%} of them held out"
    yield f"tokens per step   at most {plan.max_tokens:,} in {plan.sequences:,} sequences"
    yield f"optimizer steps   {plan.optimizer_steps:,}, {plan.updates:,} on each rollout"
    yield f"parameters        {parameters}"
    if len(plan.ranks) < 2:
        yield f"memory            {memory}"
    for note in plan.notes:
        yield _filled("note", note)
    for warning in plan.warnings:
        yield _filled("warning", warning)


def _per_rank(recipe: Recipe, plan: Plan, memory: int | None, machine: Machine) -> Iterator[str]:
    """A column for each number of ranks; nothing where a single process was not asked about."""
    from cvxrl.engine.placed import served

    if not plan.ranks or (len(plan.ranks) == 1 and plan.ranks[0].ranks == 1 and machine == Machine(None, None, None)):
        return
    yield ""
    yield _row("ranks", [f"{planned.ranks:,}" for planned in plan.ranks])
    yield "memory of a rank, GiB by count"
    for label, part in _MEMORY.items():
        values = [getattr(planned.memory, part) for planned in plan.ranks]
        if any(values):
            yield _row(f"  {label}", [_gib(value) for value in values])
    yield _row("  largest at one time", [_gib(planned.memory.peak) for planned in plan.ranks])
    if memory is not None:
        fits = ["yes" if planned.fits else "no" for planned in plan.ranks]
        yield _row(f"  fits into {memory / 2**30:,.1f} GiB", fits)
    timed = [planned for planned in plan.ranks if planned.seconds is not None]
    if timed:
        yield from _times(plan, timed, machine, served(recipe))


def _times(plan: Plan, timed: list[RankPlan], machine: Machine, with_server: bool) -> Iterator[str]:
    from cvxrl.engine.workload import Rates

    rates = machine.rates or Rates()
    yield "seconds of a step, by count, every reply as long as it may be"
    for label, part in _SECONDS.items():
        values = [getattr(planned.seconds, part) for planned in timed]
        if any(values):
            yield _row(f"  {label}", [f"{value:,.2f}" for value in values])
    hours = [planned.seconds.step * plan.optimizer_steps / plan.updates / 3600 for planned in timed if planned.seconds]
    yield _row("hours of the run", [f"{value:,.1f}" for value in hours])
    devices = [planned.ranks + with_server for planned in timed]
    yield _row("device hours", [f"{value * count:,.1f}" for value, count in zip(hours, devices, strict=True)])
    server = "; the server that samples is one more device" if with_server else ""
    stated = (
        f"at {rates.flops / 1e12:,.0f} TFLOP/s in bf16, {rates.fp32 / 1e12:,.0f} in fp32, "
        f"{rates.bandwidth / 1e12:.1f} TB/s of memory, {rates.link / 1e9:,.0f} GB/s to ranks of the same "
        f"{rates.machine}, {rates.network / 1e9:,.0f} to others; nothing overlaps; "
        f"without grading and evaluations{server}"
    )
    yield from textwrap.wrap(stated, 80)


# In the order in which they come up in a step.
_MEMORY = {
    "any run": "start",
    "weights": "weights",
    "frozen policies": "frozen",
    "optimizer state": "optimizer",
    "gradients": "gradients",
    "kept of the rollout": "kept",
    "activations": "activations",
    "logits": "logits",
    "gathered for a pass": "gathered",
    "whole weights to sample": "whole",
    "keys and values, drawing": "cache",
    "trying a step": "tried",
    "weights that sample": "second",
    "vLLM": "engine",
}
_SECONDS = {
    "sampling": "sampling",
    "reading": "reading",
    "update": "update",
    "optimizer": "optimizer",
    "exchange": "exchange",
    "all": "step",
}


def _row(label: str, cells: list[str]) -> str:
    return f"{label:{_LABEL}}" + "".join(f"{cell:>{_COLUMN}}" for cell in cells)


def _gib(count: float) -> str:
    return f"{count / 2**30:,.2f}"


def _filled(label: str, text: str) -> str:
    return textwrap.fill(f"{label:18}{text}", 80, subsequent_indent=" " * 18)


def _counts(text: str) -> list[int]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) > 0 for part in parts) or len(parts) > _MOST_COLUMNS:
        remedy = f"write up to {_MOST_COLUMNS} of them: --ranks 1,8,64"
        raise UserError(Problem(f"`{text}` are no numbers of ranks", "--ranks", remedy=remedy))
    return [int(part) for part in parts]
