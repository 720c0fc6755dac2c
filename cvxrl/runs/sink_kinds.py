"""The kinds of sinks that `logging.sinks` switches on. One that needs a package asks for it in its function here."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Final, TextIO

from cvxrl.errors import Mistakes, Problem, UserError
from cvxrl.imports import import_function, require_installed
from cvxrl.recipe.monitoring import CallableSink, CsvSink, TensorboardSink, TrackioSink, WandbSink
from cvxrl.recipe.schema import Recipe
from cvxrl.runs.background import Background
from cvxrl.runs.files import write_text
from cvxrl.runs.jsonl import read_records
from cvxrl.runs.sink import NullSink, Opener
from cvxrl.runs.tensorboard_sink import TensorboardRun
from cvxrl.runs.trackio_sink import TrackioRun
from cvxrl.runs.wandb_sink import WandbRun


def sink_openers(recipe: Recipe, run_dir: Path) -> dict[str, Opener]:
    """What makes each sink of a recipe, by its key: nothing is opened or written yet.

    Raises:
        UserError: a function that a sink names cannot be imported, a package that it needs is missing, or two write to
            the same place.
    """
    openers, mistakes = {}, Mistakes()
    kinds = [spec.kind for spec in recipe.logging.sinks]
    for number, spec in enumerate(recipe.logging.sinks):
        key = f"logging.sinks.{number}"
        if spec.kind != "callable" and spec.kind in kinds[:number]:
            what = f"there is a sink of kind {spec.kind} already"
            mistakes.problems.append(Problem(what, key, remedy="leave one of them out"))
        openers[key] = mistakes.attempt(SINKS[spec.kind], spec, key, recipe, run_dir)
    if mistakes.problems:
        raise UserError(*mistakes.problems)
    return {key: opener for key, opener in openers.items() if opener is not None}


class CsvTable(NullSink):
    """metrics.csv: a row per step, a column per key, empty where a step did not measure it.

    The table is written from metrics.jsonl at the start, which a resume has cut back to the step it goes on from, and
    again whenever a key is new; otherwise it grows by a line per step.
    """

    def __init__(self, run_dir: Path) -> None:
        """Nothing is written before the start."""
        super().__init__(run_dir)
        self._records, self._table = run_dir / "metrics.jsonl", run_dir / "metrics.csv"
        self._columns: list[str] = []

    def start(self, title: str, steps: int, done: int) -> None:
        """Write the rows of earlier sessions."""
        self._rewrite()

    def step(self, record: Mapping[str, float]) -> None:
        """Append a row, or write all of them again under more columns."""
        if record.keys() <= set(self._columns):
            with self._table.open("a", encoding="utf-8", newline="") as stream:
                self._write(stream, [record])
        else:
            self._rewrite()

    def _rewrite(self) -> None:
        records = read_records(self._records)
        self._columns = list(dict.fromkeys(key for record in records for key in record))
        text = io.StringIO()
        if self._columns:
            csv.writer(text, lineterminator="\n").writerow(self._columns)
        self._write(text, records)
        write_text(self._table, text.getvalue())

    def _write(self, stream: TextIO, records: Iterable[Mapping[str, float]]) -> None:
        rows = csv.DictWriter(stream, self._columns, restval="", lineterminator="\n")
        # Not finite is empty here as it is null in metrics.jsonl.
        rows.writerows({key: v for key, v in record.items() if v is not None and v - v == 0} for record in records)


def _csv(spec: CsvSink, key: str, recipe: Recipe, run_dir: Path) -> Opener:
    return lambda: CsvTable(run_dir)


def _callable(spec: CallableSink, key: str, recipe: Recipe, run_dir: Path) -> Opener:
    make = import_function(spec.function, f"{key}.function")
    return lambda: make(run_dir, recipe.model_dump(mode="json"), **spec.options)


def _tensorboard(spec: TensorboardSink, key: str, recipe: Recipe, run_dir: Path) -> Opener:
    require_installed("tensorboard", "tensorboard", "tensorboard", key)
    return lambda: Background(lambda: TensorboardRun(spec, recipe, run_dir), spec.patience)


def _trackio(spec: TrackioSink, key: str, recipe: Recipe, run_dir: Path) -> Opener:
    require_installed("trackio", "trackio", "trackio", key)
    return lambda: Background(lambda: TrackioRun(spec, recipe, run_dir), spec.patience)


def _wandb(spec: WandbSink, key: str, recipe: Recipe, run_dir: Path) -> Opener:
    require_installed("wandb", "wandb", "wandb", key)
    return lambda: Background(lambda: WandbRun(spec, recipe, run_dir), spec.patience)


SINKS: Final[dict[str, Callable[[Any, str, Recipe, Path], Opener]]] = {
    "csv": _csv,
    "tensorboard": _tensorboard,
    "trackio": _trackio,
    "wandb": _wandb,
    "callable": _callable,
}
