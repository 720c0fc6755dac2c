"""Plain decoders, whose forward pass this package can write out itself: what they are made of, their steps.

RMS norms, rotary positions, grouped-query attention, a gated feed-forward layer: Llama, Qwen2, Qwen3 and their kin.
Linear layers, with or without an adapter, are called as they are. A model that has these modules and no others may be
plain; whether it computes what they suggest (no factor, no other activation, no window that the run reaches) is not
read off its configuration but compared with its own forward pass (`policy.ways`).

The element-wise steps have backward passes that keep and touch as little as possible. Where second derivatives are
wanted (curvature), those are written with operations that have them.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Modules of a plain decoder's layer, and of its attention: those it must have, and those it may have.
_LAYER = {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}
_ATTENTION, _HEAD_NORMS = {"q_proj", "k_proj", "v_proj", "o_proj"}, {"q_norm", "k_norm"}
_FEED_FORWARD = {"gate_proj", "up_proj", "down_proj"}
# Where a layer of a sharded policy (`policy.sharding`) has its part of the written-out pass.
PACKED = "packed_layer"
# Positions whose angles are looked at: as few as a prompt, as many as no sequence of a run.
_NEAR, _FAR = 4, 1 << 20


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
    """Whether `model` is made of the modules of a plain decoder, and nothing hooks into them."""
    body = getattr(model, "model", None)
    layers = getattr(body, "layers", None)
    if not isinstance(layers, nn.ModuleList) or not layers or not _is_rms_norm(getattr(body, "norm", None)):
        return False
    return is_untouched(model) and all(map(_is_plain_layer, layers)) and _has_fixed_angles(model.model)


def is_untouched(model: PreTrainedModel) -> bool:
    """Whether its modules run their classes' forward passes and nothing else, attention in PyTorch's own kernels."""
    return model.config._attn_implementation == "sdpa" and all(map(_is_untouched, model.modules()))


def _is_plain_layer(layer: Any) -> bool:
    """Whether a layer has a plain decoder's modules and no others, no window and no dropout in attention."""
    if _parts(layer) != _LAYER or _parts(layer.mlp) != _FEED_FORWARD:
        return False
    attention = layer.self_attn
    norms = _parts(attention) - _ATTENTION
    if _parts(attention) != _ATTENTION | norms or norms not in (set(), _HEAD_NORMS):
        return False
    inside = [getattr(attention, name) for name in norms]
    if not all(map(_is_rms_norm, [layer.input_layernorm, layer.post_attention_layernorm, *inside])):
        return False
    # Dropout works in training alone, where nothing is compared; a window, only in sequences longer than it.
    return not getattr(attention, "attention_dropout", 0.0) and getattr(attention, "sliding_window", None) is None


def _parts(module: nn.Module) -> set[str]:
    """Names of its children that hold parameters."""
    return {name for name, child in module.named_children() if any(True for _ in child.parameters())}


def _is_rms_norm(module: Any) -> bool:
    return hasattr(module, "variance_epsilon") and isinstance(getattr(module, "weight", None), Tensor)


@torch.no_grad()
def _has_fixed_angles(body: Any) -> bool:
    """Whether a position turns heads by the same angles however far the furthest position of a batch is."""
    if not isinstance(getattr(body, "rotary_emb", None), nn.Module):
        return False
    rotary = copy.deepcopy(body.rotary_emb)  # some keep what they were last asked for
    device = body.embed_tokens.weight.device
    like, near = torch.empty(0, device=device), torch.arange(_NEAR, device=device)
    alone = rotary(like, near.unsqueeze(0))
    among = rotary(like, torch.cat([near, near.new_tensor([_FAR])]).unsqueeze(0))
    return all(torch.equal(a[:, :_NEAR], b[:, :_NEAR]) for a, b in zip(among, alone, strict=True))


def _is_untouched(module: nn.Module) -> bool:
    """Whether calling the module runs its class's forward pass and nothing else; what shards it does not count."""
    if PACKED in vars(module):
        return True
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


