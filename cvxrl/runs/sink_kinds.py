"""The kinds of sinks that `logging.sinks` switches on. One that needs a package asks for it in its function here."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Final, TextIO

from cvxrl.imports import import_function
from cvxrl.recipe.monitoring import CallableSink, CsvSink
from cvxrl.recipe.schema import Recipe
from cvxrl.runs.files import write_text
from cvxrl.runs.jsonl import read_records
from cvxrl.runs.sink import NullSink, Opener


def sink_openers(recipe: Recipe, run_dir: Path) -> dict[str, Opener]:
    """What makes each sink of a recipe, by its key: nothing is opened or written yet.

    Raises:
        UserError: a function that a sink names cannot be imported.
    """
    openers: dict[str, Opener] = {}
    for number, spec in enumerate(recipe.logging.sinks):
        key = f"logging.sinks.{number}"
        openers[key] = SINKS[spec.kind](spec, key, recipe, run_dir)
    return openers


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


SINKS: Final[dict[str, Callable[[Any, str, Recipe, Path], Opener]]] = {"csv": _csv, "callable": _callable}
