"""A run that stopped making sense: a result, not an error; how it is found, and the batch it was found at."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from cvxrl.engine.experience import Experience
    from cvxrl.policy.model import Policy


class DivergedError(Exception):
    """A loss, gradient or parameter is not finite; loss and gradient are seen before the optimizer moves.

    Attributes:
        tensor: what was not finite, e.g. `loss` or the name of a parameter's gradient.
        detail: how many of its entries.
        experience: what the step was trained on, if it had come so far.
        sequences: positions in it of the sequences that the tensor was computed from.
        prompts: ids of the task's examples that these sequences belong to.
    """

    experience: Experience | None = None
    sequences: Sequence[int] = ()
    prompts: Sequence[str] = ()

    def __init__(self, tensor: str, detail: str) -> None:
        """Name the tensor and say how many of its entries are bad."""
        self.tensor = tensor
        self.detail = detail
        super().__init__(f"{tensor}: {detail}")


@contextmanager
def blame_batch(experience: Experience, sequences: Sequence[int]) -> Iterator[None]:
    """Note on a DivergedError that leaves the block which sequences it came from; the innermost block counts."""
    try:
        yield
    except DivergedError as error:
        if error.experience is None:
            error.experience, error.sequences = experience, sequences
            error.prompts = list(dict.fromkeys(experience.ids[i] for i in sequences)) if experience.ids else ()
        raise


def require_finite(name: str, tensor: Tensor) -> None:
    """Raise DivergedError unless every entry is finite."""
    bad = int((~torch.isfinite(tensor)).sum())
    if bad:
        raise DivergedError(name, f"{bad} of {tensor.numel()} entries are not finite")


def require_finite_gradients(model: nn.Module, norm: Tensor) -> None:
    """Raise DivergedError naming the first bad gradient; looks at single tensors only if the global norm is bad."""
    if torch.isfinite(norm):
        return
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            require_finite(f"gradient of {name}", parameter.grad)
    raise DivergedError("gradient norm", "the global norm overflows although every entry is finite")


def require_finite_parameters(module: nn.Module) -> None:
    """Raise DivergedError naming the first parameter with a bad entry; otherwise reads each parameter once."""
    parameters = [p.detach() for p in module.parameters()]
    norms = torch._foreach_norm(parameters, torch.inf)
    if torch.isfinite(torch.stack([norm.float() for norm in norms])).all():
        return
    for name, parameter in module.named_parameters():
        require_finite(f"parameter {name}", parameter.detach())


def describe_batch(error: DivergedError, policy: Policy) -> Iterator[dict[str, Any]]:
    """One mapping per sequence that the bad tensor was computed from.

    Keys: `sequence` (position in the step's experience), `id` of the example, `prompt` and `response` as text,
    `response_ids`, and, where the policy sampled, `advantages` (first and last token's) and the sampler's
    `logprob_min`.
    """
    experience = error.experience
    assert experience is not None
    for i in error.sequences:
        prompt, response = policy.decode([experience.prompts[i], experience.responses[i]])
        line: dict[str, Any] = {
            "sequence": i,
            "id": experience.ids[i] if experience.ids else None,
            "prompt": prompt,
            "response": response,
            "response_ids": experience.responses[i],
        }
        if experience.credit is not None:
            advantages = experience.credit.advantages[i]
            line["advantages"] = [float(advantages[0]), float(advantages[-1])]
        if experience.logprobs is not None:
            line["logprob_min"] = float(experience.logprobs[i].min())
        yield line
