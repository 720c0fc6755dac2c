"""One run as it stands on disk, read and checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from cvxrl.errors import Problem, UserError
from cvxrl.recipe.digest import digest, digests_as_written
from cvxrl.recipe.load import load_recipe
from cvxrl.recipe.schema import Recipe
from cvxrl.runs.directory import RunDir
from cvxrl.runs.jsonl import read_records
from cvxrl.runs.record import SCHEMA_VERSION, RunRecord

Array = NDArray[np.float64]
_LEAVE_OUT = "leave it out, or train it again with --overwrite"


@dataclass(frozen=True)
class Series:
    """Finite values of one metric.

    Attributes:
        step_T: steps at which it was measured, increasing.
        value_T: its values.
    """

    step_T: Array
    value_T: Array


@dataclass(frozen=True)
class Run:
    """A run directory in memory.

    Attributes:
        path: the directory.
        recipe: its resolved recipe.
        record: its run.json.
        records: its metrics.jsonl, steps increasing.
    """

    path: Path
    recipe: Recipe
    record: RunRecord
    records: list[dict[str, float]]

    @property
    def scored(self) -> bool:
        """Whether the run came to an end that counts: finished, or diverged."""
        return self.record.status in ("finished", "diverged")

    def series(self, key: str) -> Series:
        """One metric; empty where it was never measured."""
        found = [(r["step"], r[key]) for r in self.records if r.get(key) is not None]
        step_T, value_T = np.array(found, dtype=float).reshape(-1, 2).T
        return Series(step_T, value_T)

    def last(self, key: str, at: float = np.inf) -> float:
        """Newest value of a metric up to step ``at``; 0 where there is none."""
        series = self.series(key)
        values = series.value_T[series.step_T <= at]
        return float(values[-1]) if len(values) else 0.0


def read_run(path: Path) -> Run:
    """Read a run directory.

    Raises:
        UserError: a file is missing or damaged, or they contradict one another; one problem per file.
    """
    run_dir, problems = RunDir(path), []
    try:
        record = run_dir.read_record()
        if record.schema_version > SCHEMA_VERSION:
            problems.append(_problem(run_dir.record, "was written by a newer cvxrl", "upgrade cvxrl"))
    except FileNotFoundError:
        problems.append(_problem(run_dir.record, "is missing"))
    except (OSError, UnicodeDecodeError, ValidationError) as error:
        problems.append(_problem(run_dir.record, f"cannot be read: {_reason(error)}"))
    try:
        recipe = load_recipe(run_dir.recipe)
    except UserError as error:
        problems += [_problem(run_dir.recipe, _without_place(p)) for p in error.problems]
    try:
        records = read_records(run_dir.metrics)
        _check_records(records)
    except (OSError, ValueError) as error:
        problems.append(_problem(run_dir.metrics, f"cannot be read: {_reason(error)}"))
    if problems:
        raise UserError(*problems)
    run = Run(path, recipe, record, records)
    _check_agreement(run)
    return run


def is_as_trained(run: Run) -> bool:
    """Whether recipe.yaml has the digest in run.json; it has not if it was edited since, or by another version."""
    written = run.record.digest
    return written == digest(run.recipe) or written in digests_as_written(RunDir(run.path).recipe)


def _check_records(records: list[dict[str, float]]) -> None:
    """Every line is a mapping of text to numbers or null, with a step, and steps increase."""
    before = -1.0
    for number, record in enumerate(records, start=1):
        if not isinstance(record, Mapping) or not all(_is_number(value) for value in record.values()):
            raise ValueError(f"line {number} does not map names to numbers")
        step = record.get("step")
        if step is None or step <= before:
            raise ValueError(f"line {number}: step {step} does not follow {before:g}")
        before = step


def _check_agreement(run: Run) -> None:
    """What run.json says and what metrics.jsonl holds belong together."""
    steps, last = run.recipe.train.steps, int(run.last("step"))
    if run.record.status == "finished" and last != steps:
        text = f"says the run finished, but metrics.jsonl ends at step {last} of {steps}"
        raise UserError(_problem(run.path / "run.json", text))
    if run.record.seed != run.recipe.seed:
        text = f"says seed {run.record.seed}, recipe.yaml says {run.recipe.seed}"
        raise UserError(_problem(run.path / "run.json", text))


def _is_number(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def _problem(file: Path, message: str, remedy: str = _LEAVE_OUT) -> Problem:
    return Problem(message, file=str(file), remedy=remedy)


def _without_place(problem: Problem) -> str:
    return f"{problem.key}: {problem.message}" if problem.key else problem.message


def _reason(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        return f"{where}: {first['msg']}" if where else first["msg"]
    if isinstance(error, OSError):
        return error.strerror or type(error).__name__
    return str(error).splitlines()[0].split(": ", 1)[-1] if str(error).startswith("/") else str(error).splitlines()[0]
