"""A study's runs from its CSV: each row a run that a comparison reads like any other, checked against the plan."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

from cvxrl.comparison.run import LoggedRun, Run, setting
from cvxrl.errors import Problem, UserError
from cvxrl.recipe.digest import digest_of
from cvxrl.recipe.yaml_file import parse_value
from cvxrl.runs.record import Status
from cvxrl.study.cells import Cell, label_of
from cvxrl.study.collected import Collected, Found
from cvxrl.study.plan import Study
from cvxrl.study.runs_csv import RECIPE

_NEEDED = ("stage", "grid", "method", "regime", "value", "alternative", "seed", "status", "steps", "digest")
_RESTORE = "restore the file, or write it anew from the run directories with --csv"
# What tells a row's cell from the others: stage, grid, method, regime, value as written, number of the alternative.
_Key = tuple[str, str, str, str, str, int]


class CsvRuns:
    """Runs of a study's CSV, found by their cells."""

    def __init__(self, study: Study, file: Path) -> None:
        """Read all rows.

        Raises:
            UserError: the file is no such CSV, or a row is damaged or told twice; one problem per row.
        """
        self._file, self._vary = file, study.vary
        self._lines: dict[tuple[_Key, int], int] = {}
        self._runs: dict[_Key, list[LoggedRun]] = {}
        problems = []
        for line, row in enumerate(_rows(file), start=2):
            try:
                key, run = _key(row), self._read(row)
                first = self._lines.setdefault((key, run.seed), line)
                if first != line:
                    raise ValueError(f"is the same run as line {first}")
                self._runs.setdefault(key, []).append(run)
            except (ValueError, KeyError, TypeError) as error:  # what json, float and look-ups raise
                problems.append(Problem(f"line {line}: {_reason(error)}", file=str(file), remedy=_RESTORE))
        if problems:
            raise UserError(*problems)

    def find(self, cells: Sequence[Cell]) -> Found:
        """Runs of cells."""
        found: Found = []
        for cell in cells:
            runs = {run.seed: replace(run, method=cell.label) for run in self._runs.get(_key_of(cell), [])}
            # In the order in which run directories are read.
            ordered: list[Run] = [runs[seed] for seed in cell.seeds if seed in runs]
            found.append((cell, ordered))
        return found

    def require_planned(self, collected: Collected) -> None:
        """Every row is of a cell and a seed of the plan.

        Raises:
            UserError: one is not, so the plan, the choices and the file do not belong together.
        """
        planned = {(_key_of(cell), seed) for cell, _ in collected.every for seed in cell.seeds}
        strays = [(line, key) for key, line in self._lines.items() if key not in planned]
        if strays:
            line, (key, seed) = strays[0]
            stage, grid, method, regime, value, _ = key
            what = (
                f"line {line}: {stage} of {label_of(method, regime, grid)} at {value}, seed {seed}, is not in the plan"
            )
            more = f" ({len(strays) - 1} more such rows)" if len(strays) > 1 else ""
            remedy = "give the plan and the choices that the file was written with"
            raise UserError(Problem(what + more, file=str(self._file), remedy=remedy))

    def _read(self, row: Mapping[str, str]) -> LoggedRun:
        recipe = _nested({k.removeprefix(RECIPE): parse_value(v) for k, v in row.items() if k.startswith(RECIPE) and v})
        if digest_of(recipe) != row["digest"]:
            raise ValueError("the recipe's columns have not the digest in `digest`")
        value, seed = float(row["value"]), int(row["seed"])
        if setting(recipe, "seed") != seed or f"{setting(recipe, self._vary):.6g}" != f"{value:.6g}":
            raise ValueError(f"`seed` and `value` are not the recipe's seed and {self._vary}")
        if row["status"] not in get_args(Status):
            raise ValueError(f"there is no status `{row['status']}`")
        return LoggedRun(
            path=Path(row["path"]),
            method=row["method"],
            seed=seed,
            steps=int(row["steps"]),
            records=_records(row),
            status=row["status"],  # type: ignore[arg-type]
            diverged_at=int(row["diverged_at"]) if row["diverged_at"] else None,
            recipe=recipe,
            task=row["task"] or None,
            origin=json.loads(row["origin"]),
            doubts=tuple(json.loads(row["doubts"])),
        )


def _rows(file: Path) -> list[dict[str, str]]:
    csv.field_size_limit(2**31 - 1)  # curves of long runs pass the module's own limit
    try:
        with file.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream)
            lacking = [name for name in _NEEDED if name not in (reader.fieldnames or ())]
            if lacking:
                what = f"is no CSV of a study: it has no column {', '.join(lacking)}"
                raise UserError(Problem(what, file=str(file), remedy="give one that --csv of a plan wrote"))
            return list(reader)
    except FileNotFoundError:
        raise UserError(Problem("no such file", file=str(file), remedy="check the path")) from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(Problem(f"cannot read: {_reason(error)}", file=str(file), remedy=_RESTORE)) from None


def _key(row: Mapping[str, str]) -> _Key:
    value = f"{float(row['value']):.6g}"
    return row["stage"], row["grid"], row["method"], row["regime"], value, int(row["alternative"])


def _key_of(cell: Cell) -> _Key:
    return cell.stage, cell.grid, cell.method, cell.regime, f"{cell.value:.6g}", cell.variant


def _records(row: Mapping[str, str]) -> list[dict[str, Any]]:
    """Records by step, of evaluations and of steps."""
    found: dict[int, dict[str, Any]] = {}
    for name in ("evaluations", "training"):
        columns = json.loads(row[name])
        for index, step in enumerate(columns["step"]):
            record = found.setdefault(step, {"step": step})
            record |= {key: values[index] for key, values in columns.items() if values[index] is not None}
    return [found[step] for step in sorted(found)]


def _nested(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """Nested mappings of dotted keys."""
    whole: dict[str, Any] = {}
    for key, value in leaves.items():
        *sections, last = key.split(".")
        inside = whole
        for section in sections:
            inside = inside.setdefault(section, {})
        inside[last] = value
    return whole


def _reason(error: Exception) -> str:
    if isinstance(error, KeyError):
        return f"has no {error}"
    return str(error).splitlines()[0] if str(error) else type(error).__name__
