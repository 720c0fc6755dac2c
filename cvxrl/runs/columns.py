"""metrics.jsonl by column: one array per metric in the place of a mapping per step.

A log of a thousand steps with thirty metrics takes 0.25 MB in this form and 3 MB as mappings, and it is read several
times as fast: lines are parsed by orjson, and records with the same keys become arrays together. What orjson refuses or
what is no record goes the long way of `read_records`, which knows what is wrong and says so.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any, overload

import numpy as np
import orjson
from numpy.typing import NDArray

from cvxrl.runs.jsonl import read_records

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
    def of(cls, records: Sequence[Mapping[str, Any]]) -> Records:
        """The columns of records; metrics that come up in the same records are turned at once."""
        if isinstance(records, Records):
            return records
        layouts: dict[tuple[str, ...], list[int]] = {}
        for row, record in enumerate(records):
            layouts.setdefault(tuple(record), []).append(row)
        where: dict[str, list[int]] = {}
        for number, keys in enumerate(layouts):
            for key in keys:
                where.setdefault(key, []).append(number)
        together: dict[tuple[int, ...], list[str]] = {}
        for key, numbers in where.items():
            together.setdefault(tuple(numbers), []).append(key)
        rows_of = list(layouts.values())
        made: dict[str, Column] = {}
        are_numbers = True
        for those, shared in together.items():
            rows = sorted(row for number in those for row in rows_of[number])
            rows_K = np.array(rows)
            for key, values in zip(shared, _turned(records, rows, shared), strict=True):
                kinds = frozenset(map(type, values))
                are_numbers = are_numbers and kinds <= _NUMBERS
                made[key] = _column(rows_K, values, kinds)
        return cls({key: made[key] for key in where}, len(records), are_numbers)

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
        lines = path.read_bytes().removesuffix(b"\n").split(b"\n")
        found = [orjson.loads(line) for line in lines]
    except orjson.JSONDecodeError:
        return Records.of(read_records(path))
    whole = all(type(record) is dict and type(record.get("step")) is int for record in found)
    return Records.of(found if whole else read_records(path))


def _turned(
    records: Sequence[Mapping[str, Any]], rows: Sequence[int], keys: Sequence[str]
) -> Iterable[tuple[Any, ...]]:
    """The values of each of the keys, which all these rows have."""
    if len(keys) == 1:
        return [tuple(records[row][keys[0]] for row in rows)]
    of = itemgetter(*keys)
    return zip(*(of(records[row]) for row in rows), strict=True)


def _column(rows_K: NDArray[np.int64], values: Sequence[Any], kinds: frozenset[type]) -> Column:
    """Values of a metric without the nulls among them."""
    if type(None) in kinds:
        known = [place for place, value in enumerate(values) if value is not None]
        rows_K, values, kinds = rows_K[known], [values[place] for place in known], kinds - {type(None)}
    return Column(rows_K, _array(values, kinds))


def _array(values: Sequence[Any], kinds: frozenset[type]) -> NDArray[Any]:
    exact = _EXACT.get(kinds)
    if exact is not None:
        try:
            return np.array(values, dtype=exact)
        except OverflowError:  # a whole number of more than 64 bits
            pass
    found = np.empty(len(values), dtype=object)
    found[:] = values
    return found
