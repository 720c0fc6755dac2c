"""Ctrl-C, SIGTERM and a closed terminal: the work under way is finished and saved, and the user is told at once."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import Any, Self

from cvxrl.ranks import this_rank

_URGENT = (signal.SIGINT, signal.SIGTERM)
_HANGUP = getattr(signal, "SIGHUP", None)  # Windows has none


class StopRequest:
    """Remembers that a signal asked the run to stop, and says at once what that means.

    The first Ctrl-C (SIGINT) or SIGTERM lets the work under way finish; the second raises KeyboardInterrupt. SIGHUP, of
    a terminal that was closed, only ever asks: shell and system may both send it. Where it is ignored (`nohup`), it
    stays so.

    Used as a context manager in the main thread; elsewhere it only never fires, since Python delivers signals to the
    main thread alone.

    Attributes:
        requested: whether to stop when the work under way is done.
        doing: the work under way, in words.
    """

    def __init__(self, go_on: str = "") -> None:
        """Nothing has been asked yet.

        Args:
            go_on: the command that goes on later; without one, nothing is said.
        """
        self.requested = False
        self.doing = "what is under way"
        self._go_on = go_on
        self._pressed = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Self:
        """Take over SIGINT, SIGTERM and SIGHUP."""
        if threading.current_thread() is threading.main_thread():
            for number in _stopping_signals():
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        """Give the signals back."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number in _URGENT:
            if self._pressed:
                raise KeyboardInterrupt
            self._pressed = True
        # To a rank the launcher sends SIGTERM where another has ended: that one's message is the one to read.
        told = number != signal.SIGTERM or this_rank() is None
        if not self.requested and self._go_on and told:
            say_now(f"finishing {self.doing}; again to stop at once; go on with: {self._go_on}")
        self.requested = True


@contextlib.contextmanager
def interrupted_at_once() -> Iterator[None]:
    """SIGTERM and a closed terminal raise KeyboardInterrupt inside the block, as Ctrl-C does: nothing is to be saved.

    In the main thread; elsewhere Python delivers no signals.
    """

    def handle(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    previous: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        for number in _stopping_signals():
            previous[number] = signal.signal(number, handle)
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _stopping_signals() -> Iterator[int]:
    yield from _URGENT
    if _HANGUP is not None and signal.getsignal(_HANGUP) != signal.SIG_IGN:
        yield _HANGUP


def say_now(text: str) -> None:
    """A line on stderr from a signal's handler, which may have interrupted a write to the same stream.

    Where a display is live it has taken stderr's place and prints the line above itself.
    """
    with contextlib.suppress(OSError, ValueError):  # a terminal that is gone, a stream that is closed
        try:
            sys.stderr.write(text + "\n")
            sys.stderr.flush()
        except RuntimeError:  # a buffered stream refuses to be entered twice
            os.write(2, f"{text}\n".encode())
