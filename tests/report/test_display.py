"""What a person sees: plain lines in a pipe, a panel on a terminal, and neither may end a run."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator

import pytest
from rich.cells import cell_len
from rich.console import Console

from cvxrl.report.display import LiveSink, PlainSink, make_sink, sparkline, summary_table

RECORD = {
    "reward/mean": 0.5,
    "loss": 0.25,
    "policy/entropy": 1.0,
    "policy/kl": 0.001,
    "grad/norm": 2.0,
    "response/length": 18.0,
    "time/tokens_per_s": 1234.4,
}
ACCURACY = {"eval/accuracy": 0.4, "eval/stderr": 0.02}
PATH = "/a/long/path/to/outputs/that/does/not/fit/into/eighty/columns/math_lco_kld/seed-0[x]"
HIDE, SHOW = "\x1b[?25l", "\x1b[?25h"


class Terminal(io.StringIO):
    """A terminal that keeps what is written."""

    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def eighty_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("LINES", "40")
    monkeypatch.delenv("NO_COLOR", raising=False)


@pytest.fixture
def closed_pipe() -> Iterator[io.TextIOWrapper]:
    """The writing end of a pipe whose reader has left."""
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as stream:
        yield stream


def plain(steps: int, evaluated: int) -> list[str]:
    """Lines of a plain run that evaluates every ``evaluated`` steps."""
    stream = io.StringIO()
    sink = PlainSink(stream)
    sink.start("run", steps, 0)
    for step in range(1, steps + 1):
        sink.step({"step": step, **RECORD, **(ACCURACY if step % evaluated == 0 else {})})
    return stream.getvalue().splitlines()


def test_the_stream_decides() -> None:
    assert isinstance(make_sink(Terminal()), LiveSink)
    assert isinstance(make_sink(io.StringIO()), PlainSink)


def test_plain_line() -> None:
    assert plain(2, evaluated=2) == [
        "run: 2 steps",
        "    1/2 reward 0.500 loss 0.25 entropy 1.000 kl 1.0e-03 grad 2 tok/s 1234",
        "    2/2 reward 0.500 loss 0.25 entropy 1.000 kl 1.0e-03 grad 2 tok/s 1234 accuracy 0.400 ± 0.020",
    ]


@pytest.mark.parametrize("error", [None, float("nan")])
def test_an_accuracy_without_an_error_says_why(error: float | None) -> None:
    stream = io.StringIO()
    sink = PlainSink(stream)
    sink.start("run", 1, 0)
    sink.step({"step": 1, **RECORD, "eval/accuracy": 0.5, "eval/stderr": error})  # type: ignore[dict-item]
    assert stream.getvalue().endswith(" accuracy 0.500 (error needs 2 prompts)\n")


def test_plain_lines_of_a_long_run_are_thinned_but_never_the_telling_ones() -> None:
    lines = plain(1003, evaluated=250)[1:]
    shown = [int(line.split("/")[0]) for line in lines]
    assert len(shown) <= 60
    assert shown == sorted(set(shown))
    assert {1, 250, 500, 750, 1000, 1003} <= set(shown)


def test_plain_output_has_no_control_characters_even_when_colour_is_forced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    stream = io.StringIO()
    sink = PlainSink(stream)
    sink.start("run", 1, 0)
    sink.step({"step": 1, **RECORD})
    sink.finish("finished", [("accuracy", "0.4", "0.9")])
    assert "\x1b" not in stream.getvalue() and "0.9" in stream.getvalue()


@pytest.mark.parametrize("stream", [io.StringIO, Terminal])
def test_brackets_are_text_not_markup(stream: type[io.StringIO]) -> None:
    out = stream()
    with make_sink(out) as sink:
        sink.start("run", 1, 0)
        sink.event("layers[0] [bold] [/x] is not finite")
        sink.finish("finished", [("row [a]", "[b]", "[c]")])
    for text in ("layers[0] [bold] [/x] is not finite", "row [a]", "[b]", "[c]"):
        assert text in out.getvalue()


def test_panel_fits_eighty_columns_and_shows_the_newest_values() -> None:
    sink = LiveSink(Terminal())
    with sink:
        sink.start("math_reinforce seed 12345", 1000, 0)
        for step, accuracy in ((1, 0.4), (2, 0.8), (3, 0.6)):
            sink.step({"step": step, **RECORD, "reward/mean": accuracy / 2, "eval/accuracy": accuracy})
        for step in range(4, 60):
            sink.step({"step": step, **RECORD, "loss": -123456.0, "grad/norm": float("nan")})
        page = Console(width=80, file=io.StringIO(), record=True)
        page.print(sink._render())
    text = page.export_text()
    assert all(cell_len(line) <= 80 for line in text.splitlines())
    assert "59/1000" in text and "0.600 (best 0.800)" in text and "0.500" in text and "1,234" in text
    assert "nan" in text and "?" in text


def test_a_run_that_raises_gets_its_cursor_back() -> None:
    out = Terminal()
    with pytest.raises(RuntimeError, match="boom"), make_sink(out) as sink:
        sink.start("run", 3, 0)
        assert HIDE in out.getvalue() and SHOW not in out.getvalue()
        raise RuntimeError("boom")
    assert SHOW in out.getvalue()


def test_summary_fits_eighty_columns_and_paths_can_be_copied() -> None:
    out = io.StringIO()
    PlainSink(out).finish(
        "finished",
        [
            ("held-out accuracy, 256 x 4 samples", "0.463 ± 0.017", "0.983 ± 0.004"),
            ("tokens trained on", "", "483,712,000,000"),
            ("run directory", "", PATH),
        ],
    )
    *table, last = out.getvalue().splitlines()
    assert last == f"run directory: {PATH}"
    assert all(cell_len(line) <= 80 for line in table)
    row = next(line for line in table if "held-out" in line)
    assert "held-out accuracy, 256 x 4 samples" in row and "0.463 ± 0.017" in row and "0.983 ± 0.004" in row


def test_summary_table_names_the_status() -> None:
    assert str(summary_table("diverged", []).title) == "run diverged"


def test_a_stream_without_unicode_gets_question_marks() -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    with make_sink(stream) as sink:
        sink.start("run", 1, 0)
        sink.step({"step": 1, **ACCURACY})
        sink.finish("finished", [("accuracy", "0.4 ± 0.1", "0.5")])
    stream.flush()
    assert b"accuracy 0.400 ? 0.020" in raw.getvalue() and b"0.4 ? 0.1" in raw.getvalue()


def test_a_reader_that_leaves_does_not_end_the_run(closed_pipe: io.TextIOWrapper) -> None:
    with make_sink(closed_pipe) as sink:
        sink.start("run", 1, 0)
        sink.step({"step": 1, **RECORD})
        sink.event("still here")
        sink.finish("finished", [("accuracy", "0.4", "0.5")])


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0, 1, 2, 3, 4, 5, 6, 7], "▁▂▃▄▅▆▇█"),
        ([7, 0], "█▁"),
        ([2.0, 2.0], "▁▁"),
        ([0.0, float("nan"), 1.0, float("inf")], "▁?█?"),
        ([], ""),
    ],
)
def test_sparkline(values: list[float], expected: str) -> None:
    assert sparkline(values) == expected


def test_sparkline_shows_the_newest() -> None:
    assert sparkline([100.0, 0.0, 1.0], width=2) == "▁█"
