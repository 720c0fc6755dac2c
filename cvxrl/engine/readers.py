"""Forward passes over sequences: what a policy says of their response tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from cvxrl.engine.micro_batches import Limit, by_length
from cvxrl.engine.sequences import Sequences, flat
from cvxrl.engine.world import World
from cvxrl.objectives.linear import LinearHead, head_of, linear_statistics
from cvxrl.objectives.statistics import action_log_probs, k3
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
            with policy.whole(), policy.activated():
                head = head_of(policy.model, temperature)
        return cls(policy, temperature, train.precision == "bf16", Limit.of(train), head, train.chunk_tokens)

    def outputs(self, sequences: Sequences) -> ResponseOutputs:
        """Hidden states and fp32 logits over temperature at the response tokens, with gradient."""
        with torch.autocast(self.policy.device.type, dtype=torch.bfloat16, enabled=self.bf16):
            raw = self.policy.response_outputs(sequences.prompts, sequences.responses)
        logits_NV = raw.logits_NV.float()
        # Dividing by 1 changes no bit, but copies the largest tensor of all.
        return ResponseOutputs(raw.hidden_NH, logits_NV if self.temperature == 1 else logits_NV / self.temperature)

    def hidden(self, sequences: Sequences) -> Tensor:
        """Hidden states at the response tokens, with gradient; no logits."""
        with torch.autocast(self.policy.device.type, dtype=torch.bfloat16, enabled=self.bf16):
            return self.policy.response_hidden(sequences.prompts, sequences.responses)

    def logits(self, sequences: Sequences) -> list[Tensor]:
        """Logits of every sequence, [T, V] each."""
        return self.each(sequences, lambda part: self.outputs(part).logits_NV)

    def log_probs(self, sequences: Sequences) -> list[Tensor]:
        """Log-probability of each response token, [T] per sequence; the vocabulary is never held for all at once."""
        return self.each(sequences, self._log_probs)

    @torch.no_grad()
    def each(self, sequences: Sequences, read: Callable[[Sequences], Tensor]) -> list[Tensor]:
        """What ``read`` says at every response token, micro-batch by micro-batch, sequence by sequence."""
        found: dict[int, Tensor] = {}
        with self.policy.whole():
            for micro in by_length(sequences.prompts, sequences.responses, self.limit):
                part = sequences.select(micro)
                found |= zip(micro, torch.split(read(part), part.lengths), strict=True)
        return [found[i] for i in range(len(sequences))]

    def _log_probs(self, sequences: Sequences) -> Tensor:
        actions_N = flat(sequences.responses, self.policy.device)
        if self.head is None:
            return action_log_probs(self.outputs(sequences).logits_NV, actions_N)
        hidden_NH = self.hidden(sequences)
        return linear_statistics(hidden_NH, self.head, actions_N, chunk_tokens=self.chunk_tokens).logprobs_N


def policy_shift(reader: Reader, sequences: Sequences, num_sequences: int, world: World) -> dict[str, float]:
    """KL(rollout policy || policy now), estimated with k3 on the tokens of the step's first ``num_sequences``."""
    if sequences.sampled_logprobs is None or num_sequences == 0:
        return {}
    few = sequences.select([i for i, position in enumerate(sequences.positions) if position < num_sequences])
    assert few.sampled_logprobs is not None
    none = [torch.empty(0)]
    moved = torch.cat([log_probs.cpu() for log_probs in reader.log_probs(few)] or none)
    moved = moved - torch.cat(few.sampled_logprobs or none)
    return {"policy/kl": float(k3(torch.cat(world.gather(moved))).mean())}
