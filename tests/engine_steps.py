"""Gradients of one optimizer step, and how far two of them are apart."""

from __future__ import annotations

from torch import Tensor

from cvxrl.engine.sequences import Sequences
from cvxrl.engine.trainer import Trainer
from cvxrl.recipe.schema import Recipe


def gradient(recipe: Recipe, sequences: Sequences) -> dict[str, Tensor]:
    """Accumulated gradient of one optimizer step, before clipping."""
    trainer = Trainer.build(recipe)
    seen: dict[str, Tensor] = {}

    def look(*_: object) -> None:
        for name, parameter in trainer.policy.model.named_parameters():
            assert parameter.grad is not None
            seen[name] = parameter.grad.detach().clone()

    trainer.optimizer.register_step_pre_hook(look)
    trainer.updater.update(sequences, 1)
    return seen


def largest_difference(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    scale = max(float(g.abs().max()) for g in a.values())
    return max(float((a[k] - b[k]).abs().max()) for k in a) / scale
