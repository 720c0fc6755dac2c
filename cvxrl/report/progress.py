"""How far a long command has come: a bar with the time left on a terminal, a few plain lines in a pipe."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import Self, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from cvxrl.report.format import clock

_LINES = 10  # plain lines per command, however long


class ProgressBar:
    """Progress on a stream; use it as a context manager, so that an error leaves the terminal as it found it."""

    def __init__(self, stream: TextIO, amount: ProgressColumn, plain: Callable[[int, int], str]) -> None:
        """Draw on ``stream`` if it is a terminal, print lines otherwise.

        Args:
            stream: usually stderr.
            amount: column of the bar that says how much is done.
            plain: the same as text, from (done, total).
        """
        self._stream = stream
        self._plain = plain
        self._bar = _make_bar(stream, amount) if stream.isatty() else None
        self._total = self._done = self._fresh = self._printed = 0
        self._began = time.monotonic()

    def start(self, title: str, total: int, done: int, announcement: str) -> None:
        """Begin at ``done`` of ``total``; a pipe gets the announcement as a line."""
        self._total, self._done, self._fresh, self._began = total, done, 0, time.monotonic()
        self._printed = _LINES * done // max(1, total)
        if self._bar is not None:
            self._task = self._bar.add_task(title, total=total, completed=done, right="")
            self._bar.start()
        else:
            self.note(announcement)

    def advance(self, amount: int, text: str = "") -> None:
        """Show the new amount, a few words, and the time left."""
        self._done += amount
        self._fresh += amount
        if self._bar is not None:
            self._bar.update(self._task, completed=self._done, right=text)
        elif self._done == self._total or _LINES * self._done // max(1, self._total) > self._printed:
            self._printed = _LINES * self._done // max(1, self._total)
            self.note(f"{self._plain(self._done, self._total)} {text} left {clock(self.seconds_left())}")

    def seconds_left(self) -> float:
        """Time for what is left, at the pace of this session."""
        return (time.monotonic() - self._began) / max(1, self._fresh) * (self._total - self._done)

    def note(self, text: str) -> None:
        """Print a line, above the bar if there is one."""
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False)
        else:
            print(text, file=self._stream, flush=True)

    def __enter__(self) -> Self:
        """Drawing begins with `start`."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop drawing."""
        if self._bar is not None:
            self._bar.stop()


def _make_bar(stream: TextIO, amount: ProgressColumn) -> Progress:
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=None),
        amount,
        TextColumn("{task.fields[right]}", markup=False),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=Console(file=stream, highlight=False),
    )
