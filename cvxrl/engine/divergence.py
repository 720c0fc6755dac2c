"""A run that stopped making sense: a result, not an error; how it is found, and the batch it was found at."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from cvxrl.engine.world import is_sharded, local_part

if TYPE_CHECKING:
    from cvxrl.engine.sequences import Sequences
    from cvxrl.engine.world import World
    from cvxrl.policy.model import Policy


class DivergedError(Exception):
    """A loss, gradient or parameter is not finite; loss and gradient are seen before the optimizer moves.

    Attributes:
        tensor: what was not finite, e.g. `loss` or the name of a parameter's gradient.
        detail: how many of its entries.
        sequences: those that the tensor was computed from, if it had come so far.
    """

    sequences: Sequences | None = None

    def __init__(self, tensor: str, detail: str) -> None:
        """Name the tensor and say how many of its entries are bad."""
        self.tensor = tensor
        self.detail = detail
        super().__init__(tensor, detail)

    def __str__(self) -> str:
        """Both in one line."""
        return f"{self.tensor}: {self.detail}"

    @property
    def positions(self) -> list[int]:
        """Positions of the sequences within the step."""
        return [] if self.sequences is None else self.sequences.positions

    @property
    def prompts(self) -> list[str]:
        """Ids of the task's examples that the sequences belong to, each once."""
        return [] if self.sequences is None else [name for name in dict.fromkeys(self.sequences.ids) if name]


@contextmanager
def blame(sequences: Sequences) -> Iterator[None]:
    """Note on a DivergedError that leaves the block which sequences it came from; the innermost block counts."""
    try:
        yield
    except DivergedError as error:
        if error.sequences is None:
            error.sequences = sequences
        raise


def require_finite(name: str, tensor: Tensor, world: World | None = None) -> None:
    """Raise DivergedError unless every entry is finite; of a sharded tensor, in every process of the world."""
    bad = int((~torch.isfinite(local_part(tensor))).sum())
    if world is not None and is_sharded(tensor):
        bad = int(world.sum(torch.tensor(bad)))
    if bad:
        raise DivergedError(name, f"{bad} of {tensor.numel()} entries are not finite")


def require_finite_gradients(model: nn.Module, norm: Tensor, world: World | None = None) -> None:
    """Raise DivergedError naming the first bad gradient; looks at single tensors only if the global norm is bad.

    Args:
        model: whose gradients they are.
        norm: of all gradients, the same in every process.
        world: the processes that hold the parts of sharded gradients; all of them raise.
    """
    if torch.isfinite(norm):
        return
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            require_finite(f"gradient of {name}", parameter.grad, world)
    raise DivergedError("gradient norm", "the global norm overflows although every entry is finite")


def require_finite_parameters(module: nn.Module, world: World | None = None) -> None:
    """Raise DivergedError naming the first parameter with a bad entry; otherwise reads each parameter once.

    Args:
        module: whose parameters they are.
        world: the processes that hold the parts of sharded parameters; all of them raise.
    """
    parts = [part for part in map(local_part, module.parameters()) if part.numel()]
    norms = [norm.float() for norm in torch._foreach_norm(parts, torch.inf)] if parts else []
    bad = int((~torch.isfinite(torch.stack(norms))).sum()) if norms else 0
    if world is not None:
        bad = int(world.sum(torch.tensor(bad)))  # the maximum of some backends loses a NaN
    if bad:
        for name, parameter in module.named_parameters():
            require_finite(f"parameter {name}", parameter, world)


def describe_batch(error: DivergedError, policy: Policy) -> Iterator[dict[str, Any]]:
    """One mapping per sequence that the bad tensor was computed from.

    Keys: `sequence` (position within the step), `id` of the example, `prompt` and `response` as text,
    `response_ids`, and, where the policy sampled, `advantages` (first and last token's) and the sampler's
    `logprob_min`.
    """
    sequences = error.sequences
    assert sequences is not None
    for i, position in enumerate(sequences.positions):
        prompt, response = policy.decode([sequences.prompts[i], sequences.responses[i]])
        line: dict[str, Any] = {
            "sequence": position,
            "id": sequences.ids[i] or None,
            "prompt": prompt,
            "response": response,
            "response_ids": sequences.responses[i],
        }
        if sequences.advantages is not None:
            advantages = sequences.advantages[i]
            line["advantages"] = [float(advantages[0]), float(advantages[-1])]
        if sequences.sampled_logprobs is not None:
            line["logprob_min"] = float(sequences.sampled_logprobs[i].min())
        yield line
