"""The options of `cvxrl inspect-grads`: their types and help texts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

_WHAT, _WORK, _WRITE = "What is looked at", "Amount of work", "Output"

PathArgument = Annotated[
    str,
    typer.Argument(metavar="PATH", help="Run directory, one of its checkpoints, or a Hugging Face directory or id."),
]
RecipeFile = Annotated[
    Path | None,
    typer.Option(
        "--recipe",
        metavar="RECIPE",
        help="Recipe file or name, for a PATH that belongs to no run.",
        rich_help_panel=_WHAT,
    ),
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a recipe key; repeatable.", rich_help_panel=_WHAT),
]
Objectives = Annotated[
    str | None,
    typer.Option(
        metavar="A,B",
        help="Kinds (lco-kld, lco-mse, lco-lch, grpo, ppo, reinforce, ...) or recipes. Default: the run's own, "
        "lco-kld, lco-mse, grpo, reinforce, and ppo where there is a critic.",
        rich_help_panel=_WHAT,
    ),
]
Step = Annotated[
    str | None,
    typer.Option(
        metavar="N[,M]", help="Checkpoints of these steps; 0 is before training. Default: last.", rich_help_panel=_WHAT
    ),
]
AllSteps = Annotated[bool, typer.Option("--all-steps", help="Every checkpoint of the run.", rich_help_panel=_WHAT)]
Prompts = Annotated[
    int | None, typer.Option(min=1, metavar="N", help="Prompts. Default: the recipe's.", rich_help_panel=_WORK)
]
Samples = Annotated[
    int | None,
    typer.Option(min=1, metavar="N", help="Completions per prompt. Default: the recipe's.", rich_help_panel=_WORK),
]
Minibatches = Annotated[
    int | None,
    typer.Option(
        min=1, metavar="N", help="Equal parts for the noise scale. Default: at most 8.", rich_help_panel=_WORK
    ),
]
Drift = Annotated[
    int,
    typer.Option(
        min=0,
        metavar="N",
        help="Also look at logit space after N optimizer steps of the run's own objective; 0 does not.",
        rich_help_panel=_WORK,
    ),
]
Parts = Annotated[
    str | None,
    typer.Option(
        metavar="A,B",
        help="logits, gradients, bands, update, sharpness, curvature. Default: all, without curvature for large "
        "models, and without bands and curvature for --all-steps.",
        rich_help_panel=_WORK,
    ),
]
Lanczos = Annotated[
    int, typer.Option(min=2, metavar="N", help="Hessian-vector products for the eigenvalues.", rich_help_panel=_WORK)
]
Probes = Annotated[int, typer.Option(min=2, metavar="N", help="Random vectors for the trace.", rich_help_panel=_WORK)]
Device = Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="Where to run.", rich_help_panel=_WORK)]
Fresh = Annotated[
    bool, typer.Option("--fresh", help="Sample again, even if frozen rollouts are there.", rich_help_panel=_WORK)
]
Out = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        help="Folder of rollouts and INSPECT.json. Default: inspect/ in the run, else outputs/eval/PATH/inspect.",
        rich_help_panel=_WRITE,
    ),
]
Plot = Annotated[Path | None, typer.Option(metavar="FILE", help="Write a figure (.png, .svg).", rich_help_panel=_WRITE)]
Html = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Write one self-contained page.", rich_help_panel=_WRITE)
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.", rich_help_panel=_WRITE)]
