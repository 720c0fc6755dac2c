"""The options of `cvxrl eval`: their types and help texts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

Ckpt = Annotated[
    str | None, typer.Option(metavar="PATH", help="Run directory, Hugging Face directory or id, or package:NAME/DIR.")
]
Task = Annotated[
    str | None,
    typer.Option(
        metavar="FILE|NAME",
        help="Task file, recipe, shipped task (arithmetic, gsm8k, math500, amc23, aime24, aime25, minerva) or "
        "reasoning-gym:DATASET. Default: the run's own held-out questions.",
    ),
]
Data = Annotated[
    str | None, typer.Option(metavar="FILE", help="Local copy of the task's questions (.jsonl, .json, .parquet).")
]
Template = Annotated[
    Literal["none", "chat", "question-answer", "qwen-math"] | None,
    typer.Option(help="Put the questions behind another template."),
]
Questions = Annotated[int | None, typer.Option(metavar="N", help="Ask only N questions.")]
Samples = Annotated[int | None, typer.Option(metavar="N", help="Completions per question.")]
Ks = Annotated[str | None, typer.Option("--k", metavar="1,4,16", help="Values of k. Default: powers of 4.")]
Temperature = Annotated[float | None, typer.Option(help="Sampling temperature; 0 is greedy.")]
TopP = Annotated[float | None, typer.Option(help="Nucleus mass.")]
MaxNewTokens = Annotated[int | None, typer.Option(metavar="N", help="Longest completion, in tokens.")]
Seed = Annotated[int | None, typer.Option(help="Seed of sampling.")]
Device = Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="Where to run.")]
Dtype = Annotated[Literal["float32", "bfloat16"] | None, typer.Option(help="Data type of the parameters.")]
Revision = Annotated[str | None, typer.Option(help="Revision of a Hub id.")]
Batch = Annotated[
    int | None, typer.Option(metavar="N", help="Completions decoded at a time. Default: what fits into memory.")
]
Out = Annotated[
    Path | None, typer.Option(help="Output folder. Default: evals/TASK in the run, else outputs/eval/CKPT/TASK.")
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with an evaluation; --samples may grow.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Start an evaluation again.")]
From = Annotated[
    Path | None, typer.Option("--from", metavar="EVAL.json", help="Recompute from stored verdicts; asks nothing.")
]
ExportSamples = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Also write samples as lm-eval --log_samples does.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]
