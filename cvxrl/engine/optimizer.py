"""The recipe's optimizer over a policy: over fp32 copies of half-precision weights, over this process's shards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cvxrl.engine.world import is_sharded, local_part
from cvxrl.errors import Problem, UserError
from cvxrl.recipe.training import AdafactorSpec, AdamwSpec, OptimSpec, SgdSpec

# Where an optimizer's state has its fp32 copies.
MASTERS = "masters"


def build_optimizer(modules: Sequence[nn.Module], spec: OptimSpec) -> torch.optim.Optimizer:
    """The recipe's optimizer over the trainable parameters; vectors (norms, biases) are never decayed.

    Of a sharded parameter it steps the part of this process, so that a step needs no other process and its state is
    sharded alike.

    Raises:
        UserError: the optimizer needs whole matrices, and parameters are sharded.
    """
    trainable = _trainable(modules)
    if isinstance(spec, AdafactorSpec) and any(map(is_sharded, trainable)):
        what = "Adafactor's steps follow from rows, columns and sizes of whole matrices, which no process holds"
        raise UserError(Problem(what, "optim.kind", remedy="take adamw or sgd, or set placement.shard: none"))
    standing = _StandIns.of(trainable, masters=spec.master_weights)
    groups: list[dict[str, Any]] = [
        {"params": [standing.of_parameter.get(id(p), p) for p in part], "weight_decay": decay}
        for part, decay in zip(_by_decay(modules), (spec.weight_decay, 0.0), strict=True)
    ]
    optimizer = _optimizer(groups, spec)
    if standing.parameters:
        standing.attach(optimizer)
    return optimizer


def _trainable(modules: Sequence[nn.Module]) -> list[Tensor]:
    return [p for module in modules for p in module.parameters() if p.requires_grad]


def _by_decay(modules: Sequence[nn.Module]) -> tuple[list[Tensor], list[Tensor]]:
    """Trainable parameters: matrices, which are decayed, and vectors."""
    trainable = _trainable(modules)
    return [p for p in trainable if p.ndim >= 2], [p for p in trainable if p.ndim < 2]


def stepped_parameters(modules: Sequence[nn.Module], optimizer: torch.optim.Optimizer) -> list[tuple[Tensor, Tensor]]:
    """What an optimizer of `build_optimizer` over these modules steps, each beside the parameter that it stands for.

    The two are one tensor but where an fp32 copy, or a shard, is stepped instead.
    """
    parameters = [p for part in _by_decay(modules) for p in part]
    stepped = [tensor for group in optimizer.param_groups for tensor in group["params"]]
    return list(zip(stepped, parameters, strict=True))


def copied_parameters(modules: Sequence[nn.Module]) -> list[Tensor]:
    """Parameters that have an fp32 copy where `master_weights` asks for them, in the order of `MASTERS`."""
    return [p for p in _trainable(modules) if p.dtype != torch.float32]


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
class _StandIns:
    """What the optimizer steps instead of parameters: fp32 copies of half-precision ones, and shards.

    Attributes:
        parameters: of the model.
        tensors: what is stepped instead of each: fp32, or this process's shard itself.
    """

    parameters: list[Tensor]
    tensors: list[Tensor]

    @classmethod
    def of(cls, trainable: Sequence[Tensor], *, masters: bool) -> _StandIns:
        """For what is sharded, and, with ``masters``, for what is not fp32 already."""
        halves = {id(p) for p in trainable if masters and p.dtype != torch.float32}
        replaced = [p for p in trainable if id(p) in halves or is_sharded(p)]
        return cls(replaced, [local_part(p).float() if id(p) in halves else local_part(p) for p in replaced])

    @property
    def of_parameter(self) -> dict[int, Tensor]:
        """What stands in for a parameter, by its identity."""
        return {id(p): tensor for p, tensor in zip(self.parameters, self.tensors, strict=True)}

    @property
    def copies(self) -> list[tuple[Tensor, Tensor]]:
        """The fp32 copies, each behind the parameter's own memory, which is rounded from it."""
        pairs = ((local_part(p), tensor) for p, tensor in zip(self.parameters, self.tensors, strict=True))
        return [(part, tensor) for part, tensor in pairs if part.dtype != tensor.dtype]

    def attach(self, optimizer: torch.optim.Optimizer) -> None:
        """Make every step of the optimizer begin with the parameters' gradients and end in the parameters.

        Its state holds the copies too, so that a resumed run goes on from them and not from the rounded parameters.
        """
        optimizer.register_step_pre_hook(self._take_gradients)
        optimizer.register_step_post_hook(self._round)
        if self.copies:
            optimizer.register_state_dict_post_hook(self._save)
            optimizer.register_load_state_dict_pre_hook(self._load)

    def _take_gradients(self, *_: object) -> None:
        for parameter, tensor in zip(self.parameters, self.tensors, strict=True):
            tensor.grad = None if parameter.grad is None else local_part(parameter.grad).to(tensor.dtype)
            parameter.grad = None  # one of the two is enough

    @torch.no_grad()
    def _round(self, *_: object) -> None:
        for tensor in self.tensors:
            tensor.grad = None
        for part, copy in self.copies:
            part.copy_(copy)

    def _save(self, _: torch.optim.Optimizer, state: dict[str, Any]) -> None:
        state[MASTERS] = [copy for _, copy in self.copies]

    @torch.no_grad()
    def _load(self, _: torch.optim.Optimizer, state: dict[str, Any]) -> None:
        for (_part, copy), saved in zip(self.copies, state[MASTERS], strict=True):
            copy.copy_(saved)
