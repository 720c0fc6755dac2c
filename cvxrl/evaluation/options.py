"""What an evaluation can be asked, and the command-line options that set it. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Literal

import typer

_NAMES = {"ks": "k", "entry": "resume or --overwrite"}


@dataclass(frozen=True)
class Options:
    """What the user asked for; None where the task or the run decides. The help text of a field is its description.

    Attributes:
        entry: how an existing output folder is entered.
    """

    ckpt: Annotated[
        str | None,
        typer.Option(metavar="PATH", help="Run directory, Hugging Face directory or id, or package:NAME/DIR."),
    ] = None
    task: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|NAME",
            help="Task file, recipe, shipped task (carrying-sums, arithmetic, gsm8k, math500, amc23, aime24, aime25, "
            "minerva) or reasoning-gym:DATASET. Default: the run's own held-out questions.",
        ),
    ] = None
    data: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Local copy of the task's questions (.jsonl, .json, .csv, .tsv, .parquet)."),
    ] = None
    template: Annotated[
        Literal["none", "chat", "question-answer", "qwen-math"] | None,
        typer.Option(help="Put the questions behind another template."),
    ] = None
    questions: Annotated[int | None, typer.Option(metavar="N", help="Ask only N questions.")] = None
    samples: Annotated[int | None, typer.Option(metavar="N", help="Completions per question.")] = None
    ks: Annotated[str | None, typer.Option("--k", metavar="1,4,16", help="Values of k. Default: powers of 4.")] = None
    temperature: Annotated[float | None, typer.Option(help="Sampling temperature; 0 is greedy.")] = None
    top_p: Annotated[float | None, typer.Option(help="Nucleus mass.")] = None
    max_new_tokens: Annotated[int | None, typer.Option(metavar="N", help="Longest completion, in tokens.")] = None
    seed: Annotated[int | None, typer.Option(help="Seed of sampling.")] = None
    dtype: Annotated[Literal["float32", "bfloat16"] | None, typer.Option(help="Data type of the parameters.")] = None
    revision: Annotated[str | None, typer.Option(help="Revision of a Hub id.")] = None
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run python code that comes with the policy.")
    ] = False
    batch: Annotated[
        int | None,
        typer.Option(
            metavar="N", help="Completions decoded at a time. Default: as in the run's training, or what fits."
        ),
    ] = None
    engine: Annotated[
        Literal["auto", "static", "transformers", "vllm"] | None,
        typer.Option(help="What samples. Default: as in the run's training, else auto."),
    ] = None
    url: Annotated[
        str | None, typer.Option(metavar="URL", help="Server for --engine vllm (docs/vllm.md). Default: the run's.")
    ] = None
    out: Annotated[
        Path | None, typer.Option(help="Output folder. Default: evals/TASK in the run, else outputs/eval/CKPT/TASK.")
    ] = None
    entry: Literal["new", "resume", "overwrite"] = "new"

    @property
    def given(self) -> list[str]:
        """Names of the options that are not at their default."""
        changed = [f.name for f in fields(self) if getattr(self, f.name) != f.default]
        return [f"--{_NAMES.get(name, name).replace('_', '-')}" for name in changed]
