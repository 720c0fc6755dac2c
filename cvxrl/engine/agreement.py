"""Ranks that end together: the first error of any of them is the error of all.

It is told through the launcher's key-value store, beside the collectives: a rank that fails leaves others waiting for
it in a sum, and cannot tell them there. The first to write wins, so that there is one message and one exit code.
"""

from __future__ import annotations

import base64
import contextlib
import ctypes
import pickle
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from torch.distributed import DistError
from torch.distributed.distributed_c10d import Store

from cvxrl.engine.divergence import DivergedError
from cvxrl.engine.sequences import Sequences
from cvxrl.errors import UserError
from cvxrl.ranks import Rank, RankLostError, RemoteError

# Keys of the store.
_FIRST, _HEARD, _TOLD = "first error", "main rank has heard of it", "main rank has told it"
# Seconds between two looks for another's error; for a rank to end what it does before it is interrupted; for the main
# rank to hear of an error; for it to write down how the run ended.
_EVERY, _PATIENCE, _TO_HEAR, _TO_TELL = 0.5, 3.0, 5.0, 60.0
_GLANCE = 0.05
# What is told as it is; anything else is a bug, of which the traceback is told.
_AS_IT_IS = (UserError, DivergedError, RankLostError, KeyboardInterrupt)
# In errors of the libraries below torch, which have no type of their own.
_BROKEN = ("gloo", "Connection closed by peer", "Connection reset by peer", "NCCL", "process group")
LATE = "another rank did not answer within placement.timeout"
_GONE = "another rank was killed or has crashed"


class HeardError(BaseException):
    """Raised in a rank's main thread when another has failed."""


class Agreement:
    """What one rank knows of how the ranks end."""

    def __init__(self, rank: Rank, store: Store, wake: Callable[[], None]) -> None:
        """Listen from now on.

        Args:
            rank: this process, called in its main thread.
            store: that of all of them.
            wake: ends this rank's wait for others where it is not `TorchWorld` that waits.
        """
        self.failed = threading.Event()
        self._rank, self._store, self._wake = rank, store, wake
        self._first: BaseException | None = None
        self._lock, self._ended = threading.Lock(), threading.Event()
        self._main = threading.get_ident()
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._terminated)
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    @contextmanager
    def agreed(self) -> Iterator[None]:
        """An error that leaves the block leaves it in all ranks: the first one of any of them."""
        try:
            yield
        except SystemExit:
            raise
        except BaseException as error:
            first = self._settle(error)
            if first is error:
                raise
            raise first from None

    def leave(self) -> None:
        """At the very end: after an error, no rank goes before the main one has told it, or the launcher ends that."""
        self._ended.set()
        if self._first is None:
            return
        with contextlib.suppress(RuntimeError):  # of the store: its process is gone
            if self._rank.is_main:
                self._store.set(_TOLD, "1")
                return
            if self._await(_HEARD, _TO_HEAR):
                self._await(_TOLD, _TO_TELL)

    def _await(self, key: str, seconds: float) -> bool:
        """Whether a key appears in time; the store's own wait writes warnings where it does not."""
        until = time.monotonic() + seconds
        while not self._store.check([key]):
            if time.monotonic() > until:
                return False
            time.sleep(_GLANCE)
        return True

    def _settle(self, error: BaseException) -> BaseException:
        """The first error of any rank, which may be this one."""
        while True:
            try:
                with self._lock:
                    if self._first is None:
                        self._first = self._tell(error)
                return self._first
            except HeardError:  # came too late to interrupt anything
                continue

    def _tell(self, error: BaseException) -> BaseException:
        if _is_broken(error):
            error = RankLostError(_what_is_lost(error))
        try:
            told = self._store.compare_set(_FIRST, "", _packed(self._rank.number, error))
            number, first = _unpacked(told)
            if self._rank.is_main:
                self._store.set(_HEARD, "1")
        except RuntimeError:  # the launcher is gone, and with it the store
            return error
        return error if number == self._rank.number else first

    def _listen(self) -> None:
        """Wake this rank where another has failed, wherever it is."""
        with contextlib.suppress(RuntimeError):
            while not self._store.check([_FIRST]):
                if self._ended.wait(_EVERY):
                    return
            self.failed.set()
            self._wake()
            if self._ended.wait(_PATIENCE):
                return
            with self._lock:
                if self._first is None:
                    _raise_in(self._main, HeardError)

    def _terminated(self, number: int, frame: FrameType | None) -> None:
        """SIGTERM, where no `StopRequest` takes it: of a launcher that has seen another rank end, or of a user."""
        if self._first is None and not self._ended.is_set():
            raise KeyboardInterrupt


def _is_broken(error: BaseException) -> bool:
    """Whether an error is that of a connection to another rank."""
    if isinstance(error, HeardError | DistError):
        return True
    return type(error) in (RuntimeError, ValueError) and any(word in str(error) for word in _BROKEN)


def _what_is_lost(error: BaseException) -> str:
    return LATE if "imed out" in str(error) else _GONE


def _packed(number: int, error: BaseException) -> str:
    if not isinstance(error, _AS_IT_IS):
        error = RemoteError(f"on rank {number}:\n{''.join(traceback.format_exception(error))}")
    if isinstance(error, DivergedError) and error.sequences is not None:
        s = error.sequences  # what is written down of them, without the logits
        kept = Sequences(s.prompts, s.responses, s.groups, s.positions, s.ids, s.sampled_logprobs, None, s.advantages)
        error = type(error)(*error.args)
        error.sequences = kept
    return base64.b64encode(pickle.dumps((number, error))).decode()


def _unpacked(told: bytes) -> tuple[int, BaseException]:
    found: tuple[int, BaseException] = pickle.loads(base64.b64decode(told))
    return found


def _raise_in(thread: int, error: type[BaseException]) -> None:
    """Raise in another thread, as soon as it is back in Python."""
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(error))
