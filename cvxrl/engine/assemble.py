"""The tensors that an objective sees, put together from an experience."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from cvxrl.engine.experience import Experience
from cvxrl.engine.passes import Rows, flat
from cvxrl.objectives.batch import DenseAdvantages, TokenBatch
from cvxrl.objectives.statistics import action_log_probs


@dataclass(frozen=True)
class Memory:
    """What the policy and the reference said before the first optimizer step; one tensor per sequence.

    Attributes:
        logits: the policy's, [T, V], or None where the pass itself has them (on-policy) or nobody needs them.
        log_probs: the policy's of the response tokens, [T], or None on-policy.
        reference: the reference's of the response tokens, [T], or None where nobody needs them.
    """

    logits: list[Tensor] | None
    log_probs: list[Tensor] | None
    reference: list[Tensor] | None

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
    lengths = torch.tensor([len(experience.responses[i]) for i in micro])
    groups = [i // experience.group_size for i in micro]
    position = {group: k for k, group in enumerate(dict.fromkeys(groups))}
    batch = TokenBatch(
        logits_NV,
        actions_N,
        sequence_N=torch.arange(len(micro)).repeat_interleave(lengths).to(device),
        group_S=torch.tensor([position[group] for group in groups], device=device),
        reference_logprobs_N=_joined(memory.reference, micro, device),
    )
    credit = experience.credit
    if credit is None:
        return batch
    old_NV = _joined(memory.logits, micro, device)
    old_logprobs_N = _joined(memory.log_probs, micro, device)
    if old_logprobs_N is None:
        old_NV = logits_NV.detach()
        old_logprobs_N = action_log_probs(old_NV, actions_N)
    group_NG = None
    if credit.group_PG is not None:
        group_NG = credit.group_PG[torch.tensor(groups)].repeat_interleave(lengths, dim=0).to(device)
    dense = None
    if credit.dense is not None:
        dense = DenseAdvantages(
            torch.cat([credit.dense[i].ids_NK for i in micro]).to(device),
            torch.cat([credit.dense[i].values_NK for i in micro]).to(device),
        )
    return replace(
        batch,
        advantages_N=_joined(credit.advantages, micro, device),
        old_logits_NV=old_NV,
        old_logprobs_N=old_logprobs_N,
        group_advantages_NG=group_NG,
        dense=dense,
    )


def per_token(values: Sequence[float], experience: Experience, micro: Sequence[int]) -> Tensor:
    """Repeat one value per sequence over its response tokens, [N]."""
    lengths = torch.tensor([len(experience.responses[i]) for i in micro])
    return torch.tensor(values, dtype=torch.float32).repeat_interleave(lengths)


def _joined(parts: Sequence[Tensor] | None, micro: Sequence[int], device: torch.device) -> Tensor | None:
    return None if parts is None else torch.cat([parts[i] for i in micro]).to(device)
