"""Threads that stand for processes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from typing import Any

import torch
from torch import Tensor


class Meeting:
    """Where the ranks of a `ThreadWorld` lay down what they have."""

    def __init__(self, size: int) -> None:
        self.size, self.barrier, self.values = size, threading.Barrier(size, timeout=60), [None] * size

    @cached_property
    def aside(self) -> Meeting:
        """Another one, for second threads."""
        return Meeting(self.size)


class ThreadWorld:
    """Threads that stand for processes: the second implementation of the seam."""

    def __init__(self, rank: int, meeting: Meeting) -> None:
        self.rank, self._meeting = rank, meeting

    @property
    def size(self) -> int:
        return self._meeting.size

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def gather(self, value: Any) -> list[Any]:
        self._meeting.values[self.rank] = value
        self._meeting.barrier.wait()
        found = list(self._meeting.values)
        self._meeting.barrier.wait()
        return found

    def agreed(self) -> AbstractContextManager[None]:
        return nullcontext()

    def beside(self) -> ThreadWorld:
        return ThreadWorld(self.rank, self._meeting.aside)

    def sum(self, values: Tensor) -> Tensor:
        return torch.stack(self.gather(values)).sum(dim=0)


def together(jobs: Sequence[Callable[[], Any]]) -> list[Any]:
    """Results of jobs that wait for one another."""
    results: list[Any] = [None] * len(jobs)

    def run(i: int) -> None:
        results[i] = jobs[i]()

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(jobs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results
