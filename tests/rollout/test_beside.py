"""A job in a second thread: whom its interrupt reaches, and what is said of one that comes late."""

from __future__ import annotations

import sys
import threading
import time
from typing import Any

import pytest
import torch

from cvxrl.rollout import beside as module
from cvxrl.rollout.beside import beside
from cvxrl.rollout.vllm.beside import within

CPU = torch.device("cpu")


def test_an_error_of_the_block_reaches_no_thread_that_has_the_ident_of_a_job_that_is_done() -> None:
    idents: list[int] = []
    reached: list[BaseException] = []
    failed = threading.Event()

    def other() -> None:
        try:
            while not failed.wait(0.005):
                pass
            time.sleep(0.01)
        except BaseException as error:
            reached.append(error)

    others: list[threading.Thread] = []
    with (
        pytest.raises(RuntimeError, match="sampling failed"),
        beside(lambda: idents.append(threading.get_ident()), CPU),
    ):
        # The system takes a moment to give the ident away.
        while not idents or (idents[0] not in [thread.ident for thread in others] and len(others) < 50):
            time.sleep(0.005)
            others.append(threading.Thread(target=other))
            others[-1].start()
        raise RuntimeError("sampling failed")
    failed.set()
    for thread in others:
        thread.join()
    if idents[0] != others[-1].ident:
        pytest.skip("this system gives no ident twice")
    assert not reached


@pytest.mark.parametrize("when", ["before", "after"])
def test_an_interrupt_that_misses_the_job_is_silent(when: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It arrives in the thread's own lines, before the job has begun or when its error is being kept."""
    said: list[Any] = []
    unreached: list[str] = []
    within_run = threading.Event()

    def lingers(*_: Any) -> None:
        within_run.set()
        for _i in range(2000):
            time.sleep(0.005)
        unreached.append(when)

    class Lingering(module._Job):
        if when == "before":

            def _attempt(self) -> None:
                lingers()

        else:
            error = property(lambda _: None, lambda _, error: error and lingers())  # type: ignore[assignment]

    def fails() -> None:
        raise ValueError

    monkeypatch.setattr(module, "_Job", Lingering)
    monkeypatch.setattr(threading, "excepthook", said.append)
    with pytest.raises(RuntimeError, match="sampling failed"), beside(fails, CPU):
        assert within_run.wait(30)
        raise RuntimeError("sampling failed")
    assert not said and not unreached


def test_a_profiler_gets_on_after_jobs_that_were_interrupted_at_any_moment() -> None:
    """An interrupt that is taken back leaves CPython 3.11 in a loop at the next call that is profiled."""
    for jobs in range(60):
        with pytest.raises(RuntimeError), beside(lambda: None, CPU):
            for _ in range(100 * jobs):
                pass
            raise RuntimeError

    def called() -> None:
        pass

    calls: list[str] = []
    sys.setprofile(lambda _frame, event, _: calls.append(event))
    try:
        called()
    finally:
        sys.setprofile(None)
    assert "call" in calls


def test_an_interrupt_does_not_wait_for_a_server() -> None:
    waiting, answer = threading.Event(), threading.Event()
    answered: list[bool] = []

    def asks() -> None:
        waiting.set()
        within(60.0, lambda: answered.append(answer.wait(60.0)))

    with pytest.raises(KeyboardInterrupt), beside(asks, CPU):
        assert waiting.wait(30)
        time.sleep(0.05)
        raise KeyboardInterrupt
    assert not answered
    answer.set()
