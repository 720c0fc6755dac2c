"""Hidden states at response tokens, the cheapest way that is exact for the model: prompts run once where they can."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from cvxrl.policy.plain import (
    Heads,
    gated,
    heads_of,
    is_checkpointing,
    is_plain,
    layers_of,
    pad_rows,
    rms_norm,
    rotary_tables,
    rotate,
    unpad_rows,
)

if TYPE_CHECKING:
    from transformers import DynamicCache, PreTrainedModel

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
        hidden_NH = hidden_NH + attention(layer.self_attn, _norm(layer.input_layernorm, hidden_NH))
        mlp, normed_NH = layer.mlp, _norm(layer.post_attention_layernorm, hidden_NH)
        hidden_NH = hidden_NH + mlp.down_proj(gated(mlp.gate_proj(normed_NH), mlp.up_proj(normed_NH)))
    return _norm(model.model.norm, hidden_NH.index_select(0, layout.predicting))


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


def predicting_states(model: PreTrainedModel, prompts: Rows, responses: Rows) -> Tensor:
    """Hidden states that predict each response token, the cheapest way that is exact for the model.

    Args:
        model: a causal language model.
        prompts: token ids of S prompts, none empty.
        responses: token ids of S responses, none empty.

    Returns:
        [sum of response lengths, H], sequence after sequence.
    """
    if is_plain(model) and not is_checkpointing(model):
        return packed_rows(model, prompts, responses)
    repeated = 2 * len(set(map(tuple, prompts))) <= len(prompts)
    way = shared_prompts if repeated and can_share_prompts(model) else whole_rows
    return way(model, prompts, responses)


def whole_rows(model: PreTrainedModel, prompts: Rows, responses: Rows) -> Tensor:
    """As `predicting_states`, every row run from its first prompt token."""
    ids, mask, predicting = padded_rows(prompts, responses, next(model.parameters()).device)
    hidden: Tensor = model.base_model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
    return hidden[predicting]


def padded_rows(prompts: Rows, responses: Rows, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Right-padded token ids, their mask, and where a position's output predicts a response token: each [S, T].

    Padding cannot reach a response token through causal attention.
    """
    # The last response token predicts nothing that is asked for.
    ids, mask = _pad_right([[*p, *r[:-1]] for p, r in zip(prompts, responses, strict=True)], device)
    starts = torch.tensor([len(p) - 1 for p in prompts], device=device).unsqueeze(1)
    return ids, mask, (torch.arange(ids.shape[1], device=device) >= starts) & mask.bool()


def can_share_prompts(model: PreTrainedModel) -> bool:
    """Whether `shared_prompts` computes what `whole_rows` does.

    Recurrent and sliding-window layers keep a state of the prompt that cannot simply be copied to its responses, and
    gradient checkpointing runs without a cache.
    """
    if is_checkpointing(model) or not getattr(model.config, "use_cache", True):
        return False
    from transformers.cache_utils import DynamicCache, DynamicLayer

    layers = DynamicCache(config=model.config).layers
    return bool(layers) and all(type(layer) is DynamicLayer for layer in layers)


def shared_prompts(model: PreTrainedModel, prompts: Rows, responses: Rows) -> Tensor:
    """As `whole_rows`, but each different prompt runs once and its keys and values serve all its responses.

    Exact up to rounding, gradients included: the cache stays part of the autograd graph.
    """
    from transformers import DynamicCache

    device = next(model.parameters()).device
    index = {prompt: i for i, prompt in enumerate(dict.fromkeys(map(tuple, prompts)))}
    prompt_of = torch.tensor([index[tuple(p)] for p in prompts], device=device)
    ids, mask = _pad_left(list(index), device)
    cache = DynamicCache(config=model.config)
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    hidden = _run(model, ids, mask, positions, cache)[:, -1].index_select(0, prompt_of).unsqueeze(1)
    lengths = torch.tensor([len(r) for r in responses], device=device).unsqueeze(1)
    if int(lengths.max()) > 1:
        for layer in cache.layers:
            layer.keys, layer.values = (x.index_select(0, prompt_of) for x in (layer.keys, layer.values))
        ids, response_mask = _pad_right([r[:-1] for r in responses], device)
        starts = mask.sum(dim=1)[prompt_of].unsqueeze(1)
        positions = starts + torch.arange(ids.shape[1], device=device)
        later = _run(model, ids, torch.cat([mask[prompt_of], response_mask], dim=1), positions, cache)
        hidden = torch.cat([hidden, later], dim=1)
    return hidden[torch.arange(hidden.shape[1], device=device) < lengths]


def _run(model: PreTrainedModel, ids: Tensor, mask: Tensor, positions: Tensor, cache: DynamicCache) -> Tensor:
    hidden: Tensor = model.base_model(
        input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True
    ).last_hidden_state
    return hidden


def _pad_right(rows: Rows, device: torch.device) -> tuple[Tensor, Tensor]:
    """Token ids and mask [B, T]; the padding id does not matter, its positions are masked."""
    ids = pad_sequence([torch.tensor(row, dtype=torch.long) for row in rows], batch_first=True)
    lengths = torch.tensor([len(row) for row in rows]).unsqueeze(1)
    return ids.to(device), (torch.arange(ids.shape[1]) < lengths).long().to(device)


def _pad_left(rows: Rows, device: torch.device) -> tuple[Tensor, Tensor]:
    ids, mask = _pad_right([row[::-1] for row in rows], device)
    return ids.flip(1), mask.flip(1)
