"""Trackio: a run in its SQLite database on this machine, or on a Hugging Face Space."""

from __future__ import annotations

import importlib
import os
import sqlite3
from collections.abc import Collection, Mapping
from contextlib import closing
from pathlib import Path
from types import ModuleType
from typing import Any

from cvxrl.recipe.monitoring import TrackioSink
from cvxrl.recipe.schema import Recipe
from cvxrl.runs.dashboard import SAMPLES, Dashboard, Samples, Values, table, to_markdown

_BUSY_S = 30.0  # for another run of the project that writes


class TrackioRun(Dashboard):
    """A run of trackio, found again by the id that the run directory keeps.

    Trackio adds rows and never takes one back: logged again, a step would be there twice. On this machine the rows of
    steps that are done again are deleted from its table `metrics` first, and the table says which others are there. On
    a Space they cannot be; there the last step that was handed over is noted, and none is sent twice.
    """

    kind = "trackio"

    def __init__(self, spec: TrackioSink, recipe: Recipe, run_dir: Path) -> None:
        """Nothing is written before the start."""
        super().__init__(recipe, run_dir)
        self._spec = spec
        self._sent: set[int] = set()

    def open(self, kept: int) -> Collection[int]:
        """Begin a run under the own id; rows after ``kept`` go."""
        self._trackio, spec = _trackio(), self._spec
        name, group = spec.name or self.default_name, spec.group or self.method
        self._run = self._trackio.init(spec.project, name, group, spec.space, config=self.config, embed=False)
        self._run.id = self.own_id(32)
        self._local = not _is_remote(spec)
        if self._local:
            self.notes.append(f"look with: trackio show --project {spec.project}")
            self._sent = set(self._keep(kept))
        else:
            last = self.state().get("step", -1)
            self._sent = set(range(last + 1)) if isinstance(last, int) else set()
        return set(self._sent)

    def log(self, step: int, values: Values, rows: Samples | None) -> None:
        """One row: metrics, and completions as a table."""
        if step in self._sent:
            return
        columns, cells = table(rows or [])
        shown = {SAMPLES: self._trackio.Table(columns=columns, data=cells)} if rows else {}
        self._run.log({**values, **shown}, step=step)
        self._sent.add(step)
        if not self._local:
            self.note_state(**{**self.state(), "step": step})

    def image(self, name: str, file: Path) -> None:
        """At the last step."""
        self._run.log({name: self._trackio.Image(str(file), caption=self.default_name)}, step=self.last)

    def close(self, status: str, result: Mapping[str, Any]) -> None:
        """The final numbers as a text at the last step.

        Raises:
            OSError: not every step is in the database: trackio itself warns and goes on.
        """
        text = to_markdown([{"": key, "end": value} for key, value in result.items()])
        self._run.log({"summary": self._trackio.Markdown(text)}, step=self.last)
        self._run.finish()
        missing = self._sent - set(self._steps()) if self._local else ()
        if missing:
            raise OSError(f"{len(missing)} of {len(self._sent)} steps are not in {self._database}")

    def _keep(self, last: int) -> list[int]:
        """Delete what is later; return the steps that are left."""
        if not self._database.is_file():
            return []
        with closing(sqlite3.connect(self._database, timeout=_BUSY_S)) as connection, connection:
            connection.execute("DELETE FROM metrics WHERE run_id = ? AND step > ?", (self._run.id, last))
        return self._steps()

    def _steps(self) -> list[int]:
        with closing(sqlite3.connect(self._database, timeout=_BUSY_S)) as connection:
            found = connection.execute("SELECT DISTINCT step FROM metrics WHERE run_id = ?", (self._run.id,))
            return [step for (step,) in found]

    @property
    def _database(self) -> Path:
        from trackio.sqlite_storage import SQLiteStorage

        return Path(SQLiteStorage.get_project_db_path(self._spec.project))


def _trackio() -> ModuleType:
    """Trackio tells what it does on stdout, where the document of `--json` goes: its modules get a mute `print`.

    Redirecting stdout would take it from all threads.
    """
    trackio = importlib.import_module("trackio")
    for name in ("trackio", "trackio.deploy", "trackio.run", "trackio.utils"):
        vars(importlib.import_module(name))["print"] = lambda *_, **__: None
    return trackio


def _is_remote(spec: TrackioSink) -> bool:
    return bool(spec.space or os.environ.get("TRACKIO_SPACE_ID") or os.environ.get("TRACKIO_SERVER_URL"))
