"""A loss that gets into trouble on one rank, at one optimizer step."""

from __future__ import annotations

import os
import time
from itertools import count
from typing import Any

import torch

from cvxrl.objectives.batch import TokenBatch

_calls = count(1)


def loss(batch: TokenBatch, *, what: str, rank: int, at: int) -> torch.Tensor:
    """Log-probabilities, as a loss to be fallen down, but for the trouble."""
    found = torch.log_softmax(batch.logits_NV, dim=-1).gather(-1, batch.actions_N.unsqueeze(-1)).squeeze(-1)
    if next(_calls) != at or os.environ.get("RANK") != str(rank):
        return found
    troubles: dict[str, Any] = {
        "nan": lambda: found * float("nan"),
        "bug": lambda: {}["a key that is not there"],
        "interrupt": lambda: _raise(KeyboardInterrupt()),
        "kill": lambda: os.kill(os.getpid(), 9),
        "hang": lambda: time.sleep(120),
    }
    made: torch.Tensor = troubles[what]()
    return made


def _raise(error: BaseException) -> None:
    raise error


def reward(completion: str, **_: Any) -> float:
    """A reward that works on the first rank alone."""
    return float(len(completion)) / {"0": 10}[os.environ["RANK"]]
