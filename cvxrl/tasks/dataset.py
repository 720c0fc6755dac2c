"""Rows of a local file (`cvxrl.tasks.data_file`) or of a Hub data set, read through the package `datasets`."""

from __future__ import annotations

import datetime
import importlib
import re
from collections.abc import Sequence
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

from cvxrl.errors import Problem, UserError
from cvxrl.recipe.task import LOCAL_SUFFIXES, DatasetSource, is_data_file
from cvxrl.tasks.base import Example, Source
from cvxrl.tasks.data_file import read_file
from cvxrl.tasks.finite_task import FiniteTask

_FIELDS = ("prompt_field", "answer_field", "demonstration_field", "chosen_field", "rejected_field")
_NAMED = 10  # rows that a message names; it counts them all


def load(spec: DatasetSource, seed: int) -> FiniteTask:
    """Read the rows and split them.

    Raises:
        UserError: a file is missing or unreadable, the Hub cannot be reached, there are no rows, a field is
            missing or empty, or a split would have no examples.
    """
    name = Path(spec.path).stem if spec.is_file else spec.path
    _check_files(spec)
    train = _examples(_rows(spec, spec.path, spec.split), spec, spec.path, key="task.source.path")
    if spec.eval_path is not None:
        rows = _rows(spec, spec.eval_path, "train", "task.source.eval_path")
        return FiniteTask(name, train, _examples(rows, spec, spec.eval_path, key="task.source.eval_path"), seed)
    if spec.eval_split is not None:
        rows, where = _rows(spec, spec.path, spec.eval_split), f"{spec.path} ({spec.eval_split})"
        return FiniteTask(name, train, _examples(rows, spec, where, key="task.source.eval_split"), seed)
    return FiniteTask.split(name, train, spec.held_out, seed)


def load_rows(spec: DatasetSource) -> Sequence[Example]:
    """Read the rows to evaluate on and no others: those of `eval_path` or `eval_split`, or else all rows.

    Raises:
        UserError: as `load`.
    """
    _check_files(spec)
    if spec.eval_path is not None:
        return _examples(
            _rows(spec, spec.eval_path, "train", "task.source.eval_path"),
            spec,
            spec.eval_path,
            key="task.source.eval_path",
        )
    if spec.eval_split is not None:
        where = f"{spec.path} ({spec.eval_split})"
        return _examples(_rows(spec, spec.path, spec.eval_split), spec, where, key="task.source.eval_split")
    return _examples(_rows(spec, spec.path, spec.split), spec, spec.path, key="task.source.path")


def _check_files(spec: DatasetSource) -> None:
    """Raise UserError for every local file that is not there, all at once."""
    problems = []
    for key, path in (("path", spec.path), ("eval_path", spec.eval_path)):
        if path is None or (Path(path).is_file() and is_data_file(path)):
            continue
        if Path(path).is_file():
            message = f"{path} is a file, but of no kind that holds rows"
            remedy = f"data files end in {', '.join(LOCAL_SUFFIXES)}"
            problems.append(Problem(message, key=f"task.source.{key}", remedy=remedy))
            continue
        # A Hub id is `name` or `owner/name`; whatever has another shape was meant as a file.
        if is_data_file(path) or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", path) or Path(path).exists():
            message = f"there is no file {path} in {Path.cwd()}"
            if Path(path).exists():
                message = f"{path} is a folder, and not a file of rows"
            remedy = f"give a file ending in {', '.join(LOCAL_SUFFIXES)}, or a Hub id (owner/name)"
            problems.append(Problem(message, key=f"task.source.{key}", remedy=remedy))
    if problems:
        raise UserError(*problems)


