"""Rows of a local file or of a Hub data set, read through the package `datasets`."""

from __future__ import annotations

import importlib
import logging
import re
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cvxrl.errors import Problem, UserError
from cvxrl.recipe.task import LOCAL_SUFFIXES, DatasetSource
from cvxrl.tasks.base import Example, Source
from cvxrl.tasks.finite_task import FiniteTask

_FIELDS = ("prompt_field", "answer_field", "demonstration_field", "chosen_field", "rejected_field")
_READERS = {".jsonl": "json", ".json": "json", ".parquet": "parquet"}


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
        rows = _rows(spec, spec.eval_path, "train")
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
        return _examples(_rows(spec, spec.eval_path, "train"), spec, spec.eval_path, key="task.source.eval_path")
    if spec.eval_split is not None:
        where = f"{spec.path} ({spec.eval_split})"
        return _examples(_rows(spec, spec.path, spec.eval_split), spec, where, key="task.source.eval_split")
    return _examples(_rows(spec, spec.path, spec.split), spec, spec.path, key="task.source.path")


def _check_files(spec: DatasetSource) -> None:
    """Raise UserError for every local file that is not there, all at once."""
    problems = []
    for key, path in (("path", spec.path), ("eval_path", spec.eval_path)):
        if path is None or Path(path).is_file():
            continue
        # A Hub id is `name` or `owner/name`; whatever has another shape was meant as a file.
        if path.endswith(LOCAL_SUFFIXES) or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", path) or Path(path).exists():
            problems.append(
                Problem(
                    f"there is no file {path} in {Path.cwd()}",
                    key=f"task.source.{key}",
                    remedy=f"give a file ending in {', '.join(LOCAL_SUFFIXES)}, or a Hub id (owner/name)",
                )
            )
    if problems:
        raise UserError(*problems)


def _rows(spec: DatasetSource, path: str, split: str) -> Any:
    """Return the rows of one split, as a sequence of dicts with `column_names`."""
    datasets = importlib.import_module("datasets")
    if path.endswith(LOCAL_SUFFIXES):
        return _file_rows(datasets, Path(path))
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


def _file_rows(datasets: Any, path: Path) -> Any:
    """Read a local file; the cache is temporary, so a changed file is never answered from an old one."""
    if path.stat().st_size == 0:
        raise UserError(Problem("the data set is empty", key="task.source.path", file=str(path), remedy="add rows"))
    with tempfile.TemporaryDirectory() as cache:
        try:
            with _silent(datasets):
                return datasets.load_dataset(
                    _READERS[path.suffix],
                    data_files=str(path),
                    split="train",
                    cache_dir=cache,
                    keep_in_memory=True,
                )
        except (datasets.exceptions.DatasetsError, ValueError, OSError) as error:
            cause = error.__cause__ or error
            raise UserError(
                Problem(
                    f"cannot be read as {path.suffix[1:]}: {_one_line(str(cause))}",
                    key="task.source.path",
                    file=str(path),
                    remedy="check that every row is complete and that a field has one type throughout",
                )
            ) from error


@contextmanager
def _silent(datasets: Any) -> Iterator[None]:
    """No progress bar, and no traceback in the log of a file that cannot be read: the error says it in one line."""
    verbosity, bars = datasets.utils.logging.get_verbosity(), datasets.utils.are_progress_bars_disabled()
    datasets.utils.logging.set_verbosity(logging.CRITICAL)
    datasets.utils.disable_progress_bars()
    try:
        yield
    finally:
        datasets.utils.logging.set_verbosity(verbosity)
        if not bars:
            datasets.utils.enable_progress_bars()


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
    return list(_read(rows, spec, where))


def _read(rows: Any, spec: DatasetSource, where: str) -> Iterable[Example]:
    for number, row in enumerate(rows):
        answer = "" if spec.answer_field is None else _text(row, spec.answer_field, number, where)
        if spec.answer_pattern is not None and spec.answer_field is not None:
            matches = list(re.finditer(spec.answer_pattern, answer))
            if not matches or matches[-1].group(1) is None:
                message = f"row {number}: `{spec.answer_pattern}` matches nothing in `{answer[:80]}`"
                remedy = "change the pattern, or remove the row"
                raise UserError(Problem(message, key="task.source.answer_pattern", file=where, remedy=remedy))
            answer = matches[-1].group(1)
        used = {getattr(spec, f) for f in _FIELDS}
        texts = [
            None if field is None else _text(row, field, number, where)
            for field in (spec.demonstration_field, spec.chosen_field, spec.rejected_field)
        ]
        demonstration, chosen, rejected = texts
        yield Example(
            id=str(number),
            prompt=_text(row, spec.prompt_field, number, where),
            answer=answer.strip(),
            demonstration=demonstration,
            preference=None if chosen is None or rejected is None else (chosen, rejected),
            info={k: v for k, v in row.items() if k not in used},
        )


def _text(row: dict[str, Any], field: str, number: int, where: str) -> str:
    value = row[field]
    if not isinstance(value, str | int | float) or isinstance(value, bool) or not str(value).strip():
        found = "empty" if value is None or value == "" else f"not text or a number but {type(value).__name__}"
        message, remedy = (
            f"row {number}: field `{field}` is {found}",
            "fill it in, remove the row, or name another field",
        )
        raise UserError(Problem(message, key="task.source", file=where, remedy=remedy))
    return str(value)


def _one_line(text: str) -> str:
    return " ".join(text.split())[:300]


SOURCE = Source(load, load_rows)
