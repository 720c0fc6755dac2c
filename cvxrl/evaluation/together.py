"""An evaluation by several processes: the questions are split, and all of them know every answer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from cvxrl.evaluation.evaluator import Asked, Evaluator
from cvxrl.evaluation.record import Sample


class Askers(Protocol):
    """The processes that ask together; what of `cvxrl.engine.world.World` this needs."""

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
        """Whether this process writes and shows progress."""
        ...

    def gather(self, value: Any) -> list[Any]:
        """What every process gave, in the order of their ranks."""
        ...


@dataclass(frozen=True)
class Alone:
    """One process asks everything."""

    rank: int = 0
    size: int = 1
    is_main: bool = True

    def gather(self, value: Any) -> list[Any]:
        """The value itself."""
        return [value]


def ask_together(
    askers: Askers,
    evaluator: Evaluator,
    asked: Sequence[Asked],
    note: Callable[[str], None],
    until: Callable[[], bool] = lambda: False,
) -> Iterator[list[Sample]]:
    """As `Evaluator.ask`, each process asking its share; every batch of all of them is yielded in all of them.

    Args:
        askers: the processes.
        evaluator: asks; the same policy in each.
        asked: everything that is to be asked, the same in each.
        note: told where memory runs out.
        until: asked before every batch whether to sample no more.
    """
    count = len(asked)
    mine = asked[askers.rank * count // askers.size : (askers.rank + 1) * count // askers.size]
    batches = evaluator.ask(mine, note, until)
    while True:
        told = askers.gather(next(batches, None))
        if all(batch is None for batch in told):
            return
        yield [sample for batch in told for sample in batch or []]
