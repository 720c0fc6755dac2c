"""How `cvxrl compare` trains runs that are missing: its options, and the question before it trains many."""

from __future__ import annotations

import re
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cvxrl.commands import USER_ERROR, command_to_go_on
from cvxrl.commands.completion import recipe_keys
from cvxrl.errors import Problem, UserError

if TYPE_CHECKING:
    from cvxrl.comparison.plan import Plan

_MANY = 20  # runs that are trained without asking
_TRAIN = "Training what is missing"
_UNITS = {"s": 1, "m": 60, "h": 3600}


def parse_duration(text: str) -> float:
    """`40m`, `90s` or `1h30m` in seconds.

    Raises:
        UserError: it is written otherwise.
    """
    parts = re.findall(r"(\d+(?:\.\d+)?)([smh])", text)
    if not parts or "".join(number + unit for number, unit in parts) != text.strip():
        raise UserError(Problem(f"`{text}` is no duration", "--for", remedy="write e.g. 40m, 90s or 1h30m"))
    return sum(float(number) * _UNITS[unit] for number, unit in parts)


@dataclass(frozen=True)
class Training:
    """How missing runs are made."""

    set_: Annotated[
        list[str],
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Override a recipe key; repeatable.",
            rich_help_panel=_TRAIN,
            autocompletion=recipe_keys,
        ),
    ] = field(default_factory=list)
    out: Annotated[Path, typer.Option(help="Output folder of the runs.", rich_help_panel=_TRAIN)] = Path("outputs")
    jobs: Annotated[int, typer.Option(min=1, help="Runs at a time; changes no number.", rich_help_panel=_TRAIN)] = 1
    threads: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Processor threads of each run, which decide the last bits of sums; none means OMP_NUM_THREADS, or 1.",
            rich_help_panel=_TRAIN,
        ),
    ] = None
    yes: Annotated[
        bool,
        typer.Option("--yes", help=f"Do not ask before training more than {_MANY} runs.", rich_help_panel=_TRAIN),
    ] = False
    seconds: Annotated[
        float | None,
        typer.Option(
            "--for",
            parser=parse_duration,
            metavar="40m",
            help="Start no run after this time; exit with 3 while some are left.",
            rich_help_panel=_TRAIN,
        ),
    ] = None
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Say what would be trained, and how long it takes.", rich_help_panel=_TRAIN),
    ] = False
    began: float = field(default_factory=time.monotonic)

    @property
    def until(self) -> float | None:
        """Time of `time.monotonic` after which no run is started; None without a limit."""
        return None if self.seconds is None else self.began + self.seconds

    @property
    def is_over(self) -> bool:
        """Whether that time has come."""
        return self.until is not None and time.monotonic() >= self.until


def train_plan(plan: Plan, training: Training) -> list[Problem]:
    """Ask where it is much, and train.

    Returns:
        What went wrong with runs that could not be trained.

    Raises:
        UserError: it is much, there is nobody to ask, and `--yes` is not given.
    """
    from cvxrl.comparison.train import make_watcher, train_all

    much = len(plan.jobs) > _MANY or any(job.overwrite for job in plan.jobs)
    if much and not training.yes:
        if not _on_a_terminal():
            what = f"{len(plan.jobs)} runs would be trained" if len(plan.jobs) > _MANY else "steps would be done again"
            raise UserError(Problem(what, "--yes", remedy="add --yes to do that, or ask for fewer seeds or values"))
        if not typer.confirm("Train them?", err=True):
            raise typer.Exit(USER_ERROR)
    with make_watcher(sys.stderr, sum(job.steps for job in plan.jobs)) as watcher:
        return train_all(plan.jobs, training.jobs, training.threads, watcher, command_to_go_on(), training.until)


def _on_a_terminal() -> bool:
    return sys.stdin.isatty() and sys.stderr.isatty()
