"""A sink on a thread of its own: training never waits for it, and what goes wrong is told once."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import SilentSink

from cvxrl.runs.background import Background, BehindError
from cvxrl.runs.sink import NullSink, Sink, Sinks


class Notes(NullSink):
    def __init__(self) -> None:
        super().__init__()
        self.told: list[Any] = []

    def start(self, title: str, steps: int, done: int) -> None:
        self.told.append(("start", threading.current_thread().name))
        self.notes.append("look here")

    def step(self, record: Any) -> None:
        self.told.append(("step", dict(record)))

    def samples(self, step: int, rows: Any) -> None:
        self.told.append(("samples", step, [dict(row) for row in rows]))

    def figure(self, name: str, file: Path) -> None:
        self.told.append(("figure", name, file))

    def finish(self, status: str, rows: Any) -> None:
        self.told.append(("finish", status))


class Display(SilentSink):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def event(self, text: str) -> None:
        self.lines.append(text)

    def finish(self, status: str, rows: Any) -> None:
        self.lines.append(f"run {status}")


class Waits(NullSink):
    """Holds its thread until the test lets it go."""

    def __init__(self, gate: threading.Event) -> None:
        super().__init__()
        self.gate = gate

    def start(self, title: str, steps: int, done: int) -> None:
        self.gate.wait()


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    event = threading.Event()
    yield event
    event.set()


def around(make: Any, **options: Any) -> tuple[Sinks, Display]:
    display = Display()
    return Sinks(display, {"the slow one": lambda: Background(make, **{"patience": 20.0, **options})}), display


def test_everything_is_handed_on_in_order_on_another_thread() -> None:
    sink = Notes()
    sinks, display = around(lambda: sink)
    sinks.start("a run", 2, 0)
    record = {"step": 1.0}
    sinks.samples(1, [{"id": "x"}])
    sinks.step(record)
    record["step"] = 9.0  # what is done with it later is not seen
    sinks.figure("curves", Path("c.png"))
    sinks.finish("finished", [])
    assert sink.told == [
        ("start", "sink"),
        ("samples", 1, [{"id": "x"}]),
        ("step", {"step": 1.0}),
        ("figure", "curves", Path("c.png")),
        ("finish", "finished"),
    ]
    assert display.lines == ["the slow one: look here", "run finished"], "the summary comes last"


@pytest.mark.parametrize("error", [OSError("no route"), SystemExit("no key")])
def test_one_that_cannot_be_opened_is_told_once(error: BaseException) -> None:
    def fails() -> Sink:
        raise error

    sinks, display = around(fails)
    sinks.start("a run", 2, 0)
    for step in range(3):
        sinks.step({"step": step})
    sinks.finish("finished", [])
    told, summary = display.lines
    assert str(error) in told and "left out" in told and summary == "run finished"


def test_training_does_not_wait_for_a_slow_one(gate: threading.Event) -> None:
    sinks, display = around(lambda: Waits(gate), patience=0.01)
    sinks.start("a run", 2, 0)
    sinks.step({"step": 1})
    assert display.lines == []
    sinks.finish("finished", [])
    assert "within 0.01 s" in display.lines[0] and display.lines[1:] == ["run finished"]


def test_one_that_falls_too_far_behind_is_given_up(gate: threading.Event) -> None:
    sinks, display = around(lambda: Waits(gate), most=4)
    sinks.start("a run", 2, 0)
    for step in range(20):
        sinks.step({"step": step})
    (told,) = display.lines
    assert "too slow" in told
    sinks.finish("finished", [])
    assert display.lines[1:] == ["run finished"]


def test_ctrl_c_ends_the_waiting(gate: threading.Event, monkeypatch: pytest.MonkeyPatch) -> None:
    def pressed(self: threading.Thread, timeout: float | None = None) -> None:
        raise KeyboardInterrupt

    sink = Background(lambda: Waits(gate), 20.0)
    sink.start("a run", 1, 0)
    monkeypatch.setattr(threading.Thread, "join", pressed)
    with pytest.raises(BehindError, match="not waited for"):
        sink.finish("finished", [])


def test_sinks_of_before_need_no_further_methods_and_those_with_them_are_called(tmp_path: Path) -> None:
    sink, display = Notes(), Display()
    sinks = Sinks(display, {"old": SilentSink, "base": NullSink, "new": lambda: sink})
    sinks.start("a run", 1, 0)
    sinks.samples(1, [{"id": "x"}])
    sinks.figure("curves", tmp_path / "c.png")
    assert [told[0] for told in sink.told] == ["start", "samples", "figure"]
    sinks.abandon("failed")
    assert sink.told[-1] == ("finish", "failed")
    assert display.lines == ["new: look here"], "nothing failed, and the display has seen no end"
