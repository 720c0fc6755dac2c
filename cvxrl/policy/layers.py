"""Which modules of any decoder are its layers: what can be gathered, computed and let go one after another."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import torch
from torch import nn

from cvxrl.policy.probe import undisturbed
from cvxrl.policy.rows import own_states

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def decoder_layers(model: PreTrainedModel) -> list[nn.Module]:
    """The largest list of modules of a model's body, first to last, if a forward pass calls each of them once.

    Empty where there is no such list, or where parameters of a layer belong to something else too.
    """
    lists = [module for module in model.base_model.modules() if isinstance(module, nn.ModuleList)]
    layers = list(max(lists, key=_size, default=()))
    inside = Counter(id(p) for layer in layers for p in set(layer.parameters()))
    everywhere = Counter(id(p) for _, p in model.named_parameters(remove_duplicate=False))
    within = Counter(id(p) for layer in layers for _, p in layer.named_parameters(remove_duplicate=False))
    alone = all(count == 1 and everywhere[key] == within[key] for key, count in inside.items())
    return layers if layers and alone and _each_once(model, layers) else []


def _size(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@torch.no_grad()
def _each_once(model: PreTrainedModel, layers: list[nn.Module]) -> bool:
    """Whether a forward pass over a few tokens calls every layer once."""
    calls: Counter[nn.Module] = Counter()
    hooks = [layer.register_forward_hook(lambda layer, *_: calls.update([layer])) for layer in layers]
    try:
        with undisturbed(model):
            own_states(model, torch.zeros((1, 2), dtype=torch.long, device=next(model.parameters()).device))
    finally:
        for hook in hooks:
            hook.remove()
    return all(calls[layer] == 1 for layer in layers)
