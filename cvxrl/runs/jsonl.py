"""Files of JSON lines: metrics.jsonl, updates.jsonl, samples.jsonl and rollouts/*.jsonl, one object per line.

Lines are only ever appended, so that a crash leaves at most a torn last line. Readers leave that one out; a damaged
line before it is an error.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from cvxrl.errors import Problem
from cvxrl.runs.files import finite, storage_errors, write_text
from cvxrl.runs.record import UnreadableError

_T = TypeVar("_T")
_SHOWN = 60  # characters of a damaged line that a message repeats


def append_lines(path: Path, values: Iterable[Mapping[str, Any]]) -> None:
    """Append a line per value and hand them to the operating system; numbers that are not finite become null.

    Raises:
        StorageError: the disk is full; at most a torn last line is left, which `read_lines` passes over.
    """
    with storage_errors(path), path.open("a", encoding="utf-8", errors="backslashreplace", newline="\n") as stream:
        stream.write(_lines(values))


def write_lines(path: Path, values: Iterable[Mapping[str, Any]]) -> None:
    """Write a whole file that appears at once or not at all.

    Raises:
        StorageError: the disk is full; what was there before is untouched.
    """
    write_text(path, _lines(values))


def read_lines(path: Path, parse: Callable[[str], _T], remedy: str) -> list[_T]:
    """All whole lines of a file, none if there is no such file.

    Args:
        path: the file.
        parse: raises ValueError for a line that is not whole.
        remedy: what to do about a damaged line.

    Raises:
        UnreadableError: a line that is not the last cannot be read.
    """
    if not path.is_file():
        return []
    # Not splitlines(): a text may hold any of the other characters that it takes for the end of a line.
    lines = path.read_text(encoding="utf-8", errors="replace").removesuffix("\n").split("\n")
    values = []
    for number, line in enumerate(lines, start=1):
        try:
            values.append(parse(line))
        except ValueError:
            if number < len(lines):
                what = f"line {number} is damaged: `{line[:_SHOWN]}`"
                raise UnreadableError(Problem(what, file=str(path), remedy=remedy)) from None
    return values


def append_record(path: Path, record: Mapping[str, float]) -> None:
    """Append a step to metrics.jsonl.

    Raises:
        StorageError: see `append_lines`.
    """
    append_lines(path, [record])


def replace_last(path: Path, record: Mapping[str, float]) -> None:
    """Put a record in the place of the last one of a metrics.jsonl, which is whole before and after.

    Raises:
        StorageError: see `write_lines`.
    """
    write_lines(path, [*read_records(path)[:-1], record])


def sync_records(path: Path) -> None:
    """Force the records to the disk: a checkpoint must never outlive the lines that lead to it."""
    with storage_errors(path), path.open("a", encoding="utf-8") as stream:
        os.fsync(stream.fileno())


def read_records(path: Path) -> list[dict[str, float]]:
    """All whole records of metrics.jsonl.

    Raises:
        UnreadableError: see `read_lines`.
    """
    return read_lines(path, _record, "delete that line and those after it, then go on with --resume")


def read_what_is_whole(path: Path) -> list[dict[str, float]]:
    """Records of a metrics.jsonl that may be damaged anywhere, by increasing step; of one step, the last."""
    if not path.is_file():
        return []
    found = {}
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):
        with contextlib.suppress(ValueError):
            record = _record(line)
            found[int(record["step"])] = record
    return [found[step] for step in sorted(found)]


def keep_lines(path: Path, last: int) -> None:
    """Leave of a file of records, several to a step, those that are whole and of steps up to ``last``.

    Raises:
        StorageError: see `write_lines`.
    """
    if not path.is_file():
        return
    kept = []
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):
        with contextlib.suppress(ValueError):
            record = _record(line)
            kept += [record] if record["step"] <= last else []
    write_lines(path, kept)


def last_contiguous_step(records: Sequence[Mapping[str, float]]) -> int:
    """Last step up to which no training step is missing; 0 if the first one is."""
    steps = {int(r["step"]) for r in records}
    reached = 0
    while reached + 1 in steps:
        reached += 1
    return reached


def _lines(values: Iterable[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(finite(dict(value)), ensure_ascii=False) + "\n" for value in values)


def _record(line: str) -> dict[str, float]:
    record = json.loads(line)
    if not isinstance(record, dict) or not isinstance(record.get("step"), int):
        raise ValueError("no step")
    return record
