"""What a person sees: plain lines in a pipe, tables within 80 columns, sparklines that follow the numbers."""

from __future__ import annotations

import io

from helpers import tiny

from cvxrl.display import PlainSink, make_sink, sparkline
from cvxrl.engine.summary import summary_rows
from cvxrl.runs.directory import RunDir

RECORD = {"reward/mean": 0.5, "loss": 0.1, "policy/entropy": 0.2, "grad/norm": 0.3, "time/tokens_per_s": 1e4}


def test_piped_output_is_plain_and_short() -> None:
    stream = io.StringIO()
    sink = make_sink(stream)
    assert isinstance(sink, PlainSink)
    sink.start("run", 1000, 0)
    for step in range(1, 1001):
        sink.step({"step": step, **RECORD})
    lines = stream.getvalue().splitlines()
    assert 40 <= len(lines) <= 60
    assert lines[1].split()[0] == "1/1000" and lines[-1].split()[0] == "1000/1000"
    assert "\x1b" not in stream.getvalue()


def test_summary_fits_eighty_columns(tmp_path) -> None:  # type: ignore[no-untyped-def]
    recipe = tiny("math_grpo")
    records = [{"step": 0, "eval/accuracy": 0.4, "eval/stderr": 0.02}] + [
        {"step": s, **RECORD, "reward/mean": s / 10, "tokens/total": 10.0 * s, "time/total_s": 1.0 * s}
        for s in range(1, 5)
    ]
    records[-1] |= {"eval/accuracy": 0.9, "eval/stderr": 0.01}
    rows = summary_rows(records, RunDir.of(tmp_path, recipe), recipe)
    cells = {name: (start, end) for name, start, end in rows}
    assert cells["training reward"] == ("0.150", "0.350")
    assert cells["held-out accuracy, 4 x 2 samples"] == ("0.400 ± 0.020", "0.900 ± 0.010")
    stream = io.StringIO()
    PlainSink(stream).finish("finished", rows)
    assert max(map(len, stream.getvalue().splitlines())) <= 80


def test_sparkline() -> None:
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7]) == "▁▂▃▄▅▆▇█"
    assert sparkline([1.0, 1.0]) == "▁▁"
    assert sparkline([0.0, float("nan"), 1.0]) == "▁?█"
    assert len(sparkline(list(range(100)), width=10)) == 10
