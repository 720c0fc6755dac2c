"""A sink that must not hold up training, on a thread of its own: calls wait in a queue that has an end."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from queue import Full, Queue
from threading import Thread
from typing import Any

from cvxrl.runs.sink import NullSink, Opener, Row, Sink

_MOST_WAITING = 4096  # steps and what belongs to them: some 10 MB


class BehindError(Exception):
    """A sink did not keep up with the run."""


class Background(NullSink):
    """Hands all that it is told to another sink, which is opened and called on a daemon thread.

    What that one raises is raised here by the next call, so that it is told and left out as any other sink. Nothing
    waits but `finish`, and that for a limited time.
    """

    def __init__(self, opener: Opener, patience: float, most: int = _MOST_WAITING) -> None:
        """Begin the thread.

        Args:
            opener: makes the sink; may take its time, and fail.
            patience: seconds that `finish` waits for what has not been sent.
            most: calls that may wait before the sink is given up as too slow.
        """
        super().__init__()
        self._opener, self._patience = opener, patience
        self._queue: Queue[Callable[[Any], object]] = Queue(most)
        self._failure: BaseException | None = None
        self._done = False
        self._thread = Thread(target=self._work, name="sink", daemon=True)
        self._thread.start()

    def start(self, title: str, steps: int, done: int) -> None:
        """See `Sink`."""
        self._put(lambda sink: sink.start(title, steps, done))

    def step(self, record: Mapping[str, float]) -> None:
        """See `Sink`; the record is copied."""
        copy = dict(record)
        self._put(lambda sink: sink.step(copy))

    def samples(self, step: int, rows: Sequence[Mapping[str, object]]) -> None:
        """See `NullSink`; the rows are copied."""
        copy = [dict(row) for row in rows]
        self._put(lambda sink: sink.samples(step, copy))

    def figure(self, name: str, file: Path) -> None:
        """See `NullSink`."""
        self._put(lambda sink: sink.figure(name, file))

    def finish(self, status: str, rows: Sequence[Row]) -> None:
        """Wait until all is sent; Ctrl-C ends the waiting, not the run, which is over.

        Raises:
            BehindError: it took too long; the thread ends with the process.
        """

        def last(sink: Sink) -> None:
            sink.finish(status, rows)
            self._done = True

        self._put(last)
        try:
            self._thread.join(self._patience)
        except KeyboardInterrupt:
            raise BehindError("not waited for: what was left is not sent") from None
        if self._thread.is_alive():
            raise BehindError(f"what was left could not be sent within {self._patience:g} s (patience)")
        self._raise_failure()

    def _put(self, call: Callable[[Any], object]) -> None:
        self._raise_failure()
        try:
            self._queue.put_nowait(call)
        except Full:
            self._done = True  # the thread ends after the call that it is in
            raise BehindError(f"it is too slow: {self._queue.qsize():,} calls wait") from None

    def _raise_failure(self) -> None:
        if isinstance(self._failure, Exception):
            raise self._failure
        if self._failure is not None:
            raise BehindError(f"it ended with {type(self._failure).__name__}: {self._failure}")

    def _work(self) -> None:
        try:
            sink = self._opener()
            self.notes = getattr(sink, "notes", self.notes)
            while not self._done:
                self._queue.get()(sink)
        except BaseException as error:  # SystemExit too, which would end this thread without a word
            self._failure = error
