"""The norm of a gradient over all parameters and processes, and the factor that clips it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from cvxrl.engine.world import SingleProcess, World
from cvxrl.gradients.parameters import is_sharded, local_part, norms

# Numbers whose squares float32 adds up without a wrong digit.
_BLOCK = 2**16


def global_norm(gradients: Iterable[Tensor], world: World | None = None) -> Tensor:
    """Euclidean norm of all of them together, float32 or wider: the norms of blocks, and the norm of those.

    A whole tensor's squares, added up in its own type, lose digits with its size: 2e-3 of the norm is missing at 28
    million float32 numbers, and bfloat16 rounds every tensor's norm to three digits.

    Args:
        gradients: whole ones, the same in every process, and sharded ones.
        world: the processes that hold the parts of the sharded ones.

    Returns:
        The same number in every process, NaN or infinite if any part is.
    """
    given = list(gradients)
    parts = [local_part(gradient) for gradient in given if is_sharded(gradient)]
    whole = _norm([gradient.detach() for gradient in given if not is_sharded(gradient)])
    if not parts:
        return whole
    # A maximum over processes may lose a NaN; a sum never does.
    square = (world or SingleProcess()).sum(_norm(parts).double().square().cpu())
    return (square + whole.double().square().cpu()).sqrt().to(whole.dtype).to(parts[0].device)


def clip(parameters: Sequence[Tensor], limit: float, norm: Tensor) -> None:
    """Multiply the gradients by limit / norm if their common norm is above the limit."""
    held = []
    for parameter in parameters:
        assert parameter.grad is not None
        part = local_part(parameter)
        part.grad = local_part(parameter.grad)  # the same memory
        held.append(part)
    nn.utils.clip_grads_with_norm_(held, limit, norm)


def gradient_metrics(model: nn.Module, world: World) -> dict[str, float]:
    """Norms of the accumulated gradient before clipping: by kind of module, and the mean over q, k and v."""
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    total = world.sum if any(map(is_sharded, gradients.values())) else None
    found = norms({name: local_part(gradient) for name, gradient in gradients.items()}, total)
    return {"grad/qkv": found.attention_mean, **{f"grad/module/{kind}": n for kind, n in found.by_module.items()}}


def _norm(tensors: Sequence[Tensor]) -> Tensor:
    sizes = [size for tensor in tensors for size in _block_norms(tensor.reshape(-1))]
    return torch.linalg.vector_norm(torch.stack(sizes)) if sizes else torch.zeros(())


def _block_norms(flat: Tensor) -> list[Tensor]:
    exact = torch.promote_types(flat.dtype, torch.float32)
    if flat.device.type != "cpu":  # adds up in a tree, not in a few running totals
        return [torch.linalg.vector_norm(flat, dtype=exact)]
    # Squares of half-precision numbers have few digits, so that adding them up in float32 rounds to one side.
    inside = flat.dtype if flat.dtype == exact else torch.float64
    return [torch.linalg.vector_norm(block.to(inside)).to(exact) for block in torch.split(flat, _BLOCK)]
