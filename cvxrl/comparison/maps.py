"""Two varied settings at once: for every method, score and failures at every pair of their values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cvxrl.comparison.group import in_order, settings
from cvxrl.comparison.summary import GroupSummary
from cvxrl.stats.bootstrap import Interval


@dataclass(frozen=True)
class Cell:
    """One pair of values.

    Attributes:
        label: the group.
        seeds: scored seeds.
        mean: their mean score; None without any.
        interval: of the mean; None with fewer than two seeds.
        failures, runs: failed and all ended runs.
        failure_interval: Clopper and Pearson's, of the share that fails; None without ended runs.
        unfinished: runs that have not ended.
    """

    label: str
    seeds: int
    mean: float | None
    interval: Interval | None
    failures: int
    runs: int
    failure_interval: Interval | None
    unfinished: int


@dataclass(frozen=True)
class FactorMap:
    """A method over the grid of both keys' values, the same for all methods of a comparison.

    Attributes:
        method: its name.
        keys: the varied keys, the first one's values downwards and the second one's across.
        rows, columns: their values, numbers by size; None for recipes without such a key.
        cells: one row of cells per value of the first key; None where the method has no run.
    """

    method: str
    keys: tuple[str, str]
    rows: list[Any]
    columns: list[Any]
    cells: list[list[Cell | None]]


def factor_maps(summaries: Sequence[GroupSummary], vary: Sequence[str]) -> list[FactorMap]:
    """One map per method, in the order of the summaries; none unless two keys are varied."""
    if len(vary) < 2:
        return []
    placed = {(s.method, *settings(s.value)): s for s in summaries}
    rows = sorted({row for _, row, _ in placed}, key=in_order)
    columns = sorted({column for _, _, column in placed}, key=in_order)
    return [
        FactorMap(
            method,
            (vary[0], vary[1]),
            rows,
            columns,
            [[_cell(placed.get((method, row, column))) for column in columns] for row in rows],
        )
        for method in dict.fromkeys(s.method for s in summaries)
    ]


def _cell(s: GroupSummary | None) -> Cell | None:
    if s is None:
        return None
    return Cell(
        label=s.label,
        seeds=len(s.scores),
        mean=s.mean,
        interval=s.intervals.get("mean"),
        failures=s.failures,
        runs=len(s.rows),
        failure_interval=s.failure_interval,
        unfinished=s.unfinished,
    )
