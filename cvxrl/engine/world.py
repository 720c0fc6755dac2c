"""The seam between the engine and the processes it runs in: which of how many this is, and what they add up to."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol, TypeVar

from torch import Tensor

_T = TypeVar("_T")


class World(Protocol):
    """The processes that train one policy together; each has its share of a step's sequences.

    The engine asks it for the normaliser of the loss, for metrics, and for who writes. Every call is made by all of
    them in the same order.
    """

    @property
    def rank(self) -> int:
        """Number of this process, from 0."""
        ...

    @property
    def size(self) -> int:
        """Number of processes."""
        ...

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and shows progress."""
        ...

    def sum(self, values: Tensor) -> Tensor:
        """Sum over the processes, the same on each; shape and type as given."""
        ...

    def gather(self, value: Any) -> list[Any]:
        """What every process gave, in the order of their ranks, the same on each."""
        ...

    def agreed(self) -> AbstractContextManager[None]:
        """An error that leaves the block leaves it in every process: the first one of any of them."""
        ...

    def beside(self) -> World:
        """The same processes for the calls of a second thread in each, which do not meet those of the first."""
        ...


class SingleProcess:
    """One process: its share is the whole."""

    rank = 0
    size = 1
    is_main = True

    def sum(self, values: Tensor) -> Tensor:
        """The values themselves."""
        return values

    def gather(self, value: Any) -> list[Any]:
        """The value itself."""
        return [value]

    def agreed(self) -> AbstractContextManager[None]:
        """Nothing to agree on."""
        return nullcontext()

    def beside(self) -> World:
        """The process itself."""
        return self


def from_main(world: World, value: _T) -> _T:
    """What the main process gave; what others give is not looked at."""
    main: _T = world.gather(value if world.is_main else None)[0]
    return main


def is_sharded(tensor: Tensor) -> bool:
    """Whether every process holds a part of it (a DTensor of torch.distributed, which is not loaded here)."""
    return hasattr(tensor, "to_local")


def local_part(tensor: Tensor) -> Tensor:
    """This process's part of a sharded tensor, in the same memory and without gradient; any other tensor is whole."""
    part: Any = tensor.detach()
    found: Tensor = part.to_local() if is_sharded(part) else part
    return found


def share(world: World, count: int) -> range:
    """Which of ``count`` things, numbered from 0, are this process's: shares in order of rank, as equal as can be."""
    return range(world.rank * count // world.size, (world.rank + 1) * count // world.size)


def sum_metrics(world: World, metrics: Mapping[str, float]) -> dict[str, float]:
    """Sum of every metric over the processes, in the order of their ranks; one without a sequence has none of them."""
    totals: dict[str, float] = {}
    for part in world.gather(dict(metrics)):
        for key, value in part.items():
            totals[key] = totals[key] + value if key in totals else value
    return totals
