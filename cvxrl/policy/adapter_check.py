"""Whether a model uses the adapters that it was given: some read a layer's matrix without calling the layer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from cvxrl.errors import Problem, UserError
from cvxrl.policy.adapter import adapted_layers
from cvxrl.policy.probe import undisturbed
from cvxrl.policy.rows import own_outputs

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PreTrainedModel

_TOKENS = 12


def require_used(model: PreTrainedModel, ordinary: Sequence[int]) -> None:
    """Refuse adapters beside matrices that the forward pass reads directly: training would pass them by.

    A layer that was not called on a few tokens may be an expert that none of them went to; its matrix then does not
    matter either, which one pass with other values in all such matrices tells.

    Args:
        model: with adapters; it is left as it was.
        ordinary: ids of tokens.

    Raises:
        UserError: with the ends of the layers' names.
    """
    ids = torch.tensor([list(ordinary[:_TOKENS])], device=next(model.parameters()).device)
    layers, called = adapted_layers(model), set()
    hooks = [layer.register_forward_hook(lambda *_, name=name: called.add(name)) for name, layer in layers.items()]
    with undisturbed(model):
        try:
            before: Tensor = own_outputs(model, ids).logits
        finally:
            for hook in hooks:
                hook.remove()
        passed_by = [name for name in layers if name not in called]
        ends = sorted({name.rpartition(".")[2] for name in passed_by})
        read = [end for end in ends if _matters(model, ids, before, _ending(layers, passed_by, end))]
    if read:
        raise UserError(
            Problem(
                f"this {type(model).__name__} reads the matrix of {', '.join(f'`{end}`' for end in read)} without "
                "calling the layer, so an adapter there would be saved but never used",
                "model.lora.targets",
                remedy="name other layers",
            )
        )


def _ending(layers: dict[str, Any], names: Sequence[str], end: str) -> list[Tensor]:
    bases = [layers[name].get_base_layer() for name in names if name.rpartition(".")[2] == end]
    return [base.weight for base in bases if isinstance(getattr(base, "weight", None), Tensor)]


def _matters(model: PreTrainedModel, ids: Tensor, before: Tensor, weights: Sequence[Tensor]) -> bool:
    """Whether other values in these matrices give other logits."""
    kept = [weight.detach().clone() for weight in weights]
    for weight in weights:
        weight.add_(1.0)
    try:
        after: Tensor = own_outputs(model, ids).logits
    finally:
        for weight, value in zip(weights, kept, strict=True):
            weight.copy_(value)
    return not torch.equal(after, before)
