"""Decoding a plain decoder with its forward pass written out: few operations per token, and a cache written in place.

B rows, L new tokens per row, T places in the cache, K key/value heads, D head width
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cvxrl.policy.model import Policy
from cvxrl.policy.plain import Heads, heads_of, layers_of, rotary_tables, scaled, turn
from cvxrl.rollout.prompts import padded_prompts, row_prompts

Map = Callable[[Tensor], Tensor]
Product = Callable[[Tensor, Tensor, Tensor | None], Tensor]
Store = Callable[["Layer", Tensor, Tensor], tuple[Tensor, Tensor]]
# Places by which a full cache grows: every growth copies it, every place takes memory.
_BLOCK = 32
# Size of a matrix from which on its layout matters, and rows from which on a product in either layout rounds alike.
_LARGE, _FEW = 1 << 19, 16


class PlainDecoder:
    """Serves the models of `cvxrl.policy.plain`; equal to their own forward pass up to rounding."""

    def __init__(self, policy: Policy) -> None:
        """Put the matrices that read the same input side by side; copies, that live as long as the decoder."""
        self.policy = policy
        self.heads = heads_of(policy.model)
        self.layers = [Layer(layer, self.heads) for layer in layers_of(policy.model)]
        self.head = _alone(policy.model.get_output_embeddings())
        self.cos_T, self.sin_T = rotary_tables(policy.model, torch.arange(0, device=policy.device))

    def start(self, prompts: Sequence[list[int]], counts: Sequence[int]) -> Tensor:
        """Prefill each prompt once and copy its keys and values to its rows."""
        ids, mask = padded_prompts(prompts, self.policy.pad_id, self.policy.device)
        width = ids.shape[1]
        self.room = self.filled = 0
        hidden_bias = torch.zeros(mask.shape, device=mask.device).masked_fill_(mask == 0, -torch.inf)
        # Prompts of one length need no mask at all, which the attention kernel likes.
        self.bias_BT = hidden_bias if not bool(mask.all()) else None
        self._grow(len(prompts), width)
        later = torch.full((width, width), -torch.inf, device=mask.device).triu_(1)
        bias = later if self.bias_BT is None else self.bias_BT.unsqueeze(1).unsqueeze(1) + later
        # A padded query sees nothing of its own; whatever it computes is never looked at, but must be a number.
        bias = bias.masked_fill((bias == -torch.inf).all(-1, keepdim=True), 0.0)
        logits = self._logits(ids, (mask.cumsum(dim=1) - 1).clamp(min=0), bias)
        self.filled = width
        self.lengths_B = mask.sum(dim=1)
        rows_B = row_prompts(counts, mask.device)
        self.keep(rows_B)
        return logits[rows_B]

    def step(self, tokens_B: Tensor) -> Tensor:
        """One token per row."""
        if self.filled == self.room:
            self._grow(len(tokens_B), self.room + _BLOCK)
        bias = None
        if self.bias_BT is not None:
            bias = self.bias_BT[:, None, None, : self.filled + 1]
        logits = self._logits(tokens_B.unsqueeze(1), self.lengths_B.unsqueeze(1), bias)
        self.filled += 1
        self.lengths_B = self.lengths_B + 1
        return logits

    def keep(self, rows_K: Tensor) -> None:
        """Copy these rows of the cache; a row may be asked for more than once."""
        self.lengths_B = self.lengths_B[rows_K]
        if self.bias_BT is not None:
            self.bias_BT = self.bias_BT[rows_K]
        for layer in self.layers:
            layer.keys = layer.keys[:, :, : self.filled].index_select(0, rows_K)
            layer.values = layer.values[:, :, : self.filled].index_select(0, rows_K)
        self.room = self.filled

    def _grow(self, rows: int, room: int) -> None:
        """Room for so many tokens per row, what is filled kept."""
        if room > self.cos_T.shape[0]:
            self.cos_T, self.sin_T = rotary_tables(self.policy.model, torch.arange(room, device=self.policy.device))
        like = self.policy.model.model.embed_tokens.weight
        for layer in self.layers:
            for name in ("keys", "values"):
                wider = like.new_empty(rows, self.heads.keys, room, self.heads.width)
                if self.filled:
                    wider[:, :, : self.filled] = getattr(layer, name)[:, :, : self.filled]
                setattr(layer, name, wider)
        if self.bias_BT is not None and self.bias_BT.shape[1] < room:
            self.bias_BT = F.pad(self.bias_BT, (0, room - self.bias_BT.shape[1]))
        self.room = room

    def _logits(self, ids_BL: Tensor, positions_BL: Tensor, bias: Tensor | None) -> Tensor:
        """Run new tokens through all layers; logits of the last one of every row, [B, V], maybe laid out by columns."""
        model, places = self.policy.model, positions_BL.flatten()
        cos, sin = self.cos_T[places], self.sin_T[places]
        hidden: Tensor = model.model.embed_tokens(ids_BL.flatten())
        for layer in self.layers:
            hidden += layer.attention(hidden, ids_BL.shape, self._store, (cos, sin), bias)
            hidden += layer.feed_forward(hidden)
        last = hidden.view(*ids_BL.shape, -1)[:, -1]
        return self.head(_norm(last, model.model.norm))

    def _store(self, layer: Layer, keys_BKLD: Tensor, values_BKLD: Tensor) -> tuple[Tensor, Tensor]:
        """Append keys and values of new tokens to a layer's; all that there are then."""
        end = self.filled + keys_BKLD.shape[2]
        layer.keys[:, :, self.filled : end], layer.values[:, :, self.filled : end] = keys_BKLD, values_BKLD
        return layer.keys[:, :, :end], layer.values[:, :, :end]


