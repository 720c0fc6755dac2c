"""What a step learns from: sequences and all that is known of each, as one object that can be cut anywhere."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from cvxrl.engine.micro_batches import Limit, by_length, whole_groups
from cvxrl.objectives.batch import DenseAdvantages
from cvxrl.objectives.linear import LinearHead
from cvxrl.recipe.base import Coupling


@dataclass(frozen=True)
class Sequences:
    """S sequences; every list has one entry per sequence, those of a prompt adjacent.

    It grows as a step goes on: what was sampled, then the credit for it, then what the policies said of it before the
    first optimizer step. Two samples of the prompts 4 and 5 have ``groups`` [4, 4, 5, 5]; ``select([2, 3])`` keeps the
    last two of every list, and with them their group 5.

    Attributes:
        prompts, responses: token ids.
        groups: number of the sequence's prompt within the step.
        positions: where the sequence stands in the step, whatever it has been selected from since.
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

    @classmethod
    def of(
        cls,
        prompts: Sequence[list[int]],
        responses: Sequence[list[int]],
        group_size: int,
        ids: Sequence[str] | None = None,
    ) -> Sequences:
        """Sequences of whole groups, in order; ``ids`` has one entry per sequence."""
        count = len(responses)
        named = list(ids) if ids else [""] * count
        groups = [i // group_size for i in range(count)]
        return cls(list(prompts), list(responses), groups, list(range(count)), named)

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
        return torch.tensor(self.weights, dtype=torch.float32).repeat_interleave(torch.tensor(self.lengths)).to(device)
