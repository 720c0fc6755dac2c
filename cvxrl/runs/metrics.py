"""metrics.jsonl: one JSON object per step."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from cvxrl.runs.files import finite, write_text


def append_record(path: Path, record: Mapping[str, float]) -> None:
    """Append one line and hand it to the operating system."""
    with path.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(finite(dict(record))) + "\n")


def read_records(path: Path) -> list[dict[str, float]]:
    """All whole records; a last line torn by a crash is left out.

    Raises:
        ValueError: a line that is not the last cannot be read.
    """
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").splitlines()
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError as error:
            if number < len(lines):
                raise ValueError(f"{path}: line {number} is damaged: {error}") from error
    return records


def forget_after(path: Path, step: int) -> None:
    """Keep only records up to ``step``: later ones belong to work that a resumed run does again."""
    kept = [r for r in read_records(path) if r["step"] <= step]
    write_text(path, "".join(json.dumps(r) + "\n" for r in kept))
