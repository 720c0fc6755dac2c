"""Signals that ask to stop: what is said at once, what the second one does, and a closed terminal."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator

import pytest

from cvxrl.report.stop import StopRequest, say_now

GO_ON = "cvxrl train x.yaml --resume"


def send(*numbers: int) -> None:
    for number in numbers:
        os.kill(os.getpid(), number)


@pytest.fixture
def hangup_ignored() -> Iterator[None]:
    """As `nohup` starts a process."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_first_signal_is_answered_at_once(number: int, capsys: pytest.CaptureFixture[str]) -> None:
    with StopRequest(GO_ON) as stop:
        stop.doing = "step 12"
        assert not stop.requested
        send(number)
        assert stop.requested
        expected = f"finishing step 12; again to stop at once; go on with: {GO_ON}\n"
        assert capsys.readouterr().err == expected


@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM])
def test_the_second_stops_at_once(second: int, capsys: pytest.CaptureFixture[str]) -> None:
    with StopRequest(GO_ON):
        send(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            send(second)
    assert capsys.readouterr().err.count("finishing") == 1


def test_a_closed_terminal_sends_several_signals_and_none_stops_at_once() -> None:
    """The system and the shell send SIGHUP, a session's end SIGTERM too."""
    for numbers in ((signal.SIGHUP, signal.SIGHUP, signal.SIGTERM), (signal.SIGTERM, signal.SIGHUP)):
        with StopRequest(GO_ON) as stop:
            send(*numbers)
            assert stop.requested


def test_nohup_is_respected(hangup_ignored: None) -> None:
    with StopRequest(GO_ON) as stop:
        send(signal.SIGHUP)
        assert not stop.requested
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN


def test_handlers_are_given_back() -> None:
    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    with StopRequest():
        pass
    assert before == [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]


@pytest.mark.parametrize("error", [OSError, ValueError])
def test_a_terminal_that_is_gone_ends_nothing(error: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    class Gone:
        def write(self, text: str) -> None:
            raise error

    monkeypatch.setattr(sys, "stderr", Gone())
    say_now("text")


def test_a_stream_that_is_being_written_is_passed_by(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    class Busy:
        def write(self, text: str) -> None:
            raise RuntimeError("reentrant call")

    monkeypatch.setattr(sys, "stderr", Busy())
    say_now("text")
    assert capfd.readouterr().err == "text\n"
