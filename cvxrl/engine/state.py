"""What a checkpoint holds beyond the policy: the optimizer and the position."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.serialization import default_restore_location

from cvxrl.engine.lag import Waiting
from cvxrl.errors import Problem, UserError
from cvxrl.policy.identity import hash_weights
from cvxrl.policy.model import Policy

_TRAINER_FILE = "trainer.pt"
_WAITING_FILE = "waiting.pt"


@dataclass(frozen=True)
class Position:
    """How far a run has come.

    Attributes:
        step: last finished step.
        tokens: response tokens seen so far.
        seconds: time spent training so far, over all sessions.
    """

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0


def save_state(
    directory: Path,
    policy: Policy,
    critic: nn.Module | None,
    optimizer: torch.optim.Optimizer,
    position: Position,
    waiting: Waiting | None = None,
) -> None:
    """Write the policy as a Hugging Face directory, or its adapter, and the trainer's state beside it.

    Rollouts that were collected and are not trained on yet (`engine.lag`) have a file of their own.
    """
    policy.save_trained(directory)
    state = {
        "optimizer": optimizer.state_dict(),
        "critic": critic.state_dict() if critic else {},
        "position": vars(position),
        "weights": _digest(policy),
    }
    torch.save(state, directory / _TRAINER_FILE)
    if waiting is not None:
        torch.save(waiting, directory / _WAITING_FILE)


def load_state(directory: Path, policy: Policy, critic: nn.Module | None, optimizer: torch.optim.Optimizer) -> Position:
    """Restore what `save_state` wrote into an existing policy and optimizer, bit for bit.

    Raises:
        UserError: the weights do not come back as they were.
    """
    policy.load_trained(directory)
    state = read_trainer_state(directory, policy.device)
    if state.get("weights") not in (None, _digest(policy)):  # version 0.1 did not keep it
        what = f"transformers does not load the weights of a {type(policy.model).__name__} as it saved them"
        raise UserError(Problem(what, file=str(directory), remedy="start again with --overwrite, without interruption"))
    optimizer.load_state_dict(state["optimizer"])
    if critic is not None:
        critic.load_state_dict(state["critic"])
    return Position(**state["position"])


def load_waiting(directory: Path, device: torch.device) -> Waiting:
    """Rollouts that `save_state` wrote: what was on the CPU is there again, the rest on ``device``."""

    def place(storage: Any, location: str) -> Any:
        if location == "cpu":
            return storage
        return default_restore_location(storage, str(device))  # type: ignore[no-untyped-call]

    waiting: Waiting = torch.load(directory / _WAITING_FILE, weights_only=True, map_location=place)
    return waiting


def _digest(policy: Policy) -> str | None:
    """Of the weights that `Policy.save_trained` has transformers convert; an adapter's are stored as they are."""
    return None if policy.as_loaded() is not None else hash_weights(policy.model)


def read_trainer_state(directory: Path, device: torch.device) -> dict[str, Any]:
    """States of `optimizer` and `critic`, and `position`, of a checkpoint."""
    state: dict[str, Any] = torch.load(directory / _TRAINER_FILE, weights_only=True, map_location=device)
    return state
