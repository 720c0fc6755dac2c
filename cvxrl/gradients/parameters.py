"""Sizes of a gradient in parameter space: whole, per layer, per kind of module, and against the weights."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

Vectors = Mapping[str, Tensor]

# First match wins; names as transformers gives them.
_MODULES = (
    ("norm", re.compile(r"(norm|\bln_)")),
    ("q", re.compile(r"\b(q_proj|query)\b")),
    ("k", re.compile(r"\b(k_proj|key)\b")),
    ("v", re.compile(r"\b(v_proj|value)\b")),
    ("qkv", re.compile(r"\b(qkv_proj|c_attn|query_key_value)\b")),
    ("o", re.compile(r"(\bo_proj|attn\.c_proj|attention\.dense)\b")),
    ("gate", re.compile(r"\bgate_proj\b")),
    ("gate-up", re.compile(r"\bgate_up_proj\b")),
    ("up", re.compile(r"\b(up_proj|c_fc)\b")),
    ("down", re.compile(r"(\bdown_proj|mlp\.c_proj)\b")),
    ("embedding", re.compile(r"\b(embed_tokens|wte|wpe|embed_in)\b")),
    ("head", re.compile(r"\b(lm_head|embed_out)\b")),
)
_LAYER = re.compile(r"\b(?:layers|h|blocks)\.(\d+)\.")
# Numbers that are converted to float64 at a time; larger pieces leave the cache and take five times as long.
_PIECE = 2**18


@dataclass(frozen=True)
class Norms:
    """Euclidean norms of one gradient.

    Attributes:
        total: of all parameters together.
        by_layer: of each decoder layer, by its number.
        by_module: of each kind of module over all layers: q, k, v, o, gate, up, down, norm, embedding, head, other.
        attention_mean: mean of the norms of the single q, k and v tensors, the figure of arXiv 2603.00963; NaN if there
            are none.
    """

    total: float
    by_layer: Mapping[int, float]
    by_module: Mapping[str, float]
    attention_mean: float


def module_of(name: str) -> str:
    """Kind of module that a parameter belongs to, from its name."""
    return next((kind for kind, pattern in _MODULES if pattern.search(name)), "other")


def layer_of(name: str) -> int | None:
    """Number of the decoder layer that a parameter belongs to, or None."""
    found = _LAYER.search(name)
    return int(found.group(1)) if found else None


def squared_norm(tensor: Tensor) -> float:
    """Sum of squares in float64, without a float64 copy of the tensor."""
    return sum(float(piece.double().square().sum()) for piece in torch.split(tensor.detach().reshape(-1), _PIECE))


def norms(vectors: Vectors, total: Callable[[Tensor], Tensor] | None = None) -> Norms:
    """Norms of a gradient, an update or the weights, given by parameter name.

    Args:
        vectors: whole tensors, or this process's parts of sharded ones.
        total: of those, the sum over all processes of one number per tensor.
    """
    squares = {name: squared_norm(tensor) for name, tensor in vectors.items()}
    if total is not None:
        parts = torch.tensor(list(squares.values()), dtype=torch.float64)
        squares = dict(zip(squares, total(parts).tolist(), strict=True))
    layers = sorted({layer for name in squares if (layer := layer_of(name)) is not None})
    modules = sorted({module_of(name) for name in squares})
    attention = [math.sqrt(square) for name, square in squares.items() if module_of(name) in ("q", "k", "v")]
    return Norms(
        total=_root(squares.values()),
        by_layer={layer: _root(s for name, s in squares.items() if layer_of(name) == layer) for layer in layers},
        by_module={kind: _root(s for name, s in squares.items() if module_of(name) == kind) for kind in modules},
        attention_mean=sum(attention) / len(attention) if attention else math.nan,
    )


def update_ratio(update: Vectors, weights: Vectors) -> tuple[float, Mapping[str, float]]:
    """Norm of an update over the norm of the weights it changes: of all parameters, and of each kind of module.

    A module whose weights are all zero (a fresh adapter) has the ratio infinity, or NaN if it does not move.
    """
    moved, held = norms(update), norms({name: weights[name] for name in update})
    by_module = {kind: _ratio(moved.by_module[kind], held.by_module[kind]) for kind in moved.by_module}
    return _ratio(moved.total, held.total), by_module


def _root(squares: Iterable[float]) -> float:
    return math.sqrt(math.fsum(squares))


def _ratio(top: float, bottom: float) -> float:
    if bottom == 0.0:
        return math.inf if top else math.nan
    return top / bottom
