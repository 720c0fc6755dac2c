"""Ranks of `torch.distributed`: gloo between processors, NCCL between GPUs."""

from __future__ import annotations

import contextlib
import copy
import os
import pickle
import sys
import time
from contextlib import AbstractContextManager
from datetime import timedelta
from functools import cache
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor
from torch import distributed as dist
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from cvxrl.engine.agreement import LATE, Agreement, HeardError
from cvxrl.engine.world import SingleProcess, World
from cvxrl.policy.load import pick_device
from cvxrl.ranks import Rank, RankLostError, this_rank
from cvxrl.recipe.placement import PlacementSpec
from cvxrl.recipe.schema import Recipe

_GLANCE = timedelta(seconds=0.5)  # between two looks whether another rank has failed
_TO_MEET = timedelta(seconds=300)  # for all ranks to have been started


class TorchWorld:
    """This process among those that a launcher started; see `World`.

    Tensors are summed where they are; everything else goes through the processors.
    """

    def __init__(self, rank: Rank, store: Store) -> None:
        """Know of one another's errors from now on; `open` comes before the first collective."""
        self._rank, self._store = rank, store
        self._limit = _TO_MEET
        self._group: dist.ProcessGroup | None = None
        self._agreement = Agreement(rank, store, _abort)

    @property
    def rank(self) -> int:
        """See `World`."""
        return self._rank.number

    @property
    def size(self) -> int:
        """See `World`."""
        return self._rank.size

    @property
    def is_main(self) -> bool:
        """See `World`."""
        return self._rank.is_main

    def open(self, device: torch.device, timeout: float) -> None:
        """Connect all ranks, once.

        Args:
            device: where this one computes.
            timeout: longest wait for another rank, in seconds.
        """
        if dist.is_initialized():
            return
        self._limit = timedelta(seconds=timeout)
        backend = "gloo"
        if device.type == "cuda":
            torch.cuda.set_device(device)
            backend = "cpu:gloo,cuda:nccl"
        store = PrefixStore("collectives", self._store)
        dist.init_process_group(backend, store=store, rank=self.rank, world_size=self.size, timeout=self._limit)

    def sum(self, values: Tensor) -> Tensor:
        """See `World`."""
        total = values.clone()
        self._wait(dist.all_reduce(total, group=self._group, async_op=True))
        return total

    def gather(self, value: Any) -> list[Any]:
        """See `World`; values are pickled, tensors among them on the CPU."""
        mine = torch.frombuffer(bytearray(pickle.dumps(value)), dtype=torch.uint8)
        sizes = [int(size) for size in self._gather(torch.tensor([len(mine)]))]
        padded = torch.nn.functional.pad(mine, (0, max(sizes) - len(mine)))
        parts = zip(self._gather(padded), sizes, strict=True)
        return [pickle.loads(part[:size].numpy().data) for part, size in parts]

    def agreed(self) -> AbstractContextManager[None]:
        """See `World`."""
        return self._agreement.agreed()

    def beside(self) -> TorchWorld:
        """See `World`; what it sums is on the processor."""
        world = copy.copy(self)
        world._group = dist.new_group(backend="gloo", timeout=self._limit)
        return world

    def __enter__(self) -> Self:
        """For the length of the process: the main rank alone is heard."""
        if not self.is_main:
            sys.stdout = sys.stderr = open(os.devnull, "w")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        """This rank has nothing more to do."""
        self._agreement.leave()
        if dist.is_initialized() and not self._agreement.failed.is_set():
            with contextlib.suppress(RuntimeError):
                dist.destroy_process_group()

    def _gather(self, values: Tensor) -> list[Tensor]:
        """Equally many numbers of every rank."""
        parts = [torch.empty_like(values) for _ in range(self.size)]
        self._wait(dist.all_gather(parts, values, group=self._group, async_op=True))
        return parts

    def _wait(self, work: dist.Work | None) -> None:
        """Wait for a collective, and look meanwhile whether another rank has failed, which will never join in."""
        assert work is not None
        until = time.monotonic() + self._limit.total_seconds()
        while not work.is_completed():
            try:
                work.wait(_GLANCE)
            except RuntimeError:
                if work.is_completed():
                    raise
                if self._agreement.failed.is_set():
                    raise HeardError from None
                if time.monotonic() > until:
                    raise RankLostError(LATE) from None
        work.wait()


@cache
def join() -> TorchWorld:
    """Meet the other processes of the launcher; no collective yet. Once a process.

    Raises:
        RuntimeError: this process was started by itself, or the launcher's store cannot be reached.
    """
    rank = this_rank()
    if rank is None:
        raise RuntimeError("no launcher started this process")
    store, _, _ = next(rendezvous("env://", rank.number, rank.size, timeout=_TO_MEET))
    return TorchWorld(rank, PrefixStore(f"cvxrl {rank.attempt}", store))


def world_of(recipe: Recipe) -> World:
    """The processes that train a recipe together; see `world_on`."""
    return world_on(recipe.train.device, recipe.placement.timeout)


def world_on(device: str, timeout: float = PlacementSpec.model_fields["timeout"].default) -> World:
    """The processes of the launcher, connected, or this one alone.

    Args:
        device: where they compute: `auto`, `cpu` or `cuda`.
        timeout: longest wait for one of them, in seconds.

    Raises:
        UserError: the device is not there.
    """
    if this_rank() is None:
        return SingleProcess()
    world = join()
    world.open(pick_device(device), timeout)
    return world


def _abort() -> None:
    """End the waits of GPUs for one another; between processors `TorchWorld` looks itself."""
    if dist.is_initialized() and dist.get_backend() != dist.Backend.GLOO:
        with contextlib.suppress(Exception):  # the run has failed already; what fails here adds nothing
            dist.distributed_c10d._abort_process_group()
