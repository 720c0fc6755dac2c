"""Chance in the training pass: the adapter's dropout, and the policy's own only where the recipe asks for it.

A policy's configuration may drop attention weights, residuals, embeddings or whole layers, and shake its routers. All
of that hangs on a module's training mode, by whatever name a family has it, so modules stay in evaluation mode: the
pass that is trained on then gives the probabilities that the policy samples with; ratios begin at 1, margins at 0.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from cvxrl.policy.adapter import adapted_layers

_CHANCE = ("drop", "jitter")


@contextmanager
def training_mode(model: nn.Module, *, dropout: bool) -> Iterator[None]:
    """The training pass is made in this block alone: nothing that is only read may depend on chance.

    Args:
        model: in evaluation mode, and again when the block ends.
        dropout: whether the policy's own dropout is on; an adapter's always is.
    """
    if dropout:
        model.train()
    else:
        for layer in adapted_layers(model).values():
            layer.lora_dropout.train()
        for module in model.modules():
            if getattr(module, "gradient_checkpointing", False):
                _checkpoint(module)
    try:
        yield
    finally:
        model.eval()


def _checkpoint(module: nn.Module) -> None:
    """Put a module, but not those inside it, into training mode, without which nothing is checkpointed."""
    module.training = True
    # What it drops by itself, it drops by a number of its own rather than through a module.
    for name, value in vars(module).items():
        if isinstance(value, float) and any(word in name for word in _CHANCE):
            setattr(module, name, 0.0)
