"""metrics.jsonl: one JSON object per step."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from cvxrl.errors import Problem
from cvxrl.runs.files import finite, write_text
from cvxrl.runs.record import UnreadableError
from cvxrl.runs.storage import storage_errors


def append_record(path: Path, record: Mapping[str, float]) -> None:
    """Append one line and hand it to the operating system.

    Raises:
        StorageError: the disk is full; at most a torn last line is left, which `read_records` passes over.
    """
    with storage_errors(path), path.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(finite(dict(record))) + "\n")


def sync_records(path: Path) -> None:
    """Force the records to the disk: a checkpoint must never outlive the lines that lead to it."""
    with storage_errors(path), path.open("a", encoding="utf-8") as stream:
        os.fsync(stream.fileno())


def read_records(path: Path) -> list[dict[str, float]]:
    """All whole records; a last line torn by a crash is left out.

    Raises:
        UnreadableError: a line that is not the last cannot be read.
    """
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    records = []
    for number, line in enumerate(lines, start=1):
        record = _parse(line)
        if record is not None:
            records.append(record)
        elif number < len(lines):
            raise UnreadableError(
                Problem(
                    f"line {number} is damaged: `{line[:60]}`",
                    file=str(path),
                    remedy="delete that line and those after it, then go on with --resume",
                )
            )
    return records


def forget_after(path: Path, step: int) -> None:
    """Keep only records up to ``step``: later ones belong to work that a resumed run does again."""
    kept = [r for r in read_records(path) if r["step"] <= step]
    write_text(path, "".join(json.dumps(r) + "\n" for r in kept))


def last_contiguous_step(records: Sequence[Mapping[str, float]]) -> int:
    """Last step up to which no training step is missing; 0 if the first one is."""
    steps = {int(r["step"]) for r in records}
    reached = 0
    while reached + 1 in steps:
        reached += 1
    return reached


def _parse(line: str) -> dict[str, float] | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    whole = isinstance(record, dict) and isinstance(record.get("step"), int)
    return record if whole else None
