"""Weights & Biases: a run on its server, or a directory that `wandb sync` sends later."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cvxrl.recipe.monitoring import WandbSink
from cvxrl.recipe.schema import Recipe
from cvxrl.runs.dashboard import SAMPLES, Dashboard, Samples, Values, table

_SENT = ".synced"  # ending of the file that `wandb sync` leaves beside what it has sent


class WandbRun(Dashboard):
    """A run of W&B, found again by the id that the run directory keeps.

    Its steps only grow: the server keeps the first numbers of a step, so that of steps that are done again the ones of
    the former session stay (the same up to rounding), and it says from which step on it has none. Offline there is
    nobody to ask: a resumed run writes all its steps into a new directory, and the former ones are removed, unless they
    have been sent.
    """

    kind = "wandb"

    def __init__(self, spec: WandbSink, recipe: Recipe, run_dir: Path) -> None:
        """Nothing is written before the start."""
        super().__init__(recipe, run_dir)
        self._spec = spec

    def open(self, kept: int) -> range:
        """Begin, or go on where the server's steps end."""
        import wandb

        self._wandb, spec = wandb, self._spec
        limit = {"finish_timeout": spec.patience} if "finish_timeout" in wandb.Settings.model_fields else {}
        folder = spec.directory or (None if "WANDB_DIR" in os.environ else str(self.run.path))
        if spec.directory is not None:
            Path(spec.directory).expanduser().mkdir(parents=True, exist_ok=True)
        self._run = wandb.init(
            project=spec.project,
            entity=spec.entity,
            id=self.own_id(8),
            name=spec.name or self.default_name,
            group=spec.group or self.method,
            tags=[self.method, f"seed-{self.seed}", *spec.tags],
            config=self.config,
            dir=folder,
            mode=spec.mode,
            resume="allow",
            reinit="create_new",
            settings=wandb.Settings(console="off", silent=True, **limit),
        )
        where = Path(self._run.dir).parent
        self.notes.append(f"send later with: wandb sync {where}" if self._run.offline else str(self._run.url))
        self._first = 0 if self._run.offline else int(self._run.starting_step)
        return range(self._first)

    def caught_up(self) -> None:
        """What former sessions wrote offline is all in the new directory."""
        if self._run.offline:
            here = Path(self._run.dir).parent
            for former in here.parent.glob(f"offline-run-*-{self._run.id}"):
                if former != here and not any(former.glob(f"*{_SENT}")):
                    shutil.rmtree(former, ignore_errors=True)

    def log(self, step: int, values: Values, rows: Samples | None) -> None:
        """One row of the history; steps that the server has are left as they are."""
        if step < self._first:
            return
        columns, cells = table(rows or [])
        shown = {SAMPLES: self._wandb.Table(columns=columns, data=cells)} if rows else {}
        self._run.log({**values, **shown}, step=step)

    def image(self, name: str, file: Path) -> None:
        """At the last step."""
        self._run.log({name: self._wandb.Image(str(file))}, step=max(self.last, self._first))

    def close(self, status: str, result: Mapping[str, Any]) -> None:
        """The final numbers into the run's summary; what neither finished nor was interrupted counts as failed."""
        self._run.summary.update(dict(result))
        self._run.finish(exit_code=0 if status in ("finished", "interrupted") else 1)
