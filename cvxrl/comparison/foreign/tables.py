"""CSV files: plain ones with a column for the step, and exports of W&B, a chart's and a run's history."""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from cvxrl.comparison.foreign.inside import file_of, inner_name, inner_path
from cvxrl.comparison.foreign.log import Log, Row, refuse
from cvxrl.comparison.foreign.names import PRIME_RL, TINKER, TRL, VERL

# Columns that count steps, the surer ones first: W&B's own `_step` counts calls of its log.
_STEPS = ("step", "global_step", "train/global_step", "trainer/global_step", "Step", "_step")
_LABELS = ("method", "seed")
_SEPARATOR = " - "
_RANGES = ("__MIN", "__MAX")


def owns(path: Path) -> bool:
    """Whether it is a CSV file with a column for the step and another one."""
    file = file_of(path)
    return file.suffix == ".csv" and file.is_file() and _step_column(_header(file)) is not None


def inside(path: Path) -> list[Path]:
    """The runs of a file: as a chart's export names them, or by its columns `method` and `seed`."""
    header = _header(path)
    names = _charted(header)
    if not names and all(column in header for column in _LABELS):
        names = [f"{row.get('method')}-seed{row.get('seed')}" for row in _read(path)]
    return [inner_path(path, name) for name in dict.fromkeys(names)] or [path]


def read(path: Path) -> Log:
    """Read a run of a file.

    Raises:
        UserError: a value is no number, or a line is too long or has no step; all of them at once.
    """
    file, name = file_of(path), inner_name(path)
    header, lines = _header(file), _read(file)
    step = _step_column(header)
    assert step is not None
    if sum(column in header for column in ("step", "Step")) > 1 or len(set(header)) < len(header):
        refuse(file, "has two columns of one name", "leave one column of each name")
    if name is not None and _charted(header):
        columns = {c: c.removeprefix(f"{name}{_SEPARATOR}") for c in header if c.startswith(f"{name}{_SEPARATOR}")}
        columns = {column: metric for column, metric in columns.items() if not metric.endswith(_RANGES)}
    else:
        columns = {c: c for c in header if c not in (step, *_STEPS, *_LABELS, "epoch") and not c.startswith("_")}
        if name is not None:
            lines = [row for row in lines if f"{row.get('method')}-seed{row.get('seed')}" == name]
    # A row of empty cells may be of the others' steps, and does not say that this run came as far.
    rows = [row for row in _rows(file, lines, step, columns) if row[1]]
    known = "W&B" if _charted(header) or step == "_step" else "CSV"
    return Log(path, name or file.stem, known, rows, (*TRL, *VERL, *PRIME_RL, *TINKER))


def _header(file: Path) -> list[str]:
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            return next(csv.reader(stream), [])
    except (OSError, ValueError, csv.Error):
        return []


def _read(file: Path) -> list[dict[str, str]]:
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            return list(csv.DictReader(stream))
    except (OSError, ValueError, csv.Error) as error:
        refuse(file, f"cannot be read: {error}")


def _step_column(header: Sequence[str]) -> str | None:
    return next((name for name in _STEPS if name in header), None) if len(header) > 1 else None


def _charted(header: Sequence[str]) -> list[str]:
    """Names of the runs of a chart's export, whose columns are `RUN - METRIC`."""
    columns = [column for column in header if column not in _STEPS]
    if not columns or not all(_SEPARATOR in column for column in columns):
        return []
    return list(dict.fromkeys(column.rpartition(_SEPARATOR)[0] for column in columns))


def _rows(file: Path, lines: Sequence[Mapping[str, str]], step: str, columns: Mapping[str, str]) -> list[Row]:
    """Numbers of some columns; an empty cell is none."""
    rows: list[Row] = []
    wrong: dict[str, list[int]] = defaultdict(list)
    for number, line in enumerate(lines, start=2):
        at = _number(line.get(step) or "")
        if at is None or None in line:
            refuse(file, f"line {number} has no step, or more cells than the header")
        values = {}
        for column, metric in columns.items():
            text = (line.get(column) or "").strip()
            value = _number(text)
            if value is not None:
                values[metric] = value
            elif text:
                wrong[metric].append(number)
        rows.append((at, values))
    damaged = {metric: at for metric, at in wrong.items() if any(metric in values for _, values in rows)}
    if damaged:
        said = "; ".join(f"`{metric}` in line {at[0]} is no number" for metric, at in damaged.items())
        refuse(file, said)
    return rows


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
