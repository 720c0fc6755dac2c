"""A job in a second thread beside a block of code: torch computes without Python's lock, so both cores are used."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch

_INSTRUCTIONS = 1000  # within which the interpreter raises what another thread has set


@contextmanager
def beside(job: Callable[[], None], device: torch.device) -> Iterator[None]:
    """Run a job for the length of the block, which ends when both have.

    An error of the job is raised where the block ends. One of the block ends the job too, at its next line of Python:
    nobody waits for what is not wanted any more, and no thread is left behind.

    Args:
        job: touches nothing that the block changes.
        device: where it computes; on CUDA, on a stream of its own, which waits for what was asked before the block.
    """
    stream: torch.cuda.Stream | None = None
    if device.type == "cuda":
        stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    thread = _Job(job, nullcontext() if stream is None else _after(stream))
    thread.start()
    try:
        yield
        thread.join()
    except BaseException:
        thread.interrupt()
        raise
    finally:
        thread.join()
    if thread.error is not None:
        raise thread.error
    if stream is not None:
        torch.cuda.current_stream(device).wait_stream(stream)


def _after(stream: torch.cuda.Stream) -> AbstractContextManager[None]:
    stream.wait_stream(torch.cuda.current_stream(stream.device))
    context: AbstractContextManager[None] = torch.cuda.stream(stream)
    return context


class _Job(threading.Thread):
    """Does a job and keeps its error."""

    def __init__(self, job: Callable[[], None], context: AbstractContextManager[None]) -> None:
        super().__init__(name="beside", daemon=True)
        self._job, self._context, self._threads = job, context, torch.get_num_threads()
        self._began, self._lock, self._over = threading.Event(), threading.Lock(), False
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            self._began.set()
            self._attempt()
            self._end()
        except KeyboardInterrupt:  # it came before the job or after it
            self._end()

    def _attempt(self) -> None:
        try:
            torch.set_num_threads(self._threads)  # a new thread's own number, on which the bits of sums depend
            with self._context:
                self._job()
        except BaseException as error:
            self.error = error

    def _end(self) -> None:
        with self._lock:
            self._over = True
        # One that is still on its way arrives here at the latest. It must: taken back, it would leave CPython 3.11
        # looking for it at every instruction for ever, and not get on at all under a profiler.
        for _ in range(_INSTRUCTIONS):
            pass

    def interrupt(self) -> None:
        """Raise KeyboardInterrupt in it, as Ctrl-C does in the main thread; call it once.

        It arrives inside `run` or not at all: outside, `threading` would print a traceback, and a thread that is over
        may have left its ident to another.
        """
        self._began.wait()
        with self._lock:
            if not self._over:
                assert self.ident is not None
                kind = ctypes.py_object(KeyboardInterrupt)
                ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(self.ident), kind)
