"""Maps over two varied settings as tables: scores, and failures."""

from __future__ import annotations

from collections.abc import Callable

from cvxrl.comparison.group import name_value
from cvxrl.comparison.maps import Cell
from cvxrl.comparison.result import Comparison
from cvxrl.report.document import Table
from cvxrl.report.format import NOTHING, number

_MOST_COLUMNS = 6  # values of the second key beside one another; more go into a further table


def map_tables(c: Comparison) -> list[Table]:
    """Scores and failures at every pair of values; none unless two keys are varied."""
    if not c.maps:
        return []
    kinds: list[tuple[str, Callable[[Cell], str], str]] = [
        (f"Mean {c.options.metric}", _score, "Under the mean: scored seeds; ! n: failed runs among them."),
        ("Failed runs", _failures, "Of all ended runs."),
    ]
    width = len(c.maps[0].columns)
    return [
        _table(c, title, text, f"{note} {NOTHING}: no run there.", range(first, min(first + _MOST_COLUMNS, width)))
        for title, text, note in kinds
        for first in range(0, width, _MOST_COLUMNS)
    ]


def _table(c: Comparison, title: str, text: Callable[[Cell], str], note: str, columns: range) -> Table:
    down, across = c.maps[0].keys
    rows = [
        ["" if index else m.method, name_value(value), *(_text(line[i], text) for i in columns)]
        for m in c.maps
        for index, (value, line) in enumerate(zip(m.rows, m.cells, strict=True))
    ]
    named = ["<method", down.split(".")[-1], *(name_value(c.maps[0].columns[i]) for i in columns)]
    return Table(f"{title}: {down} (down) x {across} (across)", named, rows, note)


def _text(cell: Cell | None, text: Callable[[Cell], str]) -> str:
    return NOTHING if cell is None else text(cell)


def _score(cell: Cell) -> str:
    failed = f" ! {cell.failures}" if cell.failures else ""
    return f"{number(cell.mean)}\n{cell.seeds}{failed}{_waiting(cell)}"


def _failures(cell: Cell) -> str:
    return f"{cell.failures} of {cell.runs}{_waiting(cell)}" if cell.runs else f"0{_waiting(cell)}"


def _waiting(cell: Cell) -> str:
    return f" +{cell.unfinished}?" if cell.unfinished else ""
