"""What an inspection can be asked, and the command-line option that asks it. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal, get_args

import typer

from cvxrl.errors import Problem, UserError, suggest

Part = Literal["logits", "gradients", "bands", "update", "sharpness", "direction", "reuse", "curvature"]
PARTS: tuple[Part, ...] = get_args(Part)
# What a look at every checkpoint measures unless told otherwise: the others cost many passes each.
QUICK_PARTS: tuple[Part, ...] = ("logits", "gradients", "update", "sharpness")
# What a large model is measured on only when asked.
COSTLY_PARTS: tuple[Part, ...] = ("bands", "direction", "reuse", "curvature")

_WHAT, _WORK, _WRITE = "What is looked at", "Amount of work", "Output"


def split_commas(text: str) -> tuple[str, ...]:
    """`a, b` as ("a", "b"); what the words mean is checked with everything else (`plan.make_plan`)."""
    return tuple(word.strip() for word in text.split(",") if word.strip())


@dataclass(frozen=True)
class InspectOptions:
    """Settings of an inspection; the help text of a field is its description.

    Attributes:
        steps: numbers, or texts of numbers.
        also: parts to measure besides, such as those that a figure shows.
        out: None takes `inspect/` in the run.
    """

    path: Annotated[
        str,
        typer.Argument(
            metavar="PATH",
            help="Run directory, one of its checkpoints, TRL's output folder or a checkpoint in it, or a Hugging Face "
            "directory or id.",
        ),
    ]
    recipe: Annotated[
        Path | None,
        typer.Option(
            metavar="RECIPE", help="Recipe file or name, for a PATH that belongs to no run.", rich_help_panel=_WHAT
        ),
    ] = None
    sets: Annotated[
        list[str],
        typer.Option("--set", metavar="KEY=VALUE", help="Override a recipe key; repeatable.", rich_help_panel=_WHAT),
    ] = field(default_factory=list)
    completions: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH",
            help="Completions that TRL stored (log_completions), a parquet file or their folder. Default: those beside "
            "a checkpoint of TRL.",
            rich_help_panel=_WHAT,
        ),
    ] = None
    objectives: Annotated[
        tuple[str, ...] | None,
        typer.Option(
            parser=split_commas,
            metavar="A,B",
            help="Kinds (lco-kld, lco-mse, lco-lch, grpo, ppo, reinforce, ...), functions (module:function) or "
            "recipes. Default: the run's own, lco-kld, lco-mse, grpo, reinforce, and ppo where there is a critic.",
            rich_help_panel=_WHAT,
        ),
    ] = None
    steps: Annotated[
        tuple[int | str, ...] | None,
        typer.Option(
            "--step",
            parser=split_commas,
            metavar="N[,M]",
            help="Checkpoints of these steps; 0 is before training. Default: last.",
            rich_help_panel=_WHAT,
        ),
    ] = None
    all_steps: Annotated[
        bool, typer.Option("--all-steps", help="Every checkpoint of the run.", rich_help_panel=_WHAT)
    ] = False
    prompts: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Prompts. Default: the recipe's.", rich_help_panel=_WORK)
    ] = None
    samples: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Completions per prompt. Default: the recipe's.", rich_help_panel=_WORK),
    ] = None
    minibatches: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="N", help="Equal parts for the noise scale. Default: at most 8.", rich_help_panel=_WORK
        ),
    ] = None
    drift: Annotated[
        int,
        typer.Option(
            min=0,
            metavar="N",
            help="Also look at logit space after N optimizer steps of the run's own objective; 0 does not.",
            rich_help_panel=_WORK,
        ),
    ] = 4
    updates: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Also look along N optimizer steps of each objective on the same rollouts, old probabilities frozen. "
            "Default: those of the recipe, if it takes more than one per rollout.",
            rich_help_panel=_WORK,
        ),
    ] = None
    inner_epochs: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Likewise, N passes over the rollouts.", rich_help_panel=_WORK),
    ] = None
    inner_minibatches: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="N", help="Of these passes: steps in each. Default: the recipe's.", rich_help_panel=_WORK
        ),
    ] = None
    parts: Annotated[
        tuple[str, ...] | None,
        typer.Option(
            parser=split_commas,
            metavar="A,B",
            help="logits, gradients, bands, update, sharpness, direction, reuse, curvature. Default: all, without "
            "bands, direction, reuse and curvature for large models and several checkpoints.",
            rich_help_panel=_WORK,
        ),
    ] = None
    also: tuple[Part, ...] = ()
    lanczos: Annotated[
        int,
        typer.Option(min=2, metavar="N", help="Hessian-vector products for the eigenvalues.", rich_help_panel=_WORK),
    ] = 20
    probes: Annotated[
        int, typer.Option(min=2, metavar="N", help="Random vectors for the trace.", rich_help_panel=_WORK)
    ] = 10
    device: Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="Where to run.", rich_help_panel=_WORK)] = (
        "auto"
    )
    fresh: Annotated[
        bool,
        typer.Option(
            "--fresh",
            help="Sample again, even if frozen rollouts or stored completions are there.",
            rich_help_panel=_WORK,
        ),
    ] = False
    yes: Annotated[
        bool,
        typer.Option("--yes", help="Go on beyond this machine's memory, or for days.", rich_help_panel=_WORK),
    ] = False
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Folder of rollouts and INSPECT.json. Default: inspect/ in the run, else outputs/eval/PATH/inspect.",
            rich_help_panel=_WRITE,
        ),
    ] = None


@dataclass(frozen=True)
class InspectOutput:
    """What is written beside INSPECT.json."""

    @property
    def shown(self) -> tuple[Part, ...]:
        """Parts that the figures are made of."""
        wanted: dict[Part, Path | None] = {"reuse": self.plot_reuse, "direction": self.plot_direction}
        return tuple(part for part, file in wanted.items() if file is not None)

    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a figure (.png, .svg, .pdf).", rich_help_panel=_WRITE)
    ] = None
    plot_reuse: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write a figure along the updates on one rollout.", rich_help_panel=_WRITE),
    ] = None
    plot_direction: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write a figure of each loss along its own step.", rich_help_panel=_WRITE),
    ] = None
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write one self-contained page.", rich_help_panel=_WRITE)
    ] = None
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON document on stdout.", rich_help_panel=_WRITE)
    ] = False


def check_steps(steps: Sequence[int | str] | None) -> list[int] | None:
    """The steps as numbers.

    Raises:
        UserError: one of them is none.
    """
    if steps is None:
        return None
    try:
        numbers = [int(step) for step in steps]
    except ValueError:
        numbers = []
    if not numbers:
        written = ",".join(map(str, steps))
        what, remedy = f"`{written}` is not a list of steps", "for example 50 or 0,50,100"
        raise UserError(Problem(what, "--step", remedy=remedy))
    return numbers


def check_parts(asked: Sequence[str] | None) -> tuple[Part, ...] | None:
    """The parts to measure, in their usual order.

    Raises:
        UserError: with every name that is no part, or if a part lacks one that it rests on.
    """
    if asked is None:
        return None
    choose = f"choose from {', '.join(PARTS)}"
    unknown = [name for name in asked if name not in PARTS]
    problems = [
        Problem(f"there is no part `{name}`", "--parts", remedy=f"{suggest(name, PARTS)}{choose}") for name in unknown
    ]
    if not asked:
        problems.append(Problem("names no part", "--parts", remedy=choose))
    if "bands" in asked and "gradients" not in asked:
        problems.append(Problem("`bands` split the gradients", "--parts", remedy="add gradients"))
    if problems:
        raise UserError(*problems)
    return tuple(part for part in PARTS if part in asked)
