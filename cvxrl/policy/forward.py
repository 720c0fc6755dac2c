"""The training pass of plain decoders written out: packed tokens without padding, shared prompts once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from cvxrl.policy.plain import (
    PACKED,
    Heads,
    gated,
    heads_of,
    layers_of,
    pad_rows,
    rms_norm,
    rotary_tables,
    rotate,
    unpad_rows,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Rows = Sequence[Sequence[int]]


@dataclass(frozen=True)
class Block:
    """Rows of different length as a padded tensor.

    Attributes:
        index_M: M = rows x T; the token at every place, and any token at padding.
        place_N: the place of every token.
        present: [rows, T], False at padding.
    """

    index_M: Tensor
    place_N: Tensor
    present: Tensor

    @classmethod
    def of(cls, lengths: Sequence[int], device: torch.device) -> Block:
        """Rows of these lengths, their tokens one row after another, padded on the right."""
        size = torch.tensor(lengths)
        starts = size.cumsum(0) - size
        width = torch.arange(max(lengths, default=0))
        present = width < size.unsqueeze(1)
        index = (starts.unsqueeze(1) + width).where(present, torch.zeros(()).long())
        place = present.flatten().nonzero().squeeze(1)
        return cls(index.flatten().to(device), place.to(device), present.to(device))

    def pad(self, x_ND: Tensor) -> Tensor:
        """[N, heads, width] -> [rows, T, heads, width]."""
        padded = pad_rows(x_ND.flatten(1), self.index_M, self.place_N)
        return padded.view(*self.present.shape, *x_ND.shape[1:])

    def unpad(self, x: Tensor) -> Tensor:
        """[rows, T, D] -> [N, D]."""
        return unpad_rows(x.flatten(0, 1), self.place_N)


@dataclass(frozen=True)
class Layout:
    """Where the tokens of a batch are.

    Attributes:
        ids_N: token ids: of the prompts, then of the responses without their last ones, which predict nothing.
        positions_N: their positions in their sequences.
        prompts: the prompts as a padded tensor.
        responses: the responses as a padded tensor, or None where each has one token.
        prompt_of: the prompt of each response, [S].
        predicting: places in N whose output predicts a response token, sequence after sequence.
    """

    ids_N: Tensor
    positions_N: Tensor
    prompts: Block
    responses: Block | None
    prompt_of: Tensor
    predicting: Tensor

    @classmethod
    def of(cls, prompts: Rows, responses: Rows, device: torch.device) -> Layout:
        """Lay out S prompts, of which some may be the same, with their responses."""
        index = {prompt: i for i, prompt in enumerate(dict.fromkeys(map(tuple, prompts)))}
        prompt_of = [index[tuple(p)] for p in prompts]
        shared, bodies = list(index), [r[:-1] for r in responses]
        ids = [i for row in (*shared, *bodies) for i in row]
        positions = [i for p in shared for i in range(len(p))]
        positions += [i for p, r in zip(prompts, bodies, strict=True) for i in range(len(p), len(p) + len(r))]
        ends = torch.tensor([len(p) for p in shared]).cumsum(0) - 1
        predicting, start = [], int(ends[-1]) + 1
        for k, body in zip(prompt_of, bodies, strict=True):
            predicting += [int(ends[k]), *range(start, start + len(body))]
            start += len(body)
        return cls(
            torch.tensor(ids, device=device),
            torch.tensor(positions, device=device),
            Block.of([len(p) for p in shared], device),
            Block.of([len(b) for b in bodies], device) if any(bodies) else None,
            torch.tensor(prompt_of, device=device),
            torch.tensor(predicting, device=device),
        )


def packed_rows(model: PreTrainedModel, prompts: Rows, responses: Rows) -> Tensor:
    """Hidden states that predict each response token, sequence after sequence: [sum of response lengths, H].

    Args:
        model: a plain decoder (`is_plain`).
        prompts: token ids of S prompts, none empty.
        responses: token ids of S responses, none empty.
    """
    layout = Layout.of(prompts, responses, model.device)
    cos, sin = rotary_tables(model, layout.positions_N)
    attention = _Attention(heads_of(model), layout, cos, sin)
    hidden_NH: Tensor = model.model.embed_tokens(layout.ids_N)
    for layer in layers_of(model):
        gathering = vars(layer).get(PACKED)  # of a sharded policy: gathers the layer's parameters first
        hidden_NH = gathering(hidden_NH, attention) if gathering else packed_layer(layer, hidden_NH, attention)
    return _norm(model.model.norm, hidden_NH.index_select(0, layout.predicting))


def packed_layer(layer: Any, hidden_NH: Tensor, attention: _Attention) -> Tensor:
    """Hidden states after a decoder layer."""
    hidden_NH = hidden_NH + attention(layer.self_attn, _norm(layer.input_layernorm, hidden_NH))
    mlp, normed_NH = layer.mlp, _norm(layer.post_attention_layernorm, hidden_NH)
    out_NH: Tensor = hidden_NH + mlp.down_proj(gated(mlp.gate_proj(normed_NH), mlp.up_proj(normed_NH)))
    return out_NH


def _norm(module: Any, x: Tensor) -> Tensor:
    return rms_norm(x, module.weight, module.variance_epsilon)


class _Attention:
    """Attention of packed tokens: prompts to themselves, responses to their prompt and themselves."""

    def __init__(self, heads: Heads, layout: Layout, cos: Tensor, sin: Tensor) -> None:
        """Work out once what every layer needs."""
        self.heads, self.layout, self.cos, self.sin = heads, layout, cos, sin
        self.counts = [block.place_N.numel() for block in (layout.prompts, layout.responses) if block is not None]
        self.prompt_mask = _mask(layout.prompts.present, 0, heads)
        self.response_mask = None
        if layout.responses is not None:
            seen = layout.prompts.present.index_select(0, layout.prompt_of)
            self.response_mask = _mask(torch.cat([seen, layout.responses.present], dim=1), seen.shape[1], heads)

    def __call__(self, module: Any, x_NH: Tensor) -> Tensor:
        q, k, v = (
            linear(x_NH).unflatten(-1, (-1, self.heads.width))
            for linear in (module.q_proj, module.k_proj, module.v_proj)
        )
        if hasattr(module, "q_norm"):
            q, k = _norm(module.q_norm, q), _norm(module.k_norm, k)
        q, k = rotate(q, self.cos, self.sin), rotate(k, self.cos, self.sin)
        parts = list(zip(*(x.split(self.counts) for x in (q, k, v)), strict=True))
        layout = self.layout
        query, keys, values = map(layout.prompts.pad, parts[0])
        out = [layout.prompts.unpad(self._attend(query, keys, values, self.prompt_mask))]
        if layout.responses is not None and self.response_mask is not None:
            query, *own = map(layout.responses.pad, parts[1])
            keys, values = (
                torch.cat([x.index_select(0, layout.prompt_of), y], dim=1)
                for x, y in zip((keys, values), own, strict=True)
            )
            out.append(layout.responses.unpad(self._attend(query, keys, values, self.response_mask)))
        mixed: Tensor = module.o_proj(torch.cat(out))
        return mixed

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        """[rows, T, heads, width] -> [rows, T, D]; the query heads of a key head line up as more queries of it."""
        rows, length, sharing = q.shape[0], q.shape[1], self.heads.sharing
        q = q.view(rows, length, -1, sharing, self.heads.width).permute(0, 2, 1, 3, 4).flatten(2, 3)
        out = F.scaled_dot_product_attention(q, k.transpose(1, 2), v.transpose(1, 2), mask.to(q.dtype))
        out = out.reshape(rows, self.heads.keys, length, sharing, self.heads.width)
        return out.permute(0, 2, 1, 3, 4).flatten(2)


def _mask(present: Tensor, before: int, heads: Heads) -> Tensor:
    """What the queries behind the first ``before`` keys must not see, as numbers to add: [rows, 1, queries, keys]."""
    width = torch.arange(present.shape[1], device=present.device)
    visible = present.unsqueeze(1) & (width <= width[before:].unsqueeze(1))
    # A padded query sees at least the first key, or its softmax would be 0 / 0.
    visible[..., 0] |= True
    hidden = torch.zeros(visible.shape, device=present.device).masked_fill_(~visible, -torch.inf)
    return hidden.repeat_interleave(heads.sharing, dim=1).unsqueeze(1)
