"""What `cvxrl compare PLAN.yaml` can be asked beside what the plan decides; light, since every `compare` imports it."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated

import typer

from cvxrl.commands.options import writable_file
from cvxrl.errors import Problem, UserError

_STUDY = "Studies (a plan as PATH)"
_STAGES = ("tuning", "confirmation", "grids")


def parse_stage(text: str) -> str:
    """One of the stages.

    Raises:
        UserError: there is no such stage.
    """
    if text not in _STAGES:
        raise UserError(Problem(f"there is no stage `{text}`", "--stage", remedy=f"write {', '.join(_STAGES)}"))
    return text


@dataclass(frozen=True)
class StudyOptions:
    """How a study is brought on."""

    stage: Annotated[
        str | None,
        typer.Option(
            parser=parse_stage,
            metavar="|".join(_STAGES),
            help="Train this stage alone, such as tuning, to commit what was chosen before the next.",
            rich_help_panel=_STUDY,
        ),
    ] = None
    choices: Annotated[
        Path | None,
        typer.Option(
            parser=writable_file,
            help="File that keeps what tuning chose; none means choices.json beside the runs.",
            rich_help_panel=_STUDY,
        ),
    ] = None

    partial: Annotated[
        bool,
        typer.Option(
            "--partial",
            help="Train nothing and judge what there is: what is missing is named, and what it takes is not told.",
            rich_help_panel=_STUDY,
        ),
    ] = False
    source: Annotated[
        Path | None,
        typer.Option(
            "--from",
            metavar="CSV",
            help="Take all runs from a file that --csv wrote.",
            rich_help_panel=_STUDY,
        ),
    ] = None

    @property
    def problems(self) -> list[Problem]:
        """What of it says nothing where runs are only read, and choices that are to be read and are not there."""
        reads = "--from" if self.source is not None else "--partial" if self.partial else None
        if reads is None:
            return []
        problems = []
        if self.stage is not None:
            what = f"trains a stage, where {reads} trains nothing"
            problems.append(Problem(what, "--stage", remedy="give one of the two"))
        if self.choices is not None and not self.choices.is_file():
            remedy = "check the path, or leave it out to choose by the runs of the tuning stage"
            problems.append(Problem("no such file", "--choices", str(self.choices), remedy))
        return problems

    def refuse_without_plan(self) -> None:
        """These options belong to a plan.

        Raises:
            UserError: one is given.
        """
        names = {"source": "from"}
        given = [names.get(f.name, f.name) for f in fields(self) if getattr(self, f.name) != f.default]
        if given:
            what = "is for a study"
            raise UserError(*(Problem(what, f"--{name}", remedy="give a plan as PATH") for name in given))