def _rows(spec: DatasetSource, path: str, split: str, key: str = "task.source.path") -> Any:
    """Return the rows of one split, as a sequence of dicts with `column_names`."""
    if is_data_file(path):
        return read_file(Path(path), key)
    datasets = importlib.import_module("datasets")
    try:
        return datasets.load_dataset(path, spec.config_name, split=split, revision=spec.revision)
    except datasets.exceptions.DatasetNotFoundError as error:
        message, remedy = (
            str(error),
            "check the id and `revision`; a gated data set needs `hf auth login` first",
        )
    except (ConnectionError, TimeoutError) as error:
        message, remedy = (
            f"the Hub cannot be reached: {error}",
            "go online once (it is cached), or give a local file",
        )
    except (ValueError, datasets.exceptions.DatasetsError) as error:
        message, remedy = str(error), "check `config_name`, `split` and `eval_split`"
    except OSError as error:
        # Hub errors of every kind (status codes, offline mode, time-outs) are OSErrors of some library or other.
        message, remedy = (
            f"the Hub refused or failed: {error}",
            "go online once (it is cached), or give a local file",
        )
    raise UserError(Problem(f"cannot load `{path}`: {_one_line(message)}", key="task.source.path", remedy=remedy))


def _examples(rows: Any, spec: DatasetSource, where: str, key: str) -> Sequence[Example]:
    """Turn rows into examples, after checking that the fields are there.

    Raises:
        UserError: no rows, a missing field, an empty value, or an answer that `answer_pattern` does not match.
    """
    if len(rows) == 0:
        raise UserError(Problem("the data set is empty", key=key, file=where, remedy="add rows, or name another split"))
    columns: list[str] = rows.column_names
    named = {f: getattr(spec, f) for f in _FIELDS}
    missing = [
        Problem(
            f"there is no field `{value}`",
            key=f"task.source.{option}",
            file=where,
            remedy=f"fields are {', '.join(columns)}",
        )
        for option, value in named.items()
        if value is not None and value not in columns
    ]
    if missing:
        raise UserError(*missing)
    problems: dict[Problem, list[int]] = {}
    examples = [_example(row, number, spec, problems) for number, row in enumerate(rows)]
    if problems:
        raise UserError(*(_of_rows(problem, numbers, where) for problem, numbers in problems.items()))
    return examples


def _of_rows(problem: Problem, numbers: Sequence[int], where: str) -> Problem:
    """The problem of one row, or of several and how many; rows are counted from 0."""
    shown = ", ".join(map(str, numbers[:_NAMED])) + (", ..." if len(numbers) > _NAMED else "")
    rows = f"row {shown}" if len(numbers) == 1 else f"rows {shown} ({len(numbers)} in all)"
    return replace(problem, message=f"{rows}: {problem.message}", file=where)


def _example(row: dict[str, Any], number: int, spec: DatasetSource, problems: dict[Problem, list[int]]) -> Example:
    """Row `number` as an example; what is wrong with it is added to `problems`."""

    def text(field: str) -> str:
        value, remedy = row[field], "fill it in, remove the row, or name another field"
        written = _written(value)
        if written is None or not written.strip():
            kind = type(value).__name__
            found = "empty" if value is None or written is not None else f"not text or a number but {kind}"
            problem = Problem(f"field `{field}` is {found}", "task.source", remedy=remedy)
            problems.setdefault(problem, []).append(number)
        return written or ""

    answer = "" if spec.answer_field is None else text(spec.answer_field)
    if spec.answer_pattern is not None and spec.answer_field is not None and answer:
        matches = list(re.finditer(spec.answer_pattern, answer))
        if not matches or matches[-1].group(1) is None:
            message = f"`{spec.answer_pattern}` matches nothing in `{answer[:80]}`"
            problem = Problem(message, "task.source.answer_pattern", remedy="change the pattern, or remove the row")
            problems.setdefault(problem, []).append(number)
        else:
            answer = matches[-1].group(1)
    used = {getattr(spec, f) for f in _FIELDS}
    demonstration, chosen, rejected = (
        None if field is None else text(field)
        for field in (spec.demonstration_field, spec.chosen_field, spec.rejected_field)
    )
    return Example(
        id=str(number),
        prompt=text(spec.prompt_field),
        answer=answer.strip(),
        demonstration=demonstration,
        preference=None if chosen is None or rejected is None else (chosen, rejected),
        info={k: v for k, v in row.items() if k not in used},
    )


def _written(value: Any) -> str | None:
    """A plain value as text: truth values as JSON spells them, dates by ISO 8601; None for anything else."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str | int | float | Decimal):
        return str(value)
    if isinstance(value, datetime.datetime | datetime.date | datetime.time):
        return value.isoformat()
    return None


def _one_line(text: str) -> str:
    return " ".join(text.split())[:300]


SOURCE = Source(load, load_rows)
