"""The output layer of a transformers model, checked against the model itself, or the reason why it cannot be used."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from cvxrl.errors import Problem, UserError
from cvxrl.objectives.linear.head import LinearHead, LowRank

# What the configurations of transformers call the bound of the logits, and factors on them.
_SOFTCAPS = ("final_logit_softcapping", "logits_soft_cap")
# Some families multiply by their factor, some divide by it under the same name: the model itself tells which.
_SCALES = ("logit_scale", "logits_scaling", "lm_head_multiplier")
# How large the probe makes the largest logit, in multiples of the soft cap (or of 30): large enough that a wrong
# cap or factor cannot hide in rounding.
_REACH = 1.5
_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3}
_HALF_TOLERANCE = 3e-2
_PROBE_IDS = (0, 1, 2)


def head_of(model: Any, temperature: float = 1.0) -> LinearHead:
    """Output layer of a causal language model; its tensors are the model's own parameters.

    Runs the model on three tokens and compares its logits with the head's, so that a family which does something else
    to its logits is refused instead of trained wrongly. Leaves the model as it was.

    Args:
        model: a transformers causal language model, or a peft model around one.
        temperature: sampling temperature that the policy is defined at.

    Raises:
        UserError: the output layer is not one that `LinearHead` describes; says why.
    """
    layer = model.get_output_embeddings()
    if layer is None:
        raise _refusal("it has no output embeddings")
    plain = replace(_linear(_saved_copy(layer)), softcap=_softcap(model))
    layer_input, logits, body_hidden = _probe(model, layer, plain)
    if not _close(layer_input, body_hidden):
        raise _refusal("its output layer does not read the last hidden states directly")
    if logits.shape[-1] != plain.vocab:
        raise _refusal(f"it returns {logits.shape[-1]} logits where its output matrix has {plain.vocab} rows")
    for scale in _scales(model):
        head = replace(plain, scale=scale)
        if _close(head.logits(_amplified(layer_input, head)).to(logits.dtype), logits):
            return replace(head, temperature=temperature)
    raise _refusal("its logits are not softcap(scale * (h W^T + b)) with any soft cap or scale that its config names")


def _refusal(reason: str) -> UserError:
    return UserError(
        Problem(
            f"losses in chunks cannot be computed for this model: {reason}",
            "model",
            remedy="train it from full logits",
        )
    )


def _saved_copy(layer: nn.Module) -> nn.Module:
    """What peft's `modules_to_save` trains instead of the layer, or the layer."""
    copies: Any = getattr(layer, "modules_to_save", None)
    if not isinstance(copies, nn.ModuleDict):
        return layer
    active: Any = getattr(layer, "active_adapters", [])
    names = [name for name in active if name in copies]
    if getattr(layer, "disable_adapters", False) or not names:
        original: nn.Module = layer.original_module  # type: ignore[assignment]
        return original
    return copies[names[0]]


def _linear(layer: Any) -> LinearHead:
    """Matrix, bias and adapters of a linear layer, without scale and temperature."""
    base = layer.get_base_layer() if hasattr(layer, "get_base_layer") else layer
    weight = getattr(base, "weight", None)
    if not isinstance(base, nn.Linear) or weight is None or not weight.is_floating_point():
        raise _refusal(f"its output layer is a `{type(base).__name__}`, not a linear layer of floating-point numbers")
    if weight.shape != (base.out_features, base.in_features):
        raise _refusal(f"its output matrix is stored packed, with shape {tuple(weight.shape)}")
    low_rank = () if base is layer else tuple(_adapters(layer))
    return LinearHead(weight, base.bias, low_rank=low_rank)


def _adapters(layer: Any) -> Iterator[LowRank]:
    """Active, unmerged LoRA adapters of a peft layer."""
    if not hasattr(layer, "lora_A"):
        raise _refusal(f"its output layer has an adapter `{type(layer).__name__}`, which is not LoRA")
    if layer.merged or layer.disable_adapters:
        return
    for name in layer.active_adapters:
        if name not in layer.lora_A:
            continue
        if name in getattr(layer, "lora_variant", {}):
            raise _refusal(f"adapter `{name}` on its output layer is a variant of LoRA, e.g. DoRA")
        down, up = layer.lora_A[name], layer.lora_B[name]
        if up.bias is not None:
            raise _refusal(f"adapter `{name}` on its output layer has a bias")
        yield LowRank(down.weight, up.weight, float(layer.scaling[name]), _dropout(layer.lora_dropout[name]))


def _dropout(module: nn.Module) -> Callable[[Tensor], Tensor] | None:
    return None if isinstance(module, nn.Identity) else module


def _text_config(model: Any) -> Any:
    config = model.config
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def _softcap(model: Any) -> float | None:
    values = [getattr(_text_config(model), key, None) for key in _SOFTCAPS]
    return next((float(value) for value in values if value), None)


def _scales(model: Any) -> list[float]:
    """Factors on the logits that the config can mean, most usual first."""
    values = [getattr(_text_config(model), key, None) for key in _SCALES]
    factors = [float(value) for value in values if value]
    return [f for value in factors for f in (value, 1.0 / value)] or [1.0]


def _amplified(hidden: Tensor, head: LinearHead) -> Tensor:
    """Hidden states times the number that makes the largest logit large, before the soft cap."""
    bare = replace(head, softcap=None, scale=1.0, bias_V=None)
    reach = _REACH * (head.softcap or 30.0)
    return hidden * (reach / bare.logits(hidden).abs().max().clamp(min=1e-6)).to(hidden.dtype)


@torch.no_grad()
def _probe(model: Any, layer: nn.Module, plain: LinearHead) -> tuple[Tensor, Tensor, Tensor]:
    """Input of the output layer [3, H], the model's logits from that input amplified, and the body's hidden states."""
    ids = torch.tensor([_PROBE_IDS], device=plain.weight_VH.device)
    seen: list[Tensor] = []

    def amplify(_: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        seen.append(arguments[0].detach())
        return (_amplified(arguments[0][0], plain).unsqueeze(0), *arguments[1:])

    with _evaluating(model):
        hook = layer.register_forward_pre_hook(amplify)
        try:
            logits: Tensor = model(input_ids=ids, use_cache=False).logits
        finally:
            hook.remove()
        inner = model.get_base_model() if hasattr(model, "get_base_model") else model
        hidden: Tensor | None = getattr(inner.base_model(input_ids=ids, use_cache=False), "last_hidden_state", None)
    if hidden is None:
        raise _refusal("its body does not give its last hidden states")
    if len(seen) != 1 or seen[0].ndim != 3:
        raise _refusal("it does not apply its output layer exactly once per pass")
    return seen[0][0], logits[0], hidden[0]


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, and afterwards each module's own mode again."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def _close(mine: Tensor, theirs: Tensor) -> bool:
    if mine.shape != theirs.shape:
        return False
    limit = _TOLERANCE.get(theirs.dtype, _HALF_TOLERANCE) * float(theirs.abs().max())
    return float((mine.detach().double() - theirs.double()).abs().max()) <= limit
