"""Passes over an experience: what a policy says of its tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from cvxrl.engine.micro_batches import Limit, Rows, by_length
from cvxrl.objectives.linear import LinearHead, head_of, linear_statistics
from cvxrl.objectives.statistics import action_log_probs
from cvxrl.policy.model import Policy, ResponseOutputs
from cvxrl.recipe.schema import Recipe


@dataclass(frozen=True)
class Reader:
    """A policy as the update sees it.

    Attributes:
        policy: trained policy, reference or verifier.
        temperature: its logits are divided by it.
        bf16: whether the forward pass runs under autocast.
        limit: what one pass of `hidden`, `log_probs` and `logits` may hold.
        head: output layer, where no pass is to form the logits of all its tokens at once.
        chunk_tokens: tokens whose logits are formed at a time then; None for a default.
    """

    policy: Policy
    temperature: float
    bf16: bool
    limit: Limit
    head: LinearHead | None = None
    chunk_tokens: int | None = None

    @classmethod
    def of(cls, policy: Policy, recipe: Recipe) -> Reader:
        """A reader with the recipe's precision and, where tokens are sampled, its temperature.

        Raises:
            UserError: the recipe asks for losses in chunks, and the policy's output layer does not allow them.
        """
        train = recipe.train
        temperature = recipe.rollout.temperature if recipe.data == "rollouts" else 1.0
        head = None
        if train.loss == "chunked":
            with policy.activated():
                head = head_of(policy.model, temperature)
        return cls(policy, temperature, train.precision == "bf16", Limit.of(train), head, train.chunk_tokens)

    def outputs(self, prompts: Rows, responses: Rows) -> ResponseOutputs:
        """Hidden states and fp32 logits over temperature at the response tokens, with gradient."""
        with torch.autocast(self.policy.device.type, dtype=torch.bfloat16, enabled=self.bf16):
            raw = self.policy.response_outputs(prompts, responses)
        logits_NV = raw.logits_NV.float()
        # Dividing by 1 changes no bit, but copies the largest tensor of all.
        return ResponseOutputs(raw.hidden_NH, logits_NV if self.temperature == 1 else logits_NV / self.temperature)

    def hidden(self, prompts: Rows, responses: Rows) -> Tensor:
        """Hidden states at the response tokens, with gradient; no logits."""
        with torch.autocast(self.policy.device.type, dtype=torch.bfloat16, enabled=self.bf16):
            return self.policy.response_hidden(prompts, responses)

    def logits(self, prompts: Rows, responses: Rows) -> list[Tensor]:
        """Logits of every sequence, [T, V] each."""
        return self.each(prompts, responses, lambda p, r: self.outputs(p, r).logits_NV)

    def log_probs(self, prompts: Rows, responses: Rows) -> list[Tensor]:
        """Log-probability of each response token, [T] per sequence; the vocabulary is never held for all at once."""
        return self.each(prompts, responses, self._log_probs)

    @torch.no_grad()
    def each(self, prompts: Rows, responses: Rows, read: Callable[[Rows, Rows], Tensor]) -> list[Tensor]:
        """What ``read`` says at every response token, micro-batch by micro-batch, sequence by sequence."""
        parts: dict[int, Tensor] = {}
        for micro in by_length(prompts, responses, range(len(responses)), self.limit):
            values = read([prompts[i] for i in micro], [responses[i] for i in micro])
            parts |= zip(micro, torch.split(values, [len(responses[i]) for i in micro]), strict=True)
        return [parts[i] for i in range(len(responses))]

    def _log_probs(self, prompts: Rows, responses: Rows) -> Tensor:
        actions_N = flat(responses, self.policy.device)
        if self.head is None:
            return action_log_probs(self.outputs(prompts, responses).logits_NV, actions_N)
        hidden_NH = self.hidden(prompts, responses)
        return linear_statistics(hidden_NH, self.head, actions_N, chunk_tokens=self.chunk_tokens).logprobs_N


def flat(rows: Rows, device: torch.device) -> Tensor:
    """Token ids of all rows, one after another."""
    return torch.tensor([token for row in rows for token in row], dtype=torch.long, device=device)
