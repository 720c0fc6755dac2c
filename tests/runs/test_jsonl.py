"""Files of JSON lines: torn last lines, damaged lines, texts that look like the end of a line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cvxrl.errors import UserError
from cvxrl.runs.jsonl import append_lines, append_record, read_lines, read_records, read_what_is_whole, write_lines

ODD = {"text": "a\u2028b\u0085c\nd\re\x1cf\ud800", "number": float("nan")}


def read(path: Path) -> list[Any]:
    return read_lines(path, json.loads, "start again")


@pytest.mark.parametrize("write", [append_lines, write_lines])
def test_what_is_written_is_read(write: Any, tmp_path: Path) -> None:
    assert read(tmp_path / "x.jsonl") == []
    write(tmp_path / "x.jsonl", [ODD, {"text": "é"}])
    assert read(tmp_path / "x.jsonl") == [{"text": ODD["text"], "number": None}, {"text": "é"}]
    append_lines(tmp_path / "x.jsonl", [])
    append_lines(tmp_path / "x.jsonl", [{"text": "z"}])
    assert [v["text"] for v in read(tmp_path / "x.jsonl")] == [ODD["text"], "é", "z"]


@pytest.mark.parametrize("length", range(1, 40))
def test_a_torn_last_line_is_left_out(length: int, tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    append_lines(path, [{"a": 1}, {"b": "ü"}])
    content = path.read_bytes()
    path.write_bytes(content[:length])
    assert read(path) == [{"a": 1}, {"b": "ü"}][: 0 if length < 8 else 1 if length < len(content) - 1 else 2]


def test_a_damaged_line_before_it_is_not(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text('{"a": 1}\n{"b": \n{"c": 3}\n')
    with pytest.raises(UserError, match="line 2 is damaged") as caught:
        read(path)
    assert '{"b":' in str(caught.value) and "start again" in str(caught.value)


def test_records_have_a_step(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    for step in (1, 2, 3):
        append_record(path, {"step": step, "loss": float("inf")})
    path.write_text(path.read_text() + '{"step": 4, "lo')
    assert read_records(path) == [{"step": step, "loss": None} for step in (1, 2, 3)]
    path.write_text('{"loss": 1}\n{"step": 2}\n')
    with pytest.raises(ValueError, match="line 1"):
        read_records(path)


def test_whole_records_of_a_damaged_file(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert read_what_is_whole(path) == []
    lines = (
        b'{"step": 2}',
        b"\xff",
        b"",
        b'{"step": 1, "loss": 1.5}',
        b"[]",
        b'{"loss": 1}',
        b'{"step": 2, "loss": null}',
    )
    path.write_bytes(b"\n".join(lines) + b'\n{"ste')
    assert read_what_is_whole(path) == [{"step": 1, "loss": 1.5}, {"step": 2, "loss": None}]
