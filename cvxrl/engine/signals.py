"""Ctrl-C and SIGTERM: finish the step, save, leave; a second one stops at once."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self


class StopRequest:
    """Remembers that a signal asked the run to stop.

    Used as a context manager in the main thread; elsewhere it only never fires, since Python delivers signals to the
    main thread alone.
    """

    def __init__(self) -> None:
        """Nothing has been asked yet."""
        self.requested = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Self:
        """Take over SIGINT and SIGTERM."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        """Give the signals back."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
