"""The tensors that an objective sees, put together from sequences and a forward pass over them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from cvxrl.engine.readers import flat
from cvxrl.engine.sequences import Sequences
from cvxrl.objectives.batch import DenseAdvantages, TokenBatch
from cvxrl.objectives.linear import Frozen, HiddenBatch, LinearHead
from cvxrl.objectives.statistics import action_log_probs


def token_batch(logits_NV: Tensor, sequences: Sequences) -> TokenBatch:
    """Everything an objective may need for the response tokens.

    Args:
        logits_NV: the current policy's, with gradient, sequence after sequence.
        sequences: what is known of them.
    """
    device = logits_NV.device
    fields = _tokens(sequences, device)
    if sequences.advantages is not None:
        old_NV = _joined(sequences.old_logits, device)
        old_NH = _joined(sequences.old_hidden, device)
        if old_NH is not None and sequences.old_head is not None:
            old_NV = sequences.old_head.logits(old_NH)
        elif sequences.old_logprobs is None:
            old_NV = logits_NV.detach()
        fields["old_logits_NV"] = old_NV
        if sequences.old_logprobs is None and old_NV is not None:
            fields["old_logprobs_N"] = action_log_probs(old_NV, fields["actions_N"])
    return TokenBatch(logits_NV=logits_NV, **fields)


def hidden_batch(hidden_NH: Tensor, head: LinearHead, sequences: Sequences) -> HiddenBatch:
    """As `token_batch`, from hidden states and the output layer.

    Args:
        hidden_NH: the current policy's, with gradient, sequence after sequence.
        head: its output layer.
        sequences: what is known of them.
    """
    device = hidden_NH.device
    old_NH = _joined(sequences.old_hidden, device)
    frozen = None if old_NH is None or sequences.old_head is None else Frozen(old_NH, sequences.old_head)
    on_policy = sequences.advantages is not None and frozen is None and sequences.old_logprobs is None
    fields = _tokens(sequences, device)
    return HiddenBatch(hidden_NH=hidden_NH, head=head, frozen=frozen, on_policy=on_policy, **fields)


def _tokens(sequences: Sequences, device: torch.device) -> dict[str, Any]:
    """What both kinds of batch hold, where there is such a thing; groups are numbered from 0."""
    lengths = torch.tensor(sequences.lengths)
    number = {group: k for k, group in enumerate(dict.fromkeys(sequences.groups))}
    fields: dict[str, Any] = {
        "actions_N": flat(sequences.responses, device),
        "sequence_N": torch.arange(len(sequences)).repeat_interleave(lengths).to(device),
        "group_S": torch.tensor([number[group] for group in sequences.groups], device=device),
        "reference_logprobs_N": _joined(sequences.reference_logprobs, device),
    }
    if sequences.advantages is None:
        return fields
    fields["advantages_N"] = _joined(sequences.advantages, device)
    fields["old_logprobs_N"] = _joined(sequences.old_logprobs, device)
    if sequences.group_advantages is not None:
        group_SG = torch.stack(sequences.group_advantages)
        fields["group_advantages_NG"] = group_SG.repeat_interleave(lengths, dim=0).to(device)
    if sequences.dense is not None:
        fields["dense"] = DenseAdvantages(
            torch.cat([dense.ids_NK for dense in sequences.dense]).to(device),
            torch.cat([dense.values_NK for dense in sequences.dense]).to(device),
        )
    return fields


def _joined(parts: Sequence[Tensor] | None, device: torch.device) -> Tensor | None:
    return None if parts is None else torch.cat(list(parts)).to(device)
