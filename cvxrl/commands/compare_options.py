"""Options of `cvxrl compare`, so that its signature stays readable."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

_TRAIN, _READ, _JUDGE, _WRITE = "Training what is missing", "Reading runs", "Judging", "Output"

Paths = Annotated[
    list[str], typer.Argument(metavar="PATH...", help="Run directories, folders, globs, recipes or their names.")
]
Seeds = Annotated[
    str | None, typer.Option(metavar="0-4", help="Keep these seeds; with recipes, train those that are missing.")
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a recipe key; repeatable.", rich_help_panel=_TRAIN),
]
Out = Annotated[Path, typer.Option(help="Output folder of the runs.", rich_help_panel=_TRAIN)]
Jobs = Annotated[int, typer.Option(min=1, help="Runs at a time; changes no number.", rich_help_panel=_TRAIN)]
Threads = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Processor threads of each run, which decide the last bits of sums; none means OMP_NUM_THREADS, or 1.",
        rich_help_panel=_TRAIN,
    ),
]
Metric = Annotated[
    str, typer.Option(help="Key of metrics.jsonl whose final value is the score.", rich_help_panel=_READ)
]
Window = Annotated[
    int | None,
    typer.Option(min=1, help="Last values averaged; none means 1 of eval/..., else 10.", rich_help_panel=_READ),
]
Vary = Annotated[
    str | None,
    typer.Option(
        metavar="KEY[=A,B]",
        help="Recipe key in which runs of a method differ; with values and recipes, train each.",
        rich_help_panel=_READ,
    ),
]
AllowDiff = Annotated[
    bool, typer.Option("--allow-diff", help="Compare although other keys differ.", rich_help_panel=_READ)
]
Baseline = Annotated[
    str | None, typer.Option(help="Method to compare with; none means the first.", rich_help_panel=_JUDGE)
]
Threshold = Annotated[
    float | None, typer.Option(help="Score to reach; none means 90% of the best.", rich_help_panel=_JUDGE)
]
Collapse = Annotated[
    float, typer.Option(min=0, max=1, help="Collapsed: finished below this share of its best.", rich_help_panel=_JUDGE)
]
Spike = Annotated[
    float, typer.Option(min=1, help="Spike: gradient norm above this many running medians.", rich_help_panel=_JUDGE)
]
DivergedAs = Annotated[
    str, typer.Option(metavar="NUMBER|last|omit", help="Score of a diverged run.", rich_help_panel=_JUDGE)
]
Confidence = Annotated[
    float, typer.Option(min=0.5, max=0.999, help="Of intervals and verdicts.", rich_help_panel=_JUDGE)
]
Require = Annotated[
    list[str] | None,
    typer.Option(
        metavar="EXPR", help='Exit with 3 unless it holds, e.g. "P(a > b) > 0.9"; repeatable.', rich_help_panel=_JUDGE
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.", rich_help_panel=_WRITE)]
Csv = Annotated[Path | None, typer.Option(help="Write one line per run.", rich_help_panel=_WRITE)]
Markdown = Annotated[Path | None, typer.Option(help="Write the tables.", rich_help_panel=_WRITE)]
Html = Annotated[Path | None, typer.Option(help="Write one page with figures.", rich_help_panel=_WRITE)]
Figures = Annotated[
    Path | None, typer.Option(metavar="FOLDER", help="Write each figure as SVG and PNG.", rich_help_panel=_WRITE)
]
