"""Show how far an evaluation has come, and the share that was right."""

from __future__ import annotations

from types import TracebackType
from typing import Protocol, Self, TextIO

from rich.progress import MofNCompleteColumn

from cvxrl.report.progress import ProgressBar


class Progress(Protocol):
    """What an evaluation tells while it runs."""

    def start(self, title: str, total: int, done: int) -> None:
        """``total`` completions are wanted, ``done`` of which an earlier session made."""

    def advance(self, completions: int, correct: int) -> None:
        """More completions are graded."""

    def note(self, text: str) -> None:
        """Something worth a line."""


class BarProgress:
    """Counts completions on a `ProgressBar`; use it as a context manager."""

    def __init__(self, stream: TextIO) -> None:
        """Draw on ``stream`` if it is a terminal, print lines otherwise."""
        self._bar = ProgressBar(stream, MofNCompleteColumn(), lambda done, total: f"{done:>7}/{total}")
        self._asked = self._right = 0

    def start(self, title: str, total: int, done: int) -> None:
        """Begin at ``done`` of ``total`` completions."""
        before = f", {done} done before" if done else ""
        self._bar.start(title, total, done, f"{title}: {total} completions{before}")

    def advance(self, completions: int, correct: int) -> None:
        """Show the new count, the share right in this session, and the time left."""
        self._asked += completions
        self._right += correct
        self._bar.advance(completions, f"right {self._right / self._asked:.3f}")

    def note(self, text: str) -> None:
        """Print a line, above the bar if there is one."""
        self._bar.note(text)

    def __enter__(self) -> Self:
        """Drawing begins with `start`."""
        self._bar.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop drawing."""
        self._bar.__exit__(kind, error, trace)
