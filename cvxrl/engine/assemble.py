"""The tensors that an objective sees, put together from an experience."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cvxrl.engine.experience import Experience
from cvxrl.engine.micro_batches import Rows
from cvxrl.engine.readers import flat
from cvxrl.objectives.batch import DenseAdvantages, TokenBatch
from cvxrl.objectives.linear import Frozen, HiddenBatch, LinearHead
from cvxrl.objectives.statistics import action_log_probs


@dataclass(frozen=True)
class Memory:
    """What the policy and the reference said before the first optimizer step; one tensor per sequence.

    Attributes:
        logits: the policy's, [T, V], or None where the pass itself has them (on-policy) or nobody needs them.
        log_probs: the policy's of the response tokens, [T], or None on-policy.
        reference: the reference's of the response tokens, [T], or None where nobody needs them.
        hidden: the policy's last hidden states, [T, H], instead of its logits.
        head: its output layer then, as it was.
    """

    logits: list[Tensor] | None
    log_probs: list[Tensor] | None
    reference: list[Tensor] | None
    hidden: list[Tensor] | None = None
    head: LinearHead | None = None

    @classmethod
    @torch.no_grad()
    def of_logits(cls, logits: list[Tensor], responses: Rows, reference: list[Tensor] | None) -> Memory:
        """Everything that follows from the policy's logits."""
        log_probs = [action_log_probs(part, flat([r], part.device)) for part, r in zip(logits, responses, strict=True)]
        return cls(logits, log_probs, reference)


def token_batch(logits_NV: Tensor, experience: Experience, micro: Sequence[int], memory: Memory) -> TokenBatch:
    """Everything an objective may need for the response tokens of ``micro``.

    Args:
        logits_NV: the current policy's, with gradient, sequence after sequence in the order of ``micro``.
        experience: the step's data.
        micro: indices of the sequences.
        memory: what was said before the update.
    """
    device = logits_NV.device
    actions_N = flat([experience.responses[i] for i in micro], device)
    fields = _fields(experience, micro, memory, device)
    if experience.credit is not None:
        old_NV = _joined(memory.logits, micro, device)
        old_NH = _joined(memory.hidden, micro, device)
        if old_NH is not None and memory.head is not None:
            old_NV = memory.head.logits(old_NH)
        elif memory.log_probs is None:
            old_NV = logits_NV.detach()
        fields["old_logits_NV"] = old_NV
        if memory.log_probs is None and old_NV is not None:
            fields["old_logprobs_N"] = action_log_probs(old_NV, actions_N)
    return TokenBatch(logits_NV, actions_N=actions_N, **fields)


def hidden_batch(
    hidden_NH: Tensor, head: LinearHead, experience: Experience, micro: Sequence[int], memory: Memory
) -> HiddenBatch:
    """As `token_batch`, from hidden states and the output layer.

    Args:
        hidden_NH: the current policy's, with gradient, sequence after sequence in the order of ``micro``.
        head: its output layer.
        experience: the step's data.
        micro: indices of the sequences.
        memory: what was said before the update.
    """
    device = hidden_NH.device
    actions_N = flat([experience.responses[i] for i in micro], device)
    old_NH = _joined(memory.hidden, micro, device)
    frozen = None if old_NH is None or memory.head is None else Frozen(old_NH, memory.head)
    on_policy = experience.credit is not None and frozen is None and memory.log_probs is None
    fields = _fields(experience, micro, memory, device)
    return HiddenBatch(hidden_NH, head, actions_N=actions_N, frozen=frozen, on_policy=on_policy, **fields)


def _fields(experience: Experience, micro: Sequence[int], memory: Memory, device: torch.device) -> dict[str, Any]:
    """What both kinds of batch hold, where there is such a thing."""
    lengths = torch.tensor([len(experience.responses[i]) for i in micro])
    groups = [i // experience.group_size for i in micro]
    position = {group: k for k, group in enumerate(dict.fromkeys(groups))}
    fields: dict[str, Any] = {
        "sequence_N": torch.arange(len(micro)).repeat_interleave(lengths).to(device),
        "group_S": torch.tensor([position[group] for group in groups], device=device),
        "reference_logprobs_N": _joined(memory.reference, micro, device),
    }
    credit = experience.credit
    if credit is None:
        return fields
    fields["advantages_N"] = _joined(credit.advantages, micro, device)
    fields["old_logprobs_N"] = _joined(memory.log_probs, micro, device)
    if credit.group_PG is not None:
        group_NG = credit.group_PG[torch.tensor(groups)].repeat_interleave(lengths, dim=0)
        fields["group_advantages_NG"] = group_NG.to(device)
    if credit.dense is not None:
        fields["dense"] = DenseAdvantages(
            torch.cat([credit.dense[i].ids_NK for i in micro]).to(device),
            torch.cat([credit.dense[i].values_NK for i in micro]).to(device),
        )
    return fields


def per_token(values: Sequence[float], experience: Experience, micro: Sequence[int]) -> Tensor:
    """Repeat one value per sequence over its response tokens, [N]."""
    lengths = torch.tensor([len(experience.responses[i]) for i in micro])
    return torch.tensor(values, dtype=torch.float32).repeat_interleave(lengths)


def _joined(parts: Sequence[Tensor] | None, micro: Sequence[int], device: torch.device) -> Tensor | None:
    return None if parts is None else torch.cat([parts[i] for i in micro]).to(device)
