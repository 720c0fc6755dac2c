"""Replicas: every process holds the whole policy, and what each has learned is added up before a step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from cvxrl.engine.world import World
from cvxrl.errors import Problem, UserError

# Bytes that are summed at a time: enough to keep a network busy, little beside the policy.
_BUCKET = 64 * 2**20


@torch.no_grad()
def sum_gradients(world: World, parameters: Sequence[Tensor]) -> None:
    """Make every parameter's gradient the sum over all processes, the same bits in each.

    A parameter without a gradient here counts as zero, if another process has one for it.
    """
    has = world.sum(torch.tensor([parameter.grad is not None for parameter in parameters], dtype=torch.int32))
    moved = [parameter for parameter, count in zip(parameters, has.tolist(), strict=True) if count]
    for parameter in moved:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    for bucket in _buckets([parameter.grad for parameter in moved if parameter.grad is not None]):
        total = world.sum(torch.cat([gradient.reshape(-1) for gradient in bucket]))
        for gradient, part in zip(bucket, torch.split(total, [g.numel() for g in bucket]), strict=True):
            gradient.copy_(part.view_as(gradient))


@torch.no_grad()
def require_same(world: World, parameters: Sequence[Tensor], when: str) -> None:
    """Compare the weights of all processes by the sums of their bits; sharded ones have no second copy.

    Raises:
        UserError: they differ, so that the processes train different policies.
    """
    sums = [_bits(p) for p in parameters if not hasattr(p, "to_local")]
    told = world.gather(torch.stack(sums).tolist() if sums else [])
    others = [rank for rank, mine in enumerate(told) if mine != told[0]]
    if others:
        what = f"{when}, the weights of rank {', '.join(map(str, others))} are not those of rank 0"
        remedy = (
            "give every machine the same files, or, later on, suspect it; --resume goes on from the last checkpoint"
        )
        raise UserError(Problem(what, "model", remedy=remedy))


def _bits(parameter: Tensor) -> Tensor:
    """Sum of a tensor's numbers, read as integers."""
    kind = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[parameter.element_size()]
    return parameter.detach().contiguous().view(kind).sum(dtype=torch.int64).cpu()


def _buckets(gradients: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Gradients of one type, as many in a row as fit."""
    bucket: list[Tensor] = []
    size = 0
    for gradient in gradients:
        if bucket and (size + gradient.nbytes > _BUCKET or gradient.dtype != bucket[0].dtype):
            yield bucket
            bucket, size = [], 0
        bucket.append(gradient)
        size += gradient.nbytes
    if bucket:
        yield bucket
