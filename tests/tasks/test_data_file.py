"""What a person writes into a data file arrives as written, or is refused with its place."""

from __future__ import annotations

import datetime
import json
import re
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from cvxrl.errors import UserError
from cvxrl.recipe.task import DatasetSource
from cvxrl.tasks.dataset import load, load_rows

# As written in JSON, and as it must arrive.
WRITTEN = {
    "1": "1",
    "2.5": "2.5",
    "9.0": "9.0",
    "1.10": "1.10",
    "1e5": "1e5",
    "-0.0": "-0.0",
    "18446744073709551616": "18446744073709551616",
    "18446744073709551617": "18446744073709551617",
    '"2024-05-01"': "2024-05-01",
    '"2024-05-01T00:00:00"': "2024-05-01T00:00:00",
    '"007"': "007",
    '"1,234"': "1,234",
    '"12 500"': "12 500",
    '"5."': "5.",
    '"\\u00bd \U0001f680"': "\N{VULGAR FRACTION ONE HALF} \U0001f680",
    "true": "true",
    '"None"': "None",
    '"nan"': "nan",
}


def answers(path: Path, **more: Any) -> list[str]:
    return [example.answer for example in load_rows(DatasetSource(path=str(path), **more))]


def refusal(path: Path, **more: Any) -> str:
    with pytest.raises(UserError) as caught:
        load(DatasetSource(path=str(path), **more), seed=0)
    return str(caught.value)


