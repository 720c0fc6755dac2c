"""Rows of a local file, every value as a person wrote it there.

JSON and tables of text are read here: libraries that guess one type for a column make 1.0 of a 1 above a 2.5, round
what is beyond 64 bits, and turn text that looks like a date into one. Parquet has its own types; `datasets` reads it.
"""

from __future__ import annotations

import csv
import importlib
import json
import logging
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from cvxrl.errors import Problem, UserError

_UTF8 = "save it as UTF-8 (iconv -f latin1 -t utf-8 {0} > new{1}, if it is Latin-1)"
_COMPLETE = "check that every row is complete"


@dataclass(frozen=True)
class Rows:
    """Rows as mappings, and the names of their columns; a value that a row lacks is None."""

    column_names: list[str]
    rows: Sequence[dict[str, Any]]

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.rows)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """The rows, in order."""
        return iter(self.rows)


class WrittenFloat(float):
    """A number with a fraction or an exponent that prints as it was written: 2.50, 1e5."""

    _text: str

    def __new__(cls, text: str) -> WrittenFloat:
        """Keep the text."""
        made = super().__new__(cls, text)
        made._text = text
        return made

    def __str__(self) -> str:
        """As it was written."""
        return self._text

    def __reduce__(self) -> tuple[type[WrittenFloat], tuple[str]]:
        """Copies print alike."""
        return WrittenFloat, (self._text,)


def read_file(path: Path, key: str) -> Rows:
    """Read a file by its ending.

    Args:
        path: exists, and ends in one of `cvxrl.recipe.task.LOCAL_SUFFIXES`.
        key: recipe key that names it.

    Raises:
        UserError: it is empty, no text in UTF-8, or not what its ending says; with the line where that shows.
    """
    kind = path.suffix.lower()[1:]
    if path.stat().st_size == 0:
        raise UserError(Problem("the data set is empty", key=key, file=str(path), remedy="add rows"))
    if kind == "parquet":
        return _parquet(path, key)
    reader: Callable[[Path], Rows] = {"jsonl": _jsonl, "json": _json, "csv": _table, "tsv": _table}[kind]
    try:
        return reader(path)
    except UnicodeDecodeError as error:
        message, remedy = f"is no text in UTF-8 ({_where(path)})", _UTF8.format(path.name, path.suffix)
        raise UserError(Problem(message, key=key, file=str(path), remedy=remedy)) from error
    except RecursionError as error:
        message, remedy = f"cannot be read as {kind}: nested too deeply", "rows are objects of a few plain values"
        raise UserError(Problem(message, key=key, file=str(path), remedy=remedy)) from error
    except (ValueError, OSError, csv.Error) as error:
        message = f"cannot be read as {kind}: {' '.join(str(error).split())[:300]}"
        raise UserError(Problem(message, key=key, file=str(path), remedy=_COMPLETE)) from error


def _jsonl(path: Path) -> Rows:
    rows = []
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                rows.append(_object(_parse(line, f"line {number}: "), f"line {number}"))
    return _gathered(rows)


def _json(path: Path) -> Rows:
    """A list of rows, an object of columns, or one row a line as in jsonl."""
    text = path.read_text(encoding="utf-8-sig")
    try:
        found = _parse(text, "")
    except json.JSONDecodeError as error:
        if error.msg.startswith("Extra data"):
            return _jsonl(path)
        raise
    if isinstance(found, dict) and found and all(isinstance(column, list) for column in found.values()):
        sizes = {len(column) for column in found.values()}
        if len(sizes) == 1:
            return Rows(
                [*found], [dict(zip(found, values, strict=True)) for values in zip(*found.values(), strict=True)]
            )
    listed = found if isinstance(found, list) else [found]
    return _gathered([_object(row, f"row {number}") for number, row in enumerate(listed)])


def _parse(text: str, where: str) -> Any:
    """JSON with numbers as written; integers of any size."""
    try:
        return json.loads(text, parse_float=WrittenFloat, parse_constant=_no_number)
    except json.JSONDecodeError as error:
        if error.msg.startswith("Extra data") and not where:
            raise
        raise ValueError(f"{where}{error.msg} (column {error.colno})" if where else str(error)) from None
    except ValueError as error:
        raise ValueError(f"{where}{error}") from None


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")


def _object(row: Any, where: str) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise ValueError(f"{where} is no object with fields but {type(row).__name__}")
    return row


def _gathered(rows: Sequence[dict[str, Any]]) -> Rows:
    """Columns in the order in which they first occur; what a row lacks is None."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    return Rows(columns, [{name: row.get(name) for name in columns} for row in rows])


def _table(path: Path) -> Rows:
    """A header and rows of text; quoted values may hold separators and line ends."""
    csv.field_size_limit(2**31 - 1)
    with path.open(encoding="utf-8-sig", newline="") as file:
        delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
        lines = csv.reader(file, delimiter=delimiter, strict=True)
        header = next(lines, [])
        if not all(header) or len({*header}) < len(header):
            raise ValueError(f"its first line, {header}, does not name every column once")
        return Rows(header, list(_table_rows(header, lines)))


def _table_rows(header: list[str], lines: Any) -> Iterable[dict[str, Any]]:
    for values in lines:
        if not values:
            continue
        if len(values) != len(header):
            raise ValueError(f"line {lines.line_num} has {len(values)} values for {len(header)} columns")
        yield dict(zip(header, values, strict=True))


def _where(path: Path) -> str:
    """The first line that is no UTF-8."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                line.decode()
            except UnicodeDecodeError as error:
                return f"line {number}, byte {error.start + 1}: {line[error.start : error.start + 4]!r}"
    return "in the middle of a character"


def _parquet(path: Path, key: str) -> Rows:
    """Read by `datasets`; the cache is temporary, so a changed file is never answered from an old one."""
    datasets = importlib.import_module("datasets")
    with tempfile.TemporaryDirectory() as cache:
        try:
            with _silent(datasets):
                found = datasets.load_dataset(
                    "parquet", data_files=str(path), split="train", cache_dir=cache, keep_in_memory=True
                )
        except (datasets.exceptions.DatasetsError, ValueError, OSError) as error:
            cause = " ".join(str(error.__cause__ or error).split())[:300]
            raise UserError(
                Problem(f"cannot be read as parquet: {cause}", key=key, file=str(path), remedy="write the file again")
            ) from error
        return Rows(list(found.column_names), list(found))


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
