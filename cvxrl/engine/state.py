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
# What a sharded optimizer's state is in (`engine.sharded_state`), beside the rest in the trainer's file.
_SHARDS = "shards"


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
    *,
    is_main: bool = True,
) -> None:
    """Write the policy as a Hugging Face directory, or its adapter, and the trainer's state beside it.

    Rollouts that were collected and are not trained on yet (`engine.lag`) have a file of their own.

    Args:
        directory: empty; the same in all processes that share a sharded policy, each of which calls this.
        policy: what is trained, with
        critic: beside it, and
        optimizer: of both.
        position: how far the run has come.
        waiting: rollouts that later steps train on.
        is_main: whether this process writes what is not sharded.
    """
    steps = optimizer.state_dict()
    if policy.sharding is not None:
        from cvxrl.engine.sharded_state import Owners, take_shards, write_shards

        steps, shards = take_shards(steps, Owners.of(_modules(policy, critic), optimizer))
        write_shards(directory / _SHARDS, shards)
    with policy.whole():
        if not is_main:
            return
        policy.save_trained(directory)
        weights = _digest(policy)
    state = {
        "optimizer": steps,
        "critic": critic.state_dict() if critic else {},
        "position": vars(position),
        "weights": weights,
    }
    torch.save(state, directory / _TRAINER_FILE)
    if waiting is not None:
        torch.save(waiting, directory / _WAITING_FILE)


def load_state(directory: Path, policy: Policy, critic: nn.Module | None, optimizer: torch.optim.Optimizer) -> Position:
    """Restore what `save_state` wrote into an existing policy and optimizer, bit for bit; sharded or not, either.

    Raises:
        UserError: the weights do not come back as they were.
    """
    policy.load_trained(directory)
    state = _read_for(directory, policy, critic, optimizer)
    with policy.whole():
        found = _digest(policy)
    if state.get("weights") not in (None, found):  # version 0.1 did not keep it
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
    """States of `optimizer` and `critic`, and `position`, of a checkpoint; what is sharded there is whole here."""
    state: dict[str, Any] = torch.load(directory / _TRAINER_FILE, weights_only=True, map_location=device)
    if (directory / _SHARDS).is_dir():
        from cvxrl.engine.sharded_state import read_shards, with_shards

        state["optimizer"] = with_shards(state["optimizer"], read_shards(directory / _SHARDS))
    return state


def _read_for(
    directory: Path, policy: Policy, critic: nn.Module | None, optimizer: torch.optim.Optimizer
) -> dict[str, Any]:
    """As `read_trainer_state`, for an optimizer that may step this process's parts of parameters."""
    if policy.sharding is None:
        return read_trainer_state(directory, policy.device)
    from cvxrl.engine.sharded_state import Owners, cut, read_shards, with_shards

    owners = Owners.of(_modules(policy, critic), optimizer)
    # Whole states of the optimizer are left on the disk but for what is cut out of them.
    file = directory / _TRAINER_FILE
    state: dict[str, Any] = torch.load(file, weights_only=True, map_location="cpu", mmap=True)
    if (directory / _SHARDS).is_dir():
        state["optimizer"] = with_shards(state["optimizer"], read_shards(directory / _SHARDS, owners))
    else:
        state["optimizer"] = cut(state["optimizer"], owners)
    return state


def _modules(policy: Policy, critic: nn.Module | None) -> list[nn.Module]:
    return [policy.model, *([critic] if critic else [])]