class Layer:
    """One decoder layer and its keys and values, [B, K, T, D] each."""

    keys: Tensor
    values: Tensor

    def __init__(self, layer: Any, heads: Heads) -> None:
        """Read the layer's matrices."""
        attention, mlp = layer.self_attn, layer.mlp
        self.heads = heads
        self.norms = layer.input_layernorm, layer.post_attention_layernorm
        self.qkv = _side_by_side([attention.q_proj, attention.k_proj, attention.v_proj])
        self.gate_up = _side_by_side([mlp.gate_proj, mlp.up_proj], _by_columns)
        self.out, self.down = _alone(attention.o_proj), _alone(mlp.down_proj)
        self.head_norm: Tensor | None = None
        if hasattr(attention, "q_norm"):
            weights = attention.q_norm.weight.expand(heads.queries, -1), attention.k_norm.weight.expand(heads.keys, -1)
            self.head_norm, self.eps = torch.cat(weights), attention.q_norm.variance_epsilon

    def attention(
        self, x: Tensor, shape: torch.Size, store: Store, angles: tuple[Tensor, Tensor], bias: Tensor | None
    ) -> Tensor:
        """Store keys and values of the new tokens [B, L], and attend to all that are stored."""
        heads, (rows, length) = self.heads, shape
        turned = heads.queries + heads.keys
        qkv = self.qkv(_norm(x, self.norms[0])).view(-1, turned + heads.keys, heads.width)
        qk = qkv[:, :turned]
        if self.head_norm is not None:
            qk = scaled(qk, self.head_norm, self.eps)
        qk = turn(qk, *angles).to(x.dtype).view(rows, length, turned, heads.width)
        new_values = qkv[:, turned:].view(rows, length, heads.keys, heads.width)
        keys, values = store(self, qk[:, :, heads.queries :].transpose(1, 2), new_values.transpose(1, 2))
        # The query heads of a key head line up as more queries of it.
        q = qk[:, :, : heads.queries].view(rows, length, heads.keys, heads.sharing, heads.width)
        q = q.permute(0, 2, 3, 1, 4).flatten(2, 3)
        if bias is not None and length > 1:
            bias = bias.repeat(*[1] * (bias.ndim - 2), heads.sharing, 1)
        mixed = F.scaled_dot_product_attention(q, keys, values, None if bias is None else bias.to(q.dtype))
        mixed = mixed.reshape(rows, heads.keys, heads.sharing, length, heads.width)
        mixed = mixed.permute(0, 3, 1, 2, 4).reshape(rows * length, -1)
        return self.out(mixed)

    def feed_forward(self, x: Tensor) -> Tensor:
        """The gated feed-forward layer."""
        gate, up = self.gate_up(_norm(x, self.norms[1])).chunk(2, dim=-1)
        return self.down(F.silu(gate, inplace=True).mul_(up))


def _norm(x: Tensor, module: Any) -> Tensor:
    return scaled(x, module.weight, module.variance_epsilon)


def _side_by_side(linears: Sequence[Any], product: Product = F.linear) -> Map:
    """Several linear maps of one input as one; those with an adapter stay apart."""
    if any(type(linear) is not nn.Linear for linear in linears):
        return lambda x: torch.cat([linear(x) for linear in linears], dim=-1)
    weight = torch.cat([linear.weight for linear in linears])
    bias = None if linears[0].bias is None else torch.cat([linear.bias for linear in linears])
    return lambda x: product(x, weight, bias)


def _alone(linear: Any) -> Map:
    """One linear map, its output by columns where that is faster."""
    if type(linear) is not nn.Linear:
        return lambda x: linear(x)
    return lambda x: _by_columns(x, linear.weight, linear.bias)


def _by_columns(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The product x W', laid out by columns where that is faster: with MKL, a large matrix and not too few rows.

    As (W x')' the matrix is read as it is; as x W' it is copied into another order first, which costs more the fewer
    rows use it. The two give the same bits.
    """
    if bias is None and weight.numel() >= _LARGE and len(x) >= _FEW and _is_for_mkl(x):
        return torch.mm(weight, x.t()).t()
    return F.linear(x, weight, bias)


def _is_for_mkl(x: Tensor) -> bool:
    available: bool = torch.backends.mkl.is_available()  # type: ignore[no-untyped-call]
    return available and x.dtype == torch.float32 and x.device.type == "cpu"