class _Norm(torch.autograd.Function):
    """RMS norm over the last dimension; keeps its input and one number per row."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        scale = _inverse_size(x, eps)
        ctx.save_for_backward(x, weight, scale)
        ctx.eps = eps
        out: Tensor = (x * scale).to(x.dtype).mul_(weight)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, scale = ctx.saved_tensors
        if torch.is_grad_enabled():
            plain = weight * x * (x.square().mean(-1, keepdim=True) + ctx.eps).rsqrt()
            return (*_differentiable(plain, (x, weight), grad), None)
        width = x.shape[-1]
        rows, grads = (y.reshape(-1, width).to(scale.dtype) for y in (x, grad))
        scale, weights = scale.reshape(-1, 1), weight.to(scale.dtype)
        product = rows * grads
        to_weight = torch.mv(product.t(), scale.squeeze(1))
        pull = torch.mv(product, weights).unsqueeze_(1).mul_(scale.pow(3)).mul_(-1.0 / width)
        to_x = torch.mul(grads, weights, out=product).mul_(scale).addcmul_(rows, pull)
        return to_x.to(x.dtype).view_as(x), to_weight.to(weight.dtype), None


class _Rotate(torch.autograd.Function):
    """Turn the two halves of every head by an angle; the backward pass turns back and keeps no input."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return turn(x, cos, sin)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return rotate(grad, cos, -sin), None, None


class _Gate(torch.autograd.Function):
    """silu(gate) * up; keeps its two inputs."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return F.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        gate, up = ctx.saved_tensors
        if torch.is_grad_enabled():
            return _differentiable(F.silu(gate) * up, (gate, up), grad)
        share = torch.sigmoid(gate)
        active = gate * share
        to_up = grad * active
        # silu' = share + active (1 - share)
        slope = active.addcmul_(active, share, value=-1.0).add_(share)
        return slope.mul_(grad).mul_(up), to_up


class _Take(torch.autograd.Function):
    """Rows ``index`` of a matrix; ``back`` says which of them each row takes its gradient from.

    For index maps that are one to one but for padding, whose gradient is zero: copying rows back is several times
    faster than adding them up.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor, back: Tensor) -> Tensor:
        ctx.save_for_backward(back)
        return x.index_select(0, index)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (back,) = ctx.saved_tensors
        return grad.index_select(0, back), None, None


class _Drop(torch.autograd.Function):
    """Rows ``index`` of a matrix, each at most once; the rows not taken get no gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(index)
        ctx.rows = x.shape[0]
        return x.index_select(0, index)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (index,) = ctx.saved_tensors
        return grad.new_zeros(ctx.rows, *grad.shape[1:]).index_copy_(0, index, grad), None


def _differentiable(out: Tensor, inputs: tuple[Tensor, ...], grad: Tensor) -> tuple[Tensor | None, ...]:
    """Gradients of ``out`` that can be differentiated again; None for an input that wants none."""
    wanted = [x for x in inputs if x.requires_grad]
    found = iter(torch.autograd.grad(out, wanted, grad, create_graph=True))
    return tuple(next(found) if x.requires_grad else None for x in inputs)


def _inverse_size(x: Tensor, eps: float) -> Tensor:
    """1 / sqrt(mean(x^2) + eps) of every row, in fp32 or the type of ``x`` if that is wider."""
    inside = torch.promote_types(x.dtype, torch.float32)
    size: Tensor = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=inside)
    return size.square_().mul_(1.0 / x.shape[-1]).add_(eps).rsqrt_()


def scaled(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """As `rms_norm`, without gradient: fewer operations than PyTorch's own takes on a CPU."""
    out: Tensor = (x * _inverse_size(x, eps)).to(x.dtype).mul_(weight)
    return out


def turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions: [N, heads, width] by the angles of [N, 1, width / 2]."""
    half = x.shape[-1] // 2
    first, second = x[..., :half], x[..., half:]
    out = torch.empty_like(x, dtype=torch.promote_types(x.dtype, cos.dtype), memory_format=torch.contiguous_format)
    torch.mul(first, cos, out=out[..., :half]).addcmul_(second, sin, value=-1.0)
    torch.mul(second, cos, out=out[..., half:]).addcmul_(first, sin)
    return out


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """RMS norm over the last dimension; in fp32 inside, or the input's type if that is wider."""
    out: Tensor = _Norm.apply(x, weight, eps)  # type: ignore[no-untyped-call]
    return out


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """As `turn`, with gradient."""
    out: Tensor = _Rotate.apply(x, cos, sin)  # type: ignore[no-untyped-call]
    return out


def gated(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up."""
    out: Tensor = _Gate.apply(gate, up)  # type: ignore[no-untyped-call]
    return out


def pad_rows(x: Tensor, index: Tensor, back: Tensor) -> Tensor:
    """Rows of a matrix laid out for a padded tensor; padding may hold any row, if its gradient is zero."""
    out: Tensor = _Take.apply(x, index, back)  # type: ignore[no-untyped-call]
    return out


def unpad_rows(x: Tensor, index: Tensor) -> Tensor:
    """The rows that are not padding."""
    out: Tensor = _Drop.apply(x, index)  # type: ignore[no-untyped-call]
    return out
