"""What a step learns from: sequences and all that is known of each, cut anywhere, and as an objective's tensors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from cvxrl.engine.micro_batches import Limit, Rows, by_length, whole_groups
from cvxrl.objectives.batch import DenseAdvantages, TokenBatch
from cvxrl.objectives.linear import Frozen, HiddenBatch, LinearHead
from cvxrl.objectives.statistics import action_log_probs
from cvxrl.recipe.base import Coupling


@dataclass(frozen=True)
class Sequences:
    """S sequences; every list has one entry per sequence, those of a prompt adjacent.

    It grows as a step goes on: what was sampled, then the credit for it, then what the policies said of it before the
    first optimizer step. Two samples of the prompts 4 and 5 have ``groups`` [4, 4, 5, 5]; ``select([2, 3])`` keeps the
    last two of every list, and with them their group 5.

    Attributes:
        prompts, responses: token ids.
        groups: number of the sequence's prompt within the step, over all processes.
        positions: where the sequence stands in the step, whatever it has been selected from since; likewise.
        ids: the task's example that it belongs to; empty texts if unknown.
        sampled_logprobs: what the sampler said of each response token, [T]; None where responses were not sampled.
        versions: which policy sampled it (`Episode.version`); None likewise.
        advantages: of every response token, [T]; None where nothing is rewarded.
        group_advantages: of all samples of its prompt, [G], where a response has one advantage.
        dense: of candidate tokens, from a verifier.
        values, returns: what the critic said, and what it is to learn, [T].
        old_logits: of the policy before the first optimizer step, [T, V], where an objective needs them.
        old_logprobs: the same of the response tokens, [T].
        old_hidden: its last hidden states instead of its logits, [T, H], with
        old_head: its output layer as it was.
        reference_logprobs: of the policy that training started from, [T], where something needs them.
        weights: weight of each token of the sequence in the loss of an optimizer step (`Loss.weigh`).
        corrections: factor on that of every token, [T], for a sampler that is not the policy (`engine.mismatch`).
    """

    prompts: list[list[int]]
    responses: list[list[int]]
    groups: list[int]
    positions: list[int]
    ids: list[str]
    sampled_logprobs: list[Tensor] | None = None
    versions: list[int] | None = None
    advantages: list[Tensor] | None = None
    group_advantages: list[Tensor] | None = None
    dense: list[DenseAdvantages] | None = None
    values: list[Tensor] | None = None
    returns: list[Tensor] | None = None
    old_logits: list[Tensor] | None = None
    old_logprobs: list[Tensor] | None = None
    old_hidden: list[Tensor] | None = None
    old_head: LinearHead | None = None
    reference_logprobs: list[Tensor] | None = None
    weights: list[float] | None = None
    corrections: list[Tensor] | None = None

    @classmethod
    def of(
        cls,
        prompts: Sequence[list[int]],
        responses: Sequence[list[int]],
        group_size: int,
        ids: Sequence[str] | None = None,
        first_group: int = 0,
    ) -> Sequences:
        """Sequences of whole groups, in order; ``ids`` has one entry per sequence, earlier groups are elsewhere."""
        named = list(ids) if ids else [""] * len(responses)
        first = first_group * group_size
        positions = list(range(first, first + len(responses)))
        return cls(list(prompts), list(responses), [i // group_size for i in positions], positions, named)

    @classmethod
    def joined(cls, parts: Sequence[Sequences]) -> Sequences:
        """Those of several processes, one after another; what they have in common is that of the first."""
        names = [f.name for f in fields(cls) if isinstance(getattr(parts[0], f.name), list)]
        lists: dict[str, Any] = {name: [one for part in parts for one in getattr(part, name)] for name in names}
        return replace(parts[0], **lists)

    def __len__(self) -> int:
        """Number of sequences."""
        return len(self.responses)

    @property
    def lengths(self) -> list[int]:
        """Response tokens of each sequence."""
        return [len(response) for response in self.responses]

    @property
    def moved(self) -> bool:
        """Whether the policy may have moved since it sampled, so that what it said then has been kept."""
        return any(kept is not None for kept in (self.old_logits, self.old_logprobs, self.old_hidden))

    def select(self, indices: Sequence[int]) -> Sequences:
        """These sequences alone, in this order."""
        chosen: dict[str, Any] = {}
        for name in (f.name for f in fields(self)):
            part = getattr(self, name)
            if isinstance(part, list):
                chosen[name] = [part[i] for i in indices]
        return replace(self, **chosen)

    def units(self, coupling: Coupling) -> list[list[int]]:
        """Indices of the sequences that an optimizer step must take together."""
        if coupling != "group":
            return [[i] for i in range(len(self))]
        return [list(members) for _, members in groupby(range(len(self)), key=self.groups.__getitem__)]

    def split(self, limit: Limit, coupling: Coupling = "token") -> Iterator[Sequences]:
        """Parts for one forward pass each, similar lengths together; whole groups where tokens are coupled across them.

        Raises:
            UserError: what must stay together is above the token budget.
        """
        if coupling == "group":
            parts = whole_groups(self.prompts, self.responses, self.groups, limit)
        else:
            parts = by_length(self.prompts, self.responses, limit)
        return map(self.select, parts)

    def per_token(self, device: torch.device) -> Tensor:
        """Weight of every response token, sequence after sequence, [N]."""
        assert self.weights is not None
        weight_N = torch.tensor(self.weights, dtype=torch.float32).repeat_interleave(torch.tensor(self.lengths))
        return (weight_N if self.corrections is None else weight_N * torch.cat(self.corrections)).to(device)


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


def flat(rows: Rows, device: torch.device) -> Tensor:
    """Token ids of all rows, one after another."""
    return torch.tensor([token for row in rows for token in row], dtype=torch.long, device=device)


def _joined(parts: Sequence[Tensor] | None, device: torch.device) -> Tensor | None:
    return None if parts is None else torch.cat(list(parts)).to(device)
