"""Where a run's progress is shown. The engine knows only this protocol."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

Row = tuple[str, str, str]


class Sink(Protocol):
    """Shows a run to a person."""

    def start(self, title: str, steps: int, done: int) -> None:
        """A run of ``steps`` begins, ``done`` of which an earlier session finished."""
        ...

    def step(self, record: Mapping[str, float]) -> None:
        """A step (or the evaluation before the first one) is done; keys as in metrics.jsonl."""
        ...

    def event(self, text: str) -> None:
        """Something worth a line happened."""
        ...

    def finish(self, status: str, rows: Sequence[Row]) -> None:
        """The run ended; rows are (name, before, after)."""
        ...
