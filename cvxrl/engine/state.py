"""What a checkpoint holds beyond the policy: the optimizer and the position."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

from cvxrl.policy.model import Policy

_TRAINER_FILE = "trainer.pt"


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
    directory: Path, policy: Policy, critic: nn.Module | None, optimizer: torch.optim.Optimizer, position: Position
) -> None:
    """Write the policy as a Hugging Face directory, and the trainer's state beside it."""
    policy.save(directory)
    state = {
        "optimizer": optimizer.state_dict(),
        "critic": critic.state_dict() if critic else {},
        "position": vars(position),
    }
    torch.save(state, directory / _TRAINER_FILE)


def load_state(directory: Path, policy: Policy, critic: nn.Module | None, optimizer: torch.optim.Optimizer) -> Position:
    """Restore what `save_state` wrote into an existing policy and optimizer, bit for bit."""
    weights: dict[str, torch.Tensor] = {}
    for shard in sorted(directory.glob("model*.safetensors")):
        weights |= load_file(shard)
    # Tied matrices are stored once, so the file may lack a key that shares memory with one it has.
    missing, unexpected = policy.model.load_state_dict(weights, strict=False)
    tied = set(getattr(policy.model, "all_tied_weights_keys", None) or {})
    assert not unexpected and set(missing) <= tied, (missing, unexpected)
    state = torch.load(directory / _TRAINER_FILE, weights_only=True, map_location=policy.device)
    optimizer.load_state_dict(state["optimizer"])
    if critic is not None:
        critic.load_state_dict(state["critic"])
    return Position(**state["position"])
