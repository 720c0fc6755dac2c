"""Many questions at once to a server that may fail, hang, come back, or talk nonsense."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from queue import Empty, SimpleQueue
from typing import TypeVar

from cvxrl.rollout.vllm.http import Garbled, Refused, Trouble, Unanswered

_Q = TypeVar("_Q")
_A = TypeVar("_A")
# Pauses before asking again: 0.1 s, doubled every time, at most this.
_LONGEST_PAUSE = 5.0
# What is answered with nonsense so often will not be answered otherwise.
_PATIENCE_WITH_NONSENSE = 5


def ask_all(questions: Sequence[_Q], ask: Callable[[_Q], _A], *, at_once: int, patience: float) -> list[_A]:
    """Answers in the order of the questions; what fails is asked again, with growing pauses.

    Threads that nobody waits for do the asking, and this one counts: so neither a server that hangs nor one that sends
    a byte now and then can hold it.

    Args:
        questions: asked in any order.
        ask: asks one; raises `Trouble`.
        at_once: questions under way at a time.
        patience: longest time in seconds without any answer.

    Raises:
        Trouble: there was no answer for that long, or one that asking again would not change.
    """
    todo: SimpleQueue[tuple[int, int] | None] = SimpleQueue()
    done: SimpleQueue[tuple[int, int, _A | BaseException]] = SimpleQueue()
    over = threading.Event()

    def work() -> None:
        while (job := todo.get()) is not None and not over.is_set():
            i, attempt = job
            if attempt and over.wait(pause(attempt)):
                return
            try:
                done.put((i, attempt, ask(questions[i])))
            except BaseException as error:
                done.put((i, attempt, error))

    for i in range(len(questions)):
        todo.put((i, 0))
    threads = min(at_once, len(questions))
    for _ in range(threads):
        threading.Thread(target=work, daemon=True).start()
    try:
        return _collect(len(questions), todo, done, patience)
    finally:
        over.set()
        for _ in range(threads):
            todo.put(None)


def pause(attempt: int) -> float:
    """Seconds to wait before the ``attempt``-th repetition."""
    return float(min(0.1 * 2 ** min(attempt - 1, 30), _LONGEST_PAUSE))


def _collect(
    count: int,
    todo: SimpleQueue[tuple[int, int] | None],
    done: SimpleQueue[tuple[int, int, _A | BaseException]],
    patience: float,
) -> list[_A]:
    answers: dict[int, _A] = {}
    last: Trouble | None = None
    deadline = time.monotonic() + patience
    while len(answers) < count:
        try:
            i, attempt, answer = done.get(timeout=max(0.0, deadline - time.monotonic()))
        except Empty:
            raise Unanswered(f"no answer for {patience:g} s" + (f" ({last})" if last else "")) from None
        if not isinstance(answer, BaseException):
            answers[i], deadline = answer, time.monotonic() + patience
            continue
        if not isinstance(answer, Trouble) or (isinstance(answer, Refused) and answer.final):
            raise answer
        if isinstance(answer, Garbled) and attempt + 1 >= _PATIENCE_WITH_NONSENSE:
            raise answer
        last = answer
        todo.put((i, attempt + 1))
    return [answers[i] for i in range(count)]
