"""Our own run directories as runs to compare: read whole, and checked against themselves."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from cvxrl.comparison.foreign.formats import FOREIGN
from cvxrl.comparison.run import LoggedRun
from cvxrl.errors import Mistakes, Problem, UserError
from cvxrl.recipe.digest import digest_of, digests_as_written
from cvxrl.recipe.load import load_recipe
from cvxrl.recipe.schema import Recipe
from cvxrl.runs.columns import Records, read_columns
from cvxrl.runs.directory import RunDir
from cvxrl.runs.record import RunRecord

_LEAVE_OUT = "leave it out, or train it again with --overwrite"
_EDITED = "recipe.yaml has not the digest in run.json; it was edited since, or written by another version of cvxrl"


# The line of a resolved recipe in which the seeds of a method differ.
_SEED = re.compile(r"^seed: (0|[1-9]\d{0,14})$", re.MULTILINE)


class RunDirectories:
    """Source of the runs that `cvxrl train` writes, those of version 0.1 included."""

    def __init__(self) -> None:
        """No recipe has been read yet."""
        self._recipes: dict[str, Recipe] = {}

    def owns(self, path: Path) -> bool:
        """Whether a folder is a run directory, whole or damaged; a damaged one must not be passed over in silence."""
        if not path.is_dir():
            return False
        if (path / "run.json").exists() or (path / "recipe.yaml").exists():
            return True
        looks_alike = path.name.startswith("seed-") or (path / "metrics.jsonl").exists()
        return looks_alike and not any(source.owns(path) for source in FOREIGN)

    def read(self, path: Path) -> LoggedRun:
        """Read a run directory.

        Raises:
            UserError: a file is missing or damaged, or they contradict one another; one problem per file.
        """
        run_dir, mistakes = RunDir(path), Mistakes()
        record = mistakes.attempt(_read_record, run_dir)
        recipe = mistakes.attempt(self._read_recipe, run_dir)
        records = mistakes.attempt(_read_metrics, run_dir)
        if record is None or recipe is None or records is None:
            raise UserError(*mistakes.problems)
        contents, steps, step_K = recipe.model_dump(mode="json"), recipe.train.steps, _steps(records)
        last = int(step_K[-1]) if len(step_K) else 0
        if record.status == "finished" and last != steps:
            text = f"says the run finished, but metrics.jsonl ends at step {last} of {steps}"
            raise UserError(_problem(run_dir.record, text))
        if record.seed != recipe.seed:
            raise UserError(_problem(run_dir.record, f"says seed {record.seed}, recipe.yaml says {recipe.seed}"))
        diverged_at = record.divergence.step if record.divergence else last
        return LoggedRun(
            path=path,
            method=recipe.name,
            seed=record.seed,
            steps=steps,
            records=records,
            status=record.status,
            diverged_at=diverged_at if record.status == "diverged" else None,
            recipe=contents,
            task=record.task_fingerprint,
            origin=_origin(record),
            doubts=tuple(_doubts(record, contents, run_dir, step_K)),
        )

    def _read_recipe(self, run_dir: RunDir) -> Recipe:
        """A run's recipe; checking one takes as long as reading a log, so other seeds take that of the first."""
        try:
            text = run_dir.recipe.read_text(encoding="utf-8")
        except (OSError, ValueError):
            return _load_recipe(run_dir)
        seeds, rest = _SEED.findall(text), _SEED.sub("", text)
        # Beside a run.json paths mean the same in every folder; a file that is extended may have changed.
        if len(seeds) != 1 or "extends" in text or not run_dir.record.is_file():
            return _load_recipe(run_dir)
        first = self._recipes.get(rest)
        if first is not None:
            return first.model_copy(update={"seed": int(seeds[0])})
        recipe = _load_recipe(run_dir)
        if recipe.seed == int(seeds[0]):
            self._recipes[rest] = recipe
        return recipe


def _doubts(record: RunRecord, recipe: dict[str, Any], run_dir: RunDir, step_K: NDArray[Any]) -> Iterator[str]:
    if not _is_as_trained(record, recipe, run_dir):
        yield _EDITED
    if record.status == "running" and not run_dir.is_active():
        yield "no process trains there, so it was killed"
    lacking = int(step_K[-1]) - np.count_nonzero(step_K) if len(step_K) else 0  # steps increase, from 0 or later
    if lacking:
        yield f"metrics.jsonl lacks the records of {lacking} steps, which were lost"


def _read_record(run_dir: RunDir) -> RunRecord:
    try:
        return run_dir.read_record()
    except FileNotFoundError:
        raise UserError(_problem(run_dir.record, "is missing")) from None
    except OSError as error:
        raise UserError(_problem(run_dir.record, f"cannot be read: {_reason(error)}")) from None


def _load_recipe(run_dir: RunDir) -> Recipe:
    try:
        return load_recipe(run_dir.recipe)
    except UserError as error:
        raise UserError(*(_problem(run_dir.recipe, _without_place(p)) for p in error.problems)) from None


def _read_metrics(run_dir: RunDir) -> Records:
    """Lines of metrics.jsonl: each maps text to numbers or null and has a step, and steps increase."""
    try:
        records = read_columns(run_dir.metrics)
    except OSError as error:
        raise UserError(_problem(run_dir.metrics, f"cannot be read: {_reason(error)}")) from None
    if not records.are_numbers or (np.diff(_steps(records), prepend=-1) <= 0).any():
        _refuse(run_dir, records)
    return records


def _steps(records: Records) -> NDArray[Any]:
    """Step of every record."""
    return records.columns["step"].value_K if records else np.zeros(0, dtype=np.int64)


def _refuse(run_dir: RunDir, records: Records) -> NoReturn:
    """Name the first line that is wrong."""
    before = -1.0
    for number, record in enumerate(records, start=1):
        if not all(_is_number(value) for value in record.values()):
            raise UserError(_problem(run_dir.metrics, f"line {number} does not map names to numbers"))
        if record["step"] <= before:
            what = f"line {number}: step {record['step']} does not follow {before:g}"
            raise UserError(_problem(run_dir.metrics, what))
        before = record["step"]
    raise AssertionError("every line is as it should be")


def _is_as_trained(record: RunRecord, recipe: dict[str, Any], run_dir: RunDir) -> bool:
    """Whether the recipe has the digest recorded at the start, under today's schema or as the file was written."""
    return record.digest == digest_of(recipe) or record.digest in digests_as_written(run_dir.recipe)


def _origin(record: RunRecord) -> dict[str, str]:
    origin = record.provenance
    versions = {f"version of {name}": version for name, version in origin.versions.items()}
    commit, streams = f"{origin.commit} {origin.dirty_diff}", str(record.streams)
    return {"commit": commit, **versions, **origin.machine, "random streams": streams}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _problem(file: Path, message: str) -> Problem:
    return Problem(message, file=str(file), remedy=_LEAVE_OUT)


def _without_place(problem: Problem) -> str:
    return f"{problem.key}: {problem.message}" if problem.key else problem.message


def _reason(error: OSError) -> str:
    return error.strerror or type(error).__name__
