"""Records by column say what `read_records` says, line by line and kind by kind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from cvxrl.runs.columns import Records, read_columns
from cvxrl.runs.jsonl import read_records
from cvxrl.runs.record import UnreadableError

RECORDS: list[dict[str, Any]] = [
    {"step": 0, "eval/accuracy": 0.25, "time/eval_s": 1.5},
    {"step": 1, "loss": 0.1, "tokens/total": 100, "kl": None},
    {"step": 2, "loss": -1, "tokens/total": 2**70, "kl": None},
    {"loss": 1e-320, "step": 3, "tokens/total": 300, "kl": None},
    {"step": 4, "loss": 0.30000000000000004, "tokens/total": 400, "kl": None, "eval/accuracy": None},
    {"step": 5, "loss": None, "tokens/total": 500, "eval/accuracy": 1, "rare": 7},
    {"step": 6, "eval/accuracy": 0.75, "time/eval_s": 2.5},
    {"step": 7, "loss": 0.2, "tokens/total": 700, "kl": None},
]


def spelled(records: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """Values as they are written, so that 1 and 1.0 differ; without what is null."""
    return [{k: repr(v) for k, v in sorted(r.items()) if v is not None} for r in records]


def written(path: Path, text: str) -> Path:
    path.write_bytes(text.encode())
    return path


def test_every_record_is_what_it_was() -> None:
    made = Records.of(RECORDS)
    assert len(made) == len(RECORDS)
    assert spelled(list(made)) == spelled(RECORDS)
    assert spelled([made[i] for i in range(-8, 8)]) == spelled(RECORDS * 2)
    assert spelled(made[1:3]) == spelled(RECORDS[1:3])
    assert made.are_numbers
    assert list(made.columns) == ["step", "eval/accuracy", "time/eval_s", "loss", "tokens/total", "kl", "rare"]
    assert not len(made.columns["kl"].rows_K), "a metric that was never more than null has its name all the same"
    assert Records.of(made) is made


@pytest.mark.parametrize("value", [True, "0.5", [1], {"a": 1}])
def test_what_is_no_number_is_noticed_and_kept(value: object) -> None:
    made = Records.of([*RECORDS, {"step": 8, "loss": value}])
    assert not made.are_numbers
    assert made[8] == {"step": 8, "loss": value}


@pytest.mark.parametrize(
    "text",
    [
        "",
        '{"step": 1, "a": 0.1}\n{"step": 2, "a": 0.2}\n',
        '{"step": 1, "a": 0.1}\r\n{"step": 2, "a": 0.2}\r\n',
        '{"step": 1, "a": 0.1}\n{"step": 2, "a"',
        '{"step": 1, "a": 0.1}\n{"a": 2}',
        '{"step": 1, "a": 0.1}\n[]',
        '{"step": 1, "a": NaN}\n{"step": 2, "a": Infinity}\n',
        '{"step": 1, "\\ud800": 1}\n',
        '{"step": 1, "a": 1, "a": 2}\n',
    ],
)
def test_odd_files_are_read_as_before(tmp_path: Path, text: str) -> None:
    file = written(tmp_path / "metrics.jsonl", text)
    assert spelled(list(read_columns(file))) == spelled(read_records(file))


@pytest.mark.parametrize("line", ["{", "[]", '{"a": 1}', '{"step": 1.5}', '{"step": 1}{"step": 2}', ""])
def test_damaged_lines_are_told_as_before(tmp_path: Path, line: str) -> None:
    file = written(tmp_path / "metrics.jsonl", f'{{"step": 1}}\n{line}\n{{"step": 3}}\n')
    with pytest.raises(UnreadableError) as expected:
        read_records(file)
    with pytest.raises(UnreadableError) as found:
        read_columns(file)
    assert str(found.value) == str(expected.value)


def test_a_file_that_is_not_there_has_no_records(tmp_path: Path) -> None:
    assert len(read_columns(tmp_path / "metrics.jsonl")) == 0
