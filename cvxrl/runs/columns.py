"""metrics.jsonl by column: one array per metric in the place of a mapping per step.

A log of a thousand steps with thirty metrics takes 0.25 MB in this form and 3 MB as mappings, and it is read several
times as fast: orjson parses line after line, the values of records with the same keys are put into one list, and what
made them is let go before the next line, so that all of it stays in the processor's cache. A metric is a stride of such
a list. What orjson refuses or what is no record goes the long way of `read_records`, which knows what is wrong and says
so.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, overload

import numpy as np
import orjson
from numpy.typing import NDArray

from cvxrl.runs.jsonl import read_records

_BUFFER = 1 << 17  # bytes read at a time
_NUMBERS = frozenset({int, float, type(None)})
_EXACT: dict[frozenset[type], Any] = {frozenset({int}): np.int64, frozenset({float}): np.float64}


@dataclass(frozen=True)
class Column:
    """Where a metric has a value.

    Attributes:
        rows_K: positions of the records that have one, increasing.
        value_K: the values, int64, float64, or objects where they are of several kinds.
    """

    rows_K: NDArray[np.int64]
    value_K: NDArray[Any]


class Records(Sequence[Mapping[str, Any]]):
    """Records as columns; as a sequence, a mapping per record that is made when it is asked for, without empty values.

    Attributes:
        columns: one for every key of any record, in the order in which keys first come up.
        are_numbers: whether every value is a number or null.
    """

    def __init__(self, columns: Mapping[str, Column], count: int, are_numbers: bool) -> None:
        """Hold columns of ``count`` records."""
        self.columns = columns
        self.are_numbers = are_numbers
        self._count = count

    @classmethod
    def of(cls, records: Iterable[Mapping[str, Any]]) -> Records:
        """The columns of records; each record is let go before the next is asked for."""
        if isinstance(records, Records):
            return records
        layouts: dict[tuple[str, ...], _Layout] = {}
        count = 0
        for record in records:
            keys = tuple(record)
            layout = layouts.get(keys) or layouts.setdefault(keys, _Layout())
            layout.rows.append(count)
            layout.flat.extend(record.values())
            count += 1
        where: dict[str, list[tuple[_Layout, slice]]] = {}
        for keys, layout in layouts.items():
            for place, key in enumerate(keys):
                where.setdefault(key, []).append((layout, slice(place, None, len(keys))))
        orders: dict[tuple[int, ...], _Order] = {}
        made: dict[str, Column] = {}
        seen: set[type] = set()
        for key, parts in where.items():
            together = tuple(id(layout) for layout, _ in parts)
            order = orders.get(together) or orders.setdefault(together, _Order.of([part.rows for part, _ in parts]))
            values: list[Any] = []
            for layout, stride in parts:
                values += layout.flat[stride]
            kinds = frozenset(map(type, values))
            seen |= kinds
            made[key] = _column(order, values, kinds)
        return cls(made, count, seen <= _NUMBERS)

    def __len__(self) -> int:
        """Number of records."""
        return self._count

    @overload
    def __getitem__(self, index: int) -> Mapping[str, Any]: ...
    @overload
    def __getitem__(self, index: slice) -> list[Mapping[str, Any]]: ...
    def __getitem__(self, index: int | slice) -> Mapping[str, Any] | list[Mapping[str, Any]]:
        """A record, or several."""
        if isinstance(index, slice):
            return [self[row] for row in range(*index.indices(len(self)))]
        row = range(len(self))[index]
        places = ((key, column, int(np.searchsorted(column.rows_K, row))) for key, column in self.columns.items())
        return {
            key: column.value_K[place : place + 1].tolist()[0]
            for key, column, place in places
            if place < len(column.rows_K) and column.rows_K[place] == row
        }

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        """All records, made together."""
        made: list[dict[str, Any]] = [{} for _ in range(len(self))]
        for key, column in self.columns.items():
            for row, value in zip(column.rows_K.tolist(), column.value_K.tolist(), strict=True):
                made[row][key] = value
        return iter(made)


def read_columns(path: Path) -> Records:
    """The records of a metrics.jsonl, as `read_records` gives them, by column.

    Raises:
        UnreadableError: a line that is not the last cannot be read.
        OSError: the file cannot.
    """
    if not path.is_file():
        return Records.of([])
    try:
        return Records.of(_parsed(path))
    except ValueError:
        return Records.of(read_records(path))


def _parsed(path: Path) -> Iterator[dict[str, Any]]:
    """Record after record.

    Raises:
        ValueError: a line is none, or none that orjson takes.
    """
    with path.open("rb", buffering=_BUFFER) as lines:
        for record in map(orjson.loads, lines):
            if type(record) is not dict or type(record.get("step")) is not int:
                raise ValueError("no record")
            yield record


@dataclass
class _Layout:
    """Records with the same keys: which rows they are, and their values, record after record."""

    rows: list[int] = field(default_factory=list)
    flat: list[Any] = field(default_factory=list)


@dataclass(frozen=True)
class _Order:
    """How to put what is told layout by layout into the order of the rows.

    Attributes:
        rows_K: the rows of these layouts, increasing.
        place_K: where each of them stands when the layouts stand one after the other; None where that is the order.
    """

    rows_K: NDArray[np.int64]
    place_K: NDArray[np.int64] | None

    @classmethod
    def of(cls, sets: Sequence[Sequence[int]]) -> _Order:
        """The order of the rows of layouts, of which each increases."""
        rows_K = np.fromiter(chain.from_iterable(sets), np.int64)
        if len(sets) == 1:
            return cls(rows_K, None)
        place_K = rows_K.argsort()
        return cls(rows_K[place_K], place_K)


def _column(order: _Order, values: Sequence[Any], kinds: frozenset[type]) -> Column:
    """Values of a metric, told layout by layout, without the nulls among them."""
    found, rows_K = _array(values, kinds), order.rows_K
    if order.place_K is not None:
        found = found[order.place_K]
    if type(None) in kinds:
        known_K = np.array([value is not None for value in found], dtype=bool)
        return Column(rows_K[known_K], _array(found[known_K].tolist(), kinds - {type(None)}))
    return Column(rows_K, found)


def _array(values: Sequence[Any], kinds: frozenset[type]) -> NDArray[Any]:
    exact = _EXACT.get(kinds)
    if exact is not None:
        try:
            return np.fromiter(values, exact, len(values))
        except OverflowError:  # a whole number of more than 64 bits
            pass
    found = np.empty(len(values), dtype=object)
    found[:] = values
    return found
