"""The model's own forward pass over whole sequences: padded on the right, or one length at a time without padding."""

from __future__ import annotations

import inspect
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from cvxrl.policy.plain import is_checkpointing

if TYPE_CHECKING:
    from transformers import DynamicCache, PreTrainedModel

Rows = Sequence[Sequence[int]]


@dataclass(frozen=True)
class _Batch:
    """Sequences of one pass.

    Attributes:
        members: their indices.
        ids: token ids without each response's last one, which predicts nothing that is asked for, [S, T].
        mask: 0 at padding, or None where there is none.
        predicting: where a position's output predicts a response token, [S, T].
    """

    members: list[int]
    ids: Tensor
    mask: Tensor | None
    predicting: Tensor


def whole_rows(model: PreTrainedModel, prompts: Rows, responses: Rows, *, padded: bool = True) -> Tensor:
    """Hidden states that predict each response token, every row run from its first prompt token.

    Args:
        model: a causal language model.
        prompts: token ids of S prompts, none empty.
        responses: token ids of S responses, none empty.
        padded: all in one pass, padded on the right, which cannot reach a response token through causal attention;
            else a pass for every length, without padding, for models that padding reaches all the same.

    Returns:
        [sum of response lengths, H], sequence after sequence.
    """
    return _over(model, prompts, responses, padded, lambda ids, mask: own_states(model, ids, mask))


def logit_rows(model: PreTrainedModel, prompts: Rows, responses: Rows, *, padded: bool = True) -> tuple[Tensor, Tensor]:
    """As `whole_rows`, and the logits there, [sum of response lengths, V], whatever the model does to make them.

    A model that does not give its hidden states has them as [sum of response lengths, 0]. Asking for them may leave
    hooks in a model, which is then not plain any more.
    """

    def run(ids: Tensor, mask: Tensor | None) -> Tensor:
        outputs = own_outputs(model, ids, mask, output_hidden_states=True)
        states = getattr(outputs, "hidden_states", None)
        hidden = states[-1] if states else outputs.logits[..., :0]
        if hidden.shape[:2] != outputs.logits.shape[:2]:
            hidden = outputs.logits[..., :0]
        widths.append(hidden.shape[-1])
        return torch.cat([hidden.to(outputs.logits.dtype), outputs.logits], dim=-1)

    widths: list[int] = []
    both = _over(model, prompts, responses, padded, run)
    return both[:, : widths[0]], both[:, widths[0] :]


def _over(
    model: PreTrainedModel,
    prompts: Rows,
    responses: Rows,
    padded: bool,
    run: Callable[[Tensor, Tensor | None], Tensor],
) -> Tensor:
    """What ``run`` says of ids and mask at the positions that predict response tokens, sequence after sequence."""
    device = next(model.parameters()).device
    if padded:
        ids, mask, predicting = padded_rows(prompts, responses, device)
        return run(ids, mask)[predicting]
    found: dict[int, Tensor] = {}
    for batch in _by_length(prompts, responses, device):
        said = run(batch.ids, None)[batch.predicting]
        lengths = [len(responses[i]) for i in batch.members]
        found |= zip(batch.members, torch.split(said, lengths), strict=True)
    return torch.cat([found[i] for i in range(len(prompts))])


def _by_length(prompts: Rows, responses: Rows, device: torch.device) -> Iterator[_Batch]:
    members = defaultdict(list)
    for i, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        members[len(prompt) + len(response)].append(i)
    for same in members.values():
        ids, _, predicting = padded_rows([prompts[i] for i in same], [responses[i] for i in same], device)
        yield _Batch(same, ids, None, predicting)


def padded_rows(prompts: Rows, responses: Rows, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Right-padded token ids, their mask, and where a position's output predicts a response token: each [S, T]."""
    # The last response token predicts nothing that is asked for.
    ids, mask = _pad_right([[*p, *r[:-1]] for p, r in zip(prompts, responses, strict=True)], device)
    starts = torch.tensor([len(p) - 1 for p in prompts], device=device).unsqueeze(1)
    return ids, mask, (torch.arange(ids.shape[1], device=device) >= starts) & mask.bool()


def own_states(model: PreTrainedModel, ids: Tensor, mask: Tensor | None = None) -> Tensor:
    """Last hidden states of the model's own body, [rows, T, H]."""
    hidden: Tensor = _call(model.base_model, ids, mask).last_hidden_state
    return hidden


def own_outputs(model: PreTrainedModel, ids: Tensor, mask: Tensor | None = None, **more: Any) -> Any:
    """What the model's own forward pass returns, without a cache."""
    return _call(model, ids, mask, **more)


def _call(module: Any, ids: Tensor, mask: Tensor | None, **more: Any) -> Any:
    arguments = {"attention_mask": mask, "use_cache": False, "return_dict": True, **more}
    known = inspect.signature(module.forward).parameters
    anything = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in known.values())
    kept = {name: x for name, x in arguments.items() if x is not None and (anything or name in known)}
    return module(input_ids=ids, **kept)


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
