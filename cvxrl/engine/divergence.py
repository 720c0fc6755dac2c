"""A run that stopped making sense: a result, not an error."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class DivergedError(Exception):
    """A loss, gradient or parameter is not finite; raised before the optimizer moves.

    Attributes:
        tensor: what was not finite, e.g. `loss` or the name of a parameter's gradient.
    """

    def __init__(self, tensor: str, detail: str) -> None:
        """Name the tensor and say how many of its entries are bad."""
        self.tensor = tensor
        self.detail = detail
        super().__init__(f"{tensor}: {detail}")


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
