"""Next-token logits of a batch of rows that grow by a token at a time: the protocol, and the model's own forward."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from cvxrl.policy.model import Policy
from cvxrl.rollout.prompts import padded_prompts, row_prompts


class Decoder(Protocol):
    """B rows with what was computed for their tokens so far."""

    def start(self, prompts: Sequence[list[int]], counts: Sequence[int]) -> Tensor:
        """Begin ``counts[p]`` rows with prompt p, those of a prompt adjacent; logits [B, V] of their next tokens."""

    def step(self, tokens_B: Tensor) -> Tensor:
        """Append a token to every row; logits [B, V] of the next ones."""

    def keep(self, rows_K: Tensor) -> None:
        """Go on with these rows alone, in this order; a row may be asked for more than once."""


class TransformersDecoder:
    """The policy's forward pass in transformers, with its key/value cache; serves every causal language model."""

    def __init__(self, policy: Policy) -> None:
        """Nothing is computed yet."""
        from transformers import DynamicCache

        self.policy = policy
        self.cache = DynamicCache(config=policy.model.config)

    def start(self, prompts: Sequence[list[int]], counts: Sequence[int]) -> Tensor:
        """Prefill each prompt once and copy its cache to its rows."""
        ids, mask = padded_prompts(prompts, self.policy.pad_id, self.policy.device)
        self.mask_BT, self.lengths_B = mask, mask.sum(dim=1)
        logits = self._logits(ids, mask, (mask.cumsum(dim=1) - 1).clamp(min=0))
        rows_B = row_prompts(counts, ids.device)
        self.keep(rows_B)
        return logits[rows_B]

    def step(self, tokens_B: Tensor) -> Tensor:
        """One token per row."""
        self.mask_BT = torch.cat([self.mask_BT, self.mask_BT.new_ones(len(tokens_B), 1)], dim=1)
        logits = self._logits(tokens_B.unsqueeze(1), self.mask_BT, self.lengths_B.unsqueeze(1))
        self.lengths_B = self.lengths_B + 1
        return logits

    def keep(self, rows_K: Tensor) -> None:
        """Select rows of the cache."""
        self.mask_BT, self.lengths_B = self.mask_BT[rows_K], self.lengths_B[rows_K]
        self.cache.batch_select_indices(rows_K)

    def _logits(self, ids: Tensor, mask: Tensor, positions: Tensor) -> Tensor:
        logits: Tensor = self.policy.model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]
        return logits
