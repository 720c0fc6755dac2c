"""AdamW and the learning rate as a function of the step."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn

from cvxrl.recipe.schema import OptimSpec, TrainSpec


def build_optimizer(modules: Sequence[nn.Module], spec: OptimSpec) -> torch.optim.Optimizer:
    """AdamW over the trainable parameters; vectors (norms, biases) are never decayed."""
    trainable = [p for module in modules for p in module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": spec.weight_decay},
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=spec.lr, betas=spec.betas, eps=spec.eps, fused=True)


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
