"""Which models are plain decoders: those whose forward pass this package can write out itself.

Llama, Qwen2 and Qwen3 are one architecture: RMS norms, rotary positions, grouped-query attention, a gated
feed-forward layer. Linear layers, with or without an adapter, are called as they are. Whatever else differs in any
module (hooks, sliding windows, another activation) makes a model not plain: it runs through its own forward pass.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaForCausalLM, PreTrainedModel, Qwen2ForCausalLM, Qwen3ForCausalLM

_FAMILIES = (LlamaForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM)
# Those whose frequencies do not depend on how long the longest sequence of a batch is.
_ROPE_TYPES = ("default", "linear", "llama3")


@dataclass(frozen=True)
class Heads:
    """Shape of an attention layer: query heads, key/value heads, and the width of each."""

    queries: int
    keys: int
    width: int

    @property
    def sharing(self) -> int:
        """Query heads per key/value head."""
        return self.queries // self.keys


def is_plain(model: PreTrainedModel) -> bool:
    """Whether `model` computes exactly what the layers read from it say."""
    if type(model) not in _FAMILIES or model.config._attn_implementation != "sdpa":
        return False
    config = model.config
    rope = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    if rope not in _ROPE_TYPES or config.hidden_act != "silu" or getattr(config, "attention_dropout", 0.0):
        return False
    if any(getattr(layer.self_attn, "sliding_window", None) is not None for layer in model.model.layers):
        return False
    return all(map(_is_untouched, model.modules()))


def _is_untouched(module: nn.Module) -> bool:
    """Whether calling the module runs its class's forward pass and nothing else."""
    hooked = module._forward_hooks or module._forward_pre_hooks or module._backward_hooks
    home = type(module).__module__
    known = home.startswith(("torch.nn.modules.", "transformers.models.", "transformers.activations", "peft.tuners."))
    return known and not hooked and not module._backward_pre_hooks and "forward" not in vars(module)


def is_checkpointing(model: PreTrainedModel) -> bool:
    """Whether some layer recomputes its activations in the backward pass."""
    return any(getattr(module, "gradient_checkpointing", False) for module in model.modules())


def heads_of(model: PreTrainedModel) -> Heads:
    """Shape of the model's attention layers."""
    config = model.config
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return Heads(config.num_attention_heads, config.num_key_value_heads, int(width))


def layers_of(model: PreTrainedModel) -> Iterator[Any]:
    """The decoder layers, first to last."""
    return iter(model.model.layers)


def rotary_tables(model: PreTrainedModel, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines and sines of ``positions`` [N], [N, 1, head width / 2] each."""
    like = torch.empty(0, dtype=model.model.embed_tokens.weight.dtype, device=positions.device)
    cos, sin = model.model.rotary_emb(like, positions.unsqueeze(0))
    half = cos.shape[-1] // 2
    # Both halves of a head turn by the same angles.
    return cos[0, :, None, :half], sin[0, :, None, :half]
