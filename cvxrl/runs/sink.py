"""Sinks: where a run's numbers go while it trains, beside metrics.jsonl. The engine knows only these protocols."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

from cvxrl.imports import blame

Row = tuple[str, str, str]
Opener = Callable[[], "Sink"]


class Sink(Protocol):
    """Gets to know what happens in a run."""

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


class NullSink:
    """Takes no notice of anything; a base for sinks that care for some of it.

    Attributes:
        run_dir: where the run writes, if it belongs to one.
        recipe: the resolved recipe, by section.
    """

    def __init__(self, run_dir: Path | None = None, recipe: Mapping[str, Any] | None = None) -> None:
        """Called as `logging.sinks` of kind `callable` calls a class."""
        self.run_dir, self.recipe = run_dir, recipe or {}

    def start(self, title: str, steps: int, done: int) -> None:
        """Do nothing."""

    def step(self, record: Mapping[str, float]) -> None:
        """Do nothing."""

    def event(self, text: str) -> None:
        """Do nothing."""

    def finish(self, status: str, rows: Sequence[Row]) -> None:
        """Do nothing."""


class Sinks:
    """Passes everything on to several sinks. One that raises is named to the others once and left out from then on."""

    def __init__(self, display: Sink, openers: Mapping[str, Opener]) -> None:
        """Begin with the display alone; the others are opened when the run starts and its directory exists.

        Args:
            display: shows the run to a person.
            openers: makes each of the others, by the name under which a failure is told.
        """
        self._open: dict[str, Sink] = {"the display": display}
        self._openers = dict(openers)

    def start(self, title: str, steps: int, done: int) -> None:
        """Open the sinks of the recipe, then tell all."""
        for name, opener in self._openers.items():
            try:
                self._open[name] = opener()
            except Exception as error:
                self._drop(name, error)
        self._tell(lambda sink: sink.start(title, steps, done))

    def step(self, record: Mapping[str, float]) -> None:
        """Tell all; none of them can change the record."""
        shown = MappingProxyType(record)
        self._tell(lambda sink: sink.step(shown))

    def event(self, text: str) -> None:
        """Tell all."""
        self._tell(lambda sink: sink.event(text))

    def finish(self, status: str, rows: Sequence[Row]) -> None:
        """Tell all."""
        self._tell(lambda sink: sink.finish(status, tuple(rows)))

    def _tell(self, call: Callable[[Sink], Any]) -> None:
        for name, sink in list(self._open.items()):
            try:
                call(sink)
            except Exception as error:
                self._drop(name, error)

    def _drop(self, name: str, error: Exception) -> None:
        self._open.pop(name, None)
        self.event(f"{name} failed and is left out from here on: {blame(error)}")
