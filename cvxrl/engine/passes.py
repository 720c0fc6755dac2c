"""Passes over an experience: how it is cut into micro-batches, and what a policy says of its tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cvxrl.objectives.statistics import action_log_probs
from cvxrl.policy.model import Policy, ResponseOutputs
from cvxrl.recipe.schema import Recipe

Rows = Sequence[Sequence[int]]


@dataclass(frozen=True)
class Reader:
    """A policy as the update sees it.

    Attributes:
        policy: trained policy, reference or verifier.
        temperature: its logits are divided by it.
        bf16: whether the forward pass runs under autocast.
        micro_batch: sequences per pass of `log_probs` and `logits`, or None for all at once.
    """

    policy: Policy
    temperature: float
    bf16: bool
    micro_batch: int | None

    @classmethod
    def of(cls, policy: Policy, recipe: Recipe) -> Reader:
        """A reader with the recipe's precision and, where tokens are sampled, its temperature."""
        temperature = recipe.rollout.temperature if recipe.data == "rollouts" else 1.0
        return cls(policy, temperature, recipe.train.precision == "bf16", recipe.train.micro_batch)

    def outputs(self, prompts: Rows, responses: Rows) -> ResponseOutputs:
        """Hidden states and fp32 logits over temperature at the response tokens, with gradient."""
        with torch.autocast(self.policy.device.type, dtype=torch.bfloat16, enabled=self.bf16):
            raw = self.policy.response_outputs(prompts, responses)
        return ResponseOutputs(raw.hidden_NH, raw.logits_NV.float() / self.temperature)

    @torch.no_grad()
    def logits(self, prompts: Rows, responses: Rows) -> list[Tensor]:
        """Logits of every sequence, [T, V] each."""
        parts: dict[int, Tensor] = {}
        for micro in by_length(prompts, responses, range(len(responses)), self.micro_batch):
            logits_NV = self.outputs([prompts[i] for i in micro], [responses[i] for i in micro]).logits_NV
            parts |= zip(micro, torch.split(logits_NV, [len(responses[i]) for i in micro]), strict=True)
        return [parts[i] for i in range(len(responses))]

    @torch.no_grad()
    def log_probs(self, prompts: Rows, responses: Rows) -> list[Tensor]:
        """Log-probability of each response token, [T] per sequence; the vocabulary is never held for all at once."""
        parts: dict[int, Tensor] = {}
        for micro in by_length(prompts, responses, range(len(responses)), self.micro_batch):
            chosen = [responses[i] for i in micro]
            logits_NV = self.outputs([prompts[i] for i in micro], chosen).logits_NV
            log_probs_N = action_log_probs(logits_NV, flat(chosen, logits_NV.device))
            parts |= zip(micro, torch.split(log_probs_N, [len(r) for r in chosen]), strict=True)
        return [parts[i] for i in range(len(responses))]


def flat(rows: Rows, device: torch.device) -> Tensor:
    """Token ids of all rows, one after another."""
    return torch.tensor([token for row in rows for token in row], dtype=torch.long, device=device)


def by_length(prompts: Rows, responses: Rows, indices: Sequence[int], size: int | None) -> Iterator[list[int]]:
    """Micro-batches of ``size`` sequences of similar length, which wastes little on padding."""
    ordered = sorted(indices, key=lambda i: (len(prompts[i]) + len(responses[i]), i))
    step = size or len(ordered)
    for start in range(0, len(ordered), step):
        yield ordered[start : start + step]


def whole_groups(responses: Rows, indices: Sequence[int], group_size: int, size: int | None) -> Iterator[list[int]]:
    """Micro-batches of whole groups, of about ``size`` sequences and at least one group.

    Args:
        responses: all responses of the experience.
        indices: the sequences to take, group by group.
        group_size: sequences per group.
        size: most sequences, if a group fits into that; None takes all at once.
    """
    groups = [indices[i : i + group_size] for i in range(0, len(indices), group_size)]
    groups.sort(key=lambda group: (max(len(responses[i]) for i in group), group[0]))
    step = max(1, size // group_size) if size else len(groups)
    for start in range(0, len(groups), step):
        yield [i for group in groups[start : start + step] for i in group]
