"""The loss whose derivatives are inspected, and its first and second derivatives by autograd."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from cvxrl.objectives.batch import TokenBatch
from cvxrl.objectives.registry import compute, regularization
from cvxrl.objectives.statistics import sequence_lengths
from cvxrl.recipe.objective import ObjectiveSpec, RegularizerSpec

Loss = Callable[[TokenBatch, Tensor], Tensor]


def token_weights(batch: TokenBatch, spec: ObjectiveSpec) -> Tensor:
    """Weights under which sequence-coupled objectives are defined: 1 / length of the sequence; else 1. Shape [N]."""
    if spec.coupling == "token":
        return torch.ones(batch.actions_N.numel(), dtype=torch.float64, device=batch.actions_N.device)
    sequence_N = batch.require("sequence_N")
    return 1.0 / sequence_lengths(sequence_N)[sequence_N].to(torch.float64)


def weighted_loss(spec: ObjectiveSpec, regularizer: RegularizerSpec | None = None) -> Loss:
    """Sum over the tokens of weight * loss as a function of a batch and its weights.

    The objective is looked up when it is called: what is inspected is the function that runs.
    """

    def loss(batch: TokenBatch, weights_N: Tensor) -> Tensor:
        loss_N = compute(batch, spec).loss_N
        if regularizer is not None:
            loss_N = loss_N + regularization(batch, regularizer)[0]
        return (weights_N.to(loss_N.dtype) * loss_N).sum()

    return loss


def of_logits(loss: Loss, batch: TokenBatch, weights_N: Tensor) -> Callable[[Tensor], Tensor]:
    """The same loss as a function of the logits alone."""
    return lambda logits_NV: loss(replace(batch, logits_NV=logits_NV), weights_N)


class Tape:
    """One evaluation of a scalar function, whose gradient can be multiplied with vectors again and again."""

    def __init__(self, function: Callable[[Tensor], Tensor], at: Tensor, second: bool = True) -> None:
        """Evaluate ``function`` and its gradient at a point; ``second`` keeps the graph for second derivatives."""
        self._at = at.detach().clone().requires_grad_()
        with torch.enable_grad():
            value = function(self._at)
            self._slope = torch.zeros_like(self._at)
            if value.requires_grad:
                (self._slope,) = torch.autograd.grad(
                    value, self._at, create_graph=second, materialize_grads=True, allow_unused=True
                )
        self.gradient = self._slope.detach()

    def times(self, vector: Tensor) -> Tensor:
        """Hessian times vector."""
        if not self._slope.requires_grad:
            return torch.zeros_like(vector)
        (product,) = torch.autograd.grad(
            self._slope, self._at, vector, retain_graph=True, materialize_grads=True, allow_unused=True
        )
        return product.detach()