def test_json_arrives_as_written(tmp_path: Path) -> None:
    rows = [f'{{"prompt": "p{i}", "answer": {value}}}' for i, value in enumerate(WRITTEN)]
    (tmp_path / "a.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    (tmp_path / "b.json").write_text(f"[{', '.join(rows)}]", encoding="utf-8-sig")
    (tmp_path / "c.json").write_text("\r\n".join(rows) + "\r\n\r\n", encoding="utf-8")
    columns = f'{{"prompt": {json.dumps([f"p{i}" for i in range(len(rows))])}, "answer": [{", ".join(WRITTEN)}]}}'
    (tmp_path / "D.JSON").write_text(columns, encoding="utf-8")
    for name in ("a.jsonl", "b.json", "c.json", "D.JSON"):
        assert answers(tmp_path / name) == [*WRITTEN.values()], name


@pytest.mark.parametrize("name", ["t.csv", "t.tsv"])
def test_tables_arrive_as_written(name: str, tmp_path: Path) -> None:
    mark = "," if name == "t.csv" else "\t"
    lines = [
        f"prompt{mark}answer",
        f'"Add 1{mark} and ""2""\nnow"{mark}007',
        f"b{mark}2.50",
        f"c{mark}2024-05-01",
        f"d{mark}18446744073709551617",
        f'e{mark}"1,234"',
        f"f{mark}\N{VULGAR FRACTION ONE HALF}",
    ]
    (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode() + b"\r\n")
    source = DatasetSource(path=str(tmp_path / name))
    assert [e.answer for e in load_rows(source)] == lines_of(lines, mark)
    assert load_rows(source)[0].prompt == f'Add 1{mark} and "2"\nnow'


def lines_of(lines: list[str], mark: str) -> list[str]:
    return ["007", "2.50", "2024-05-01", "18446744073709551617", "1,234", "\N{VULGAR FRACTION ONE HALF}"]


def test_parquet_arrives_with_its_own_types(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    columns = {
        "whole": [2**53 + 1, 2**63 - 1],
        "text": ["007", "2024-05-01"],
        "date": [datetime.date(2024, 5, 1), datetime.date(2024, 5, 2)],
        "decimal": [Decimal("1.10"), Decimal("2.50")],
        "truth": [True, False],
    }
    pandas.DataFrame({"prompt": ["p", "q"], **columns}).to_parquet(tmp_path / "t.parquet")
    found = {name: answers(tmp_path / "t.parquet", answer_field=name) for name in columns}
    assert found == {
        "whole": ["9007199254740993", "9223372036854775807"],
        "text": ["007", "2024-05-01"],
        "date": ["2024-05-01", "2024-05-02"],
        "decimal": ["1.10", "2.50"],
        "truth": ["true", "false"],
    }


def test_numbers_that_reach_a_function_are_numbers(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text('{"prompt": "p", "answer": "1", "weight": 2.50, "n": 3}\n')
    info = load_rows(DatasetSource(path=str(tmp_path / "t.jsonl")))[0].info
    assert info == {"weight": 2.5, "n": 3} and json.dumps(dict(info)) == '{"weight": 2.5, "n": 3}'


def test_rows_without_a_value_are_named_all_at_once(tmp_path: Path) -> None:
    values = ["1", "null", "2", "null", '""', "[1]"]
    rows = [f'{{"prompt": "p{i}", "answer": {value}}}' for i, value in enumerate(values)]
    (tmp_path / "t.jsonl").write_text("\n".join([*rows, '{"prompt": "alone"}', '{"answer": "no prompt"}']))
    text = refusal(tmp_path / "t.jsonl")
    assert "rows 1, 3, 4, 6 (4 in all): field `answer` is empty" in text
    assert "row 5: field `answer` is not text or a number but list" in text and "row 7: field `prompt`" in text


BROKEN: dict[str, tuple[str, bytes, str]] = {
    "latin-1": (
        "t.jsonl",
        '{"prompt": "caf\xe9", "answer": "1"}\n'.encode("latin-1"),
        "UTF-8 .*line 1, byte 16",
    ),
    "latin-1 table": ("t.csv", "prompt,answer\nok,1\ncaf\xe9,2\n".encode("latin-1"), "UTF-8 .*line 3.*iconv"),
    "utf-16": ("t.json", '[{"prompt": "p", "answer": 1}]'.encode("utf-16"), "no text in UTF-8"),
    "deep rows": ("t.jsonl", b'{"prompt": ' + b"[" * 100_000 + b"]" * 100_000 + b"}\n", "nested too deeply"),
    "deep list": ("t.json", b"[" * 100_000, "nested too deeply|cannot be read as json"),
    "cut off": (
        "t.jsonl",
        b'{"prompt": "p", "answer": "1"}\n{"prompt": "q", "ans',
        "line 2: Unterminated",
    ),
    "a list a line": ("t.jsonl", b"[1, 2]\n", "line 1 is no object with fields but list"),
    "NaN": ("t.jsonl", b'{"prompt": "p", "answer": NaN}\n', "line 1: NaN is no number of JSON"),
    "endless number": ("t.jsonl", b'{"prompt": "p", "answer": ' + b"1" * 5000 + b"}\n", "line 1: "),
    "ragged": ("t.csv", b"prompt,answer\np,1\nq,2,3\n", "line 3 has 3 values for 2 columns"),
    "open quote": ("t.csv", b'prompt,answer\n"p,1\n', "cannot be read as csv"),
    "twice": ("t.csv", b"prompt,prompt\np,1\n", "does not name every column once"),
    "only blanks": ("t.jsonl", b"\n\n", "the data set is empty"),
    "no parquet": ("t.parquet", b"prompt,answer\n", "cannot be read as parquet"),
}


@pytest.mark.parametrize("case", BROKEN, ids=lambda c: c.replace(" ", "-"))
def test_files_that_cannot_be_read_are_refused_with_place_and_remedy(case: str, tmp_path: Path) -> None:
    name, data, said = BROKEN[case]
    (tmp_path / name).write_bytes(data)
    text = refusal(tmp_path / name)
    assert re.search(said, text, re.DOTALL) and str(tmp_path / name) in text and "->" in text


def test_a_file_of_another_kind_is_told_apart_from_one_that_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("prompt,answer\n")
    assert "is a file, but of no kind that holds rows" in refusal(tmp_path / "x.txt")
    assert "there is no file" in refusal(tmp_path / "y.csv")
    assert "is a folder" in refusal(tmp_path)
