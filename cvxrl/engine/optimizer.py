"""The recipe's optimizer over a policy, and over fp32 copies of half-precision weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cvxrl.recipe.training import AdafactorSpec, AdamwSpec, OptimSpec, SgdSpec

_MASTERS = "masters"


def build_optimizer(modules: Sequence[nn.Module], spec: OptimSpec) -> torch.optim.Optimizer:
    """The recipe's optimizer over the trainable parameters; vectors (norms, biases) are never decayed."""
    masters = _Masters.of(_trainable(modules)) if spec.master_weights else None
    copies = {} if masters is None else masters.copy_of
    groups: list[dict[str, Any]] = [
        {"params": [copies.get(id(p), p) for p in part], "weight_decay": decay}
        for part, decay in zip(_by_decay(modules), (spec.weight_decay, 0.0), strict=True)
    ]
    optimizer = _optimizer(groups, spec)
    if masters is not None:
        masters.attach(optimizer)
    return optimizer


def _trainable(modules: Sequence[nn.Module]) -> list[Tensor]:
    return [p for module in modules for p in module.parameters() if p.requires_grad]


def _by_decay(modules: Sequence[nn.Module]) -> tuple[list[Tensor], list[Tensor]]:
    """Trainable parameters: matrices, which are decayed, and vectors."""
    trainable = _trainable(modules)
    return [p for p in trainable if p.ndim >= 2], [p for p in trainable if p.ndim < 2]


def stepped_parameters(modules: Sequence[nn.Module], optimizer: torch.optim.Optimizer) -> list[tuple[Tensor, Tensor]]:
    """What an optimizer of `build_optimizer` over these modules steps, each beside the parameter that it stands for.

    The two are one tensor but where an fp32 copy is stepped instead.
    """
    parameters = [p for part in _by_decay(modules) for p in part]
    stepped = [tensor for group in optimizer.param_groups for tensor in group["params"]]
    return list(zip(stepped, parameters, strict=True))


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

    @property
    def copy_of(self) -> dict[int, Tensor]:
        """The copy of a parameter, by its identity."""
        return {id(p): copy for p, copy in zip(self.parameters, self.copies, strict=True)}

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
