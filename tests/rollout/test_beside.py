"""A job in a second thread: whom its interrupt reaches, and what is said of one that comes late."""

from __future__ import annotations

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
    within_run = threading.Event()

    def lingers(*_: Any) -> None:
        within_run.set()
        for _i in range(200):
            time.sleep(0.005)

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
    began = time.monotonic()
    with pytest.raises(RuntimeError, match="sampling failed"), beside(fails, CPU):
        assert within_run.wait(30)
        raise RuntimeError("sampling failed")
    assert not said and time.monotonic() - began < 0.9


def test_an_interrupt_does_not_wait_for_a_server() -> None:
    waiting = threading.Event()

    def asks() -> None:
        waiting.set()
        within(3.0, lambda: time.sleep(3.0))

    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt), beside(asks, CPU):
        assert waiting.wait(30)
        time.sleep(0.05)
        raise KeyboardInterrupt
    assert time.monotonic() - began < 1.5
