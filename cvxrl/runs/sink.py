"""Sinks: where a run's numbers go while it trains, beside metrics.jsonl. The engine knows only these protocols."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

from cvxrl.imports import blame

Row = tuple[str, str, str]
Opener = Callable[[], "Sink"]
_DISPLAY = "the display"


class Sink(Protocol):
    """Gets to know what happens in a run. Further methods of `NullSink` are called where one has them."""

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
        notes: what a person should be told, a line each; every one is taken out when it is told.
    """

    def __init__(self, run_dir: Path | None = None, recipe: Mapping[str, Any] | None = None) -> None:
        """Called as `logging.sinks` of kind `callable` calls a class."""
        self.run_dir, self.recipe = run_dir, recipe or {}
        self.notes: list[str] = []

    def start(self, title: str, steps: int, done: int) -> None:
        """Do nothing."""

    def step(self, record: Mapping[str, float]) -> None:
        """Do nothing."""

    def samples(self, step: int, rows: Sequence[Mapping[str, object]]) -> None:
        """Completions of the evaluation of a step, of which `step` is told next; as in rollouts/step-*.jsonl."""

    def figure(self, name: str, file: Path) -> None:
        """A PNG was drawn, at the end of the run."""

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
        self._open: dict[str, Sink] = {_DISPLAY: display}
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

    def samples(self, step: int, rows: Sequence[Mapping[str, object]]) -> None:
        """Tell those that take completions."""
        shown = tuple(MappingProxyType(row) for row in rows)
        self._tell(lambda sink: _call(sink, "samples", step, shown))

    def figure(self, name: str, file: Path) -> None:
        """Tell those that take pictures."""
        self._tell(lambda sink: _call(sink, "figure", name, file))

    def event(self, text: str) -> None:
        """Tell all."""
        self._tell(lambda sink: sink.event(text))

    def finish(self, status: str, rows: Sequence[Row]) -> None:
        """Tell all, the display last, so that the summary stands below what the others have to say."""
        self.abandon(status, rows)
        self._tell(lambda sink: sink.finish(status, tuple(rows)), only=_DISPLAY)

    def abandon(self, status: str, rows: Sequence[Row] = ()) -> None:
        """Tell all but the display that it is over."""
        for name in [name for name in self._open if name != _DISPLAY]:
            self._tell(lambda sink: sink.finish(status, tuple(rows)), only=name)

    def _tell(self, call: Callable[[Sink], Any], only: str | None = None) -> None:
        for name, sink in list(self._open.items()):
            if only not in (None, name):
                continue
            try:
                call(sink)
            except Exception as error:
                self._drop(name, error)
            notes = getattr(sink, "notes", [])
            while notes:
                self.event(f"{name}: {notes.pop(0)}")

    def _drop(self, name: str, error: Exception) -> None:
        self._open.pop(name, None)
        self.event(f"{name} failed and is left out from here on: {blame(error)}")


def _call(sink: Sink, method: str, *told: object) -> None:
    """Call a method that not every sink has."""
    if hasattr(sink, method):
        getattr(sink, method)(*told)
