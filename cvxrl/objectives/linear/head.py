"""The output layer of a language model: from hidden states to the logits that define the policy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import reduce
from operator import add

import torch
from torch import Tensor


@dataclass(frozen=True)
class LowRank:
    """A low-rank addition to an output matrix (LoRA, arXiv 2106.09685): scaling * up @ down.

    Attributes:
        down_RH: first factor.
        up_VR: second factor.
        scaling: alpha / rank, or whatever the adapter says.
        dropout: what the adapter does to the hidden states before `down`, if anything.
    """

    down_RH: Tensor
    up_VR: Tensor
    scaling: float = 1.0
    dropout: Callable[[Tensor], Tensor] | None = None


@dataclass(frozen=True)
class LinearHead:
    """Output matrix and what comes after it: z = softcap * tanh(scale * (h W^T + b) / softcap) / temperature.

    Without ``softcap`` it is z = scale * (h W^T + b) / temperature. The tensors are the model's own, so gradients reach
    its parameters; with tied embeddings ``weight_VH`` is the embedding matrix.

    Attributes:
        weight_VH: output matrix W.
        bias_V: bias b.
        scale: factor on the logits (Cohere, Granite, Falcon-H1, ...).
        softcap: bound of the logits (Gemma 2, ...).
        temperature: sampling temperature.
        low_rank: adapters on the matrix.
    """

    weight_VH: Tensor
    bias_V: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None
    temperature: float = 1.0
    low_rank: tuple[LowRank, ...] = ()

    def __post_init__(self) -> None:
        """Refuse shapes and constants that would give a wrong number."""
        if self.weight_VH.ndim != 2:
            raise ValueError(f"weight_VH must have two dimensions, got shape {tuple(self.weight_VH.shape)}")
        vocab, width = self.weight_VH.shape
        if self.bias_V is not None and tuple(self.bias_V.shape) != (vocab,):
            raise ValueError(f"bias_V must have shape {(vocab,)}, got {tuple(self.bias_V.shape)}")
        for part in self.low_rank:
            rank = part.down_RH.shape[0]
            shapes = tuple(part.down_RH.shape), tuple(part.up_VR.shape)
            if shapes != ((rank, width), (vocab, rank)):
                raise ValueError(f"low-rank factors must have shapes (R, {width}) and ({vocab}, R), got {shapes}")
        if self.temperature <= 0 or (self.softcap is not None and self.softcap <= 0):
            raise ValueError("temperature and softcap must be positive")

    @property
    def vocab(self) -> int:
        """Number of tokens V."""
        return int(self.weight_VH.shape[0])

    @property
    def slope(self) -> float:
        """Derivative of a logit in the matrix product, where the soft cap does not bend it."""
        return self.scale / self.temperature

    def lefts(self, hidden_NH: Tensor) -> list[Tensor]:
        """Left factors [N, K] of the matrix products whose sum is h W^T: hidden states, then one per adapter."""
        return [hidden_NH, *(_through(part, hidden_NH) for part in self.low_rank)]

    def rights(self) -> list[Tensor]:
        """Right factors [V, K] of the same products."""
        return [self.weight_VH, *(part.up_VR for part in self.low_rank)]

    def logits(self, hidden_NH: Tensor) -> Tensor:
        """The plain path: all logits at once, [N, V], in fp32 or better. For tests and small vocabularies."""
        wide = torch.promote_types(self.weight_VH.dtype, torch.float32)
        pairs = zip(self.lefts(hidden_NH), self.rights(), strict=True)
        total_NV = reduce(add, (left.to(wide) @ right.to(wide).T for left, right in pairs))
        if self.bias_V is not None:
            total_NV = total_NV + self.bias_V
        return self.finish(total_NV)

    def finish(self, products: Tensor) -> Tensor:
        """From h W^T + b to logits, elementwise: scale, soft cap, temperature."""
        products = self.scale * products
        if self.softcap is not None:
            products = self.softcap * torch.tanh(products / self.softcap)
        return products / self.temperature

    def frozen(self) -> LinearHead:
        """A copy that later training steps do not move: what trains is cloned, the rest is shared."""
        low_rank = tuple(LowRank(_keep(p.down_RH), _keep(p.up_VR), p.scaling) for p in self.low_rank)
        bias_V = None if self.bias_V is None else _keep(self.bias_V)
        return replace(self, weight_VH=_keep(self.weight_VH), bias_V=bias_V, low_rank=low_rank)


def _through(part: LowRank, hidden_NH: Tensor) -> Tensor:
    dropped_NH = hidden_NH if part.dropout is None else part.dropout(hidden_NH)
    return part.scaling * (dropped_NH.to(part.down_RH.dtype) @ part.down_RH.T)


def _keep(tensor: Tensor) -> Tensor:
    return tensor.detach().clone() if tensor.requires_grad else tensor
