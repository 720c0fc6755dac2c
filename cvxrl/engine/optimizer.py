"""Optimizers, fp32 copies of half-precision parameters, and the learning rate as a function of the step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cvxrl.recipe.optim import AdafactorSpec, AdamwSpec, OptimSpec, SgdSpec
from cvxrl.recipe.schema import TrainSpec

_MASTERS = "masters"


def build_optimizer(modules: Sequence[nn.Module], spec: OptimSpec) -> torch.optim.Optimizer:
    """The recipe's optimizer over the trainable parameters; vectors (norms, biases) are never decayed."""
    trainable: list[Tensor] = [p for module in modules for p in module.parameters() if p.requires_grad]
    masters = _Masters.of(trainable) if spec.master_weights else None
    stepped = trainable if masters is None else masters.stepped(trainable)
    groups: list[dict[str, Any]] = [
        {"params": [p for p in stepped if p.ndim >= 2], "weight_decay": spec.weight_decay},
        {"params": [p for p in stepped if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = _optimizer(groups, spec)
    if masters is not None:
        masters.attach(optimizer)
    return optimizer


def _optimizer(groups: list[dict[str, Any]], spec: OptimSpec) -> torch.optim.Optimizer:
    match spec:
        case AdamwSpec():
            return torch.optim.AdamW(groups, lr=spec.lr, betas=spec.betas, eps=spec.eps, fused=True)
        case SgdSpec():
            return torch.optim.SGD(groups, lr=spec.lr, momentum=spec.momentum, nesterov=spec.nesterov, fused=True)
        case AdafactorSpec():
            options: dict[str, Any] = {"beta2_decay": spec.beta2_decay, "d": spec.clip_threshold}
            return torch.optim.Adafactor(groups, lr=spec.lr, eps=(None, spec.smallest_scale), **options)


@dataclass(frozen=True)
class _Masters:
    """fp32 copies that the optimizer steps instead of half-precision parameters, which are then rounded from them.

    Attributes:
        parameters: of the model.
        copies: of these, in their order.
    """

    parameters: list[Tensor]
    copies: list[Tensor]

    @classmethod
    def of(cls, trainable: Sequence[Tensor]) -> _Masters:
        """Copies of what is not fp32 already."""
        halves = [p for p in trainable if p.dtype != torch.float32]
        return cls(halves, [p.detach().float() for p in halves])

    def stepped(self, trainable: Sequence[Tensor]) -> list[Tensor]:
        """What the optimizer steps: copies where there are some."""
        copy_of = {id(p): copy for p, copy in zip(self.parameters, self.copies, strict=True)}
        return [copy_of.get(id(p), p) for p in trainable]

    def attach(self, optimizer: torch.optim.Optimizer) -> None:
        """Make every step of the optimizer begin with the parameters' gradients and end in the parameters.

        Its state holds the copies too, so that a resumed run goes on from them and not from the rounded parameters.
        """
        optimizer.register_step_pre_hook(self._take_gradients)
        optimizer.register_step_post_hook(self._round)
        optimizer.register_state_dict_post_hook(self._save)
        optimizer.register_load_state_dict_pre_hook(self._load)

    def _take_gradients(self, *_: object) -> None:
        for parameter, copy in zip(self.parameters, self.copies, strict=True):
            copy.grad = None if parameter.grad is None else parameter.grad.float()
            parameter.grad = None  # one of the two is enough

    @torch.no_grad()
    def _round(self, *_: object) -> None:
        for parameter, copy in zip(self.parameters, self.copies, strict=True):
            parameter.copy_(copy)
            copy.grad = None

    def _save(self, _: torch.optim.Optimizer, state: dict[str, Any]) -> None:
        state[_MASTERS] = self.copies

    @torch.no_grad()
    def _load(self, _: torch.optim.Optimizer, state: dict[str, Any]) -> None:
        for copy, saved in zip(self.copies, state[_MASTERS], strict=True):
            copy.copy_(saved)


def optimizer_steps(train: TrainSpec) -> int:
    """Optimizer steps of the whole run."""
    return train.steps * train.inner_epochs * train.minibatches


def learning_rate(spec: OptimSpec, index: int, total: int) -> float:
    """Learning rate of optimizer step ``index`` (from 0) of ``total``."""
    if index < spec.warmup_steps:
        return spec.lr * (index + 1) / spec.warmup_steps
    progress = (index - spec.warmup_steps) / max(1, total - 1 - spec.warmup_steps)
    match spec.schedule:
        case "constant":
            share = 1.0
        case "linear":
            share = 1.0 - progress
        case "cosine":
            share = 0.5 * (1.0 + math.cos(math.pi * progress))
    return spec.lr * (spec.final_lr_fraction + (1.0 - spec.final_lr_fraction) * share)
