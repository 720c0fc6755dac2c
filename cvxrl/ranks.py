"""Which of how many processes this one is, as a launcher (`torchrun`, `python -m cvxrl.launch`) says.

Read from the environment without torch, since the command line asks before it knows whether there is anything to train.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

# Environment variable with the command that started the ranks, as far as their own: what one goes on with begins so.
LAUNCHER = "CVXRL_LAUNCHER"
_NEEDED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Rank:
    """One of several processes that were started together.

    Attributes:
        number: of the process, from 0, over all machines.
        size: how many there are.
        local: number on this machine, from 0, which is that of its GPU.
        attempt: how often the launcher has started them before (`torchrun --max-restarts`).
    """

    number: int
    size: int
    local: int
    attempt: int = 0

    @property
    def is_main(self) -> bool:
        """Whether it writes files, shows progress and says what went wrong."""
        return self.number == 0


def this_rank() -> Rank | None:
    """This process's place among those of a launcher; None where it was started by itself."""
    if not all(os.environ.get(name) for name in _NEEDED):
        return None
    number, size, local = (int(os.environ[name]) for name in _NEEDED[:3])
    return Rank(number, size, local, int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")))


def is_main() -> bool:
    """Whether this process writes and speaks: it was started by itself, or is the first of several."""
    rank = this_rank()
    return rank is None or rank.is_main


class RankLostError(Exception):
    """Another rank was killed, crashed, or did not answer in time; the run can be gone on with."""


class RemoteError(Exception):
    """An error of our own on another rank; its text is the traceback there."""
