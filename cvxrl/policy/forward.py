"""Hidden states at response tokens, computed once per prompt where several responses share it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from cvxrl.policy.packed import packed_rows
from cvxrl.policy.plain import is_checkpointing, is_plain

Rows = Sequence[Sequence[int]]


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
    layers = DynamicCache(config=model.config).layers
    return bool(layers) and all(type(layer) is DynamicLayer for layer in layers)


def shared_prompts(model: PreTrainedModel, prompts: Rows, responses: Rows) -> Tensor:
    """As `whole_rows`, but each different prompt runs once and its keys and values serve all its responses.

    Exact up to rounding, gradients included: the cache stays part of the autograd graph.
    """
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
