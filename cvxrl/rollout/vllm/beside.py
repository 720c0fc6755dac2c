"""Work on a thread that nobody waits for longer than agreed: what hangs is left to itself."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from cvxrl.rollout.vllm.http import Unanswered

_T = TypeVar("_T")
_GLANCE_S = 0.1  # between two looks whether the thread that waits is to end


class Beside(Generic[_T]):
    """An action under way.

    A time-out of a socket counts from byte to byte, and a collective call may have none: either could hold us for ever.
    """

    def __init__(self, action: Callable[[], _T]) -> None:
        """Begin."""
        self._outcome: list[Any] = []
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(action,), daemon=True)
        self._thread.start()

    def _run(self, action: Callable[[], _T]) -> None:
        try:
            self._outcome.append(action())
        except BaseException as error:  # raised where the result is asked for
            self._error = error

    def result(self, seconds: float) -> _T:
        """What came of it, or its error.

        Raises:
            Unanswered: it is not done after that many seconds more.
        """
        deadline = time.monotonic() + seconds
        # In short pieces: what another thread raises in this one arrives between two of them.
        while self._thread.is_alive() and (left := deadline - time.monotonic()) > 0:
            self._thread.join(min(left, _GLANCE_S))
        if self._error is not None:
            raise self._error
        if not self._outcome:
            raise Unanswered(f"no answer within {seconds:g} s")
        found: _T = self._outcome[0]
        return found


def within(seconds: float, action: Callable[[], _T]) -> _T:
    """Result of an action that is given so many seconds.

    Raises:
        Unanswered: it takes longer.
    """
    return Beside(action).result(seconds)
