"""Next-token logits of a batch of rows that grow by a token at a time: the protocol, and the model's own forward."""

from __future__ import annotations

import inspect
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from cvxrl.policy.model import Policy
from cvxrl.policy.rows import own_outputs
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
    """The policy's forward pass in transformers, with the cache of its family, prompts padded on the left."""

    def __init__(self, policy: Policy) -> None:
        """Nothing is computed yet."""
        from transformers import DynamicCache

        self.policy = policy
        self.cache = DynamicCache(config=policy.model.config)
        # State-space models have the same cache under another name.
        known = inspect.signature(policy.model.forward).parameters
        self.cache_name = "cache_params" if "cache_params" in known else "past_key_values"

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
        self.cache.reorder_cache(rows_K)

    def _logits(self, ids: Tensor, mask: Tensor, positions: Tensor) -> Tensor:
        return self._run(ids, attention_mask=mask, position_ids=positions)

    def _run(self, ids: Tensor, **where: Any) -> Tensor:
        cache = {self.cache_name: self.cache}
        logits: Tensor = self.policy.model(input_ids=ids, **where, **cache, use_cache=True, logits_to_keep=1).logits
        return logits[:, -1]


class UnpaddedDecoder(TransformersDecoder):
    """The same for prompts of one length: the model is told no mask and counts positions itself."""

    def _logits(self, ids: Tensor, mask: Tensor, positions: Tensor) -> Tensor:
        return self._run(ids)


class RecomputingDecoder:
    """The policy's forward pass over all that a row holds, at every token anew: for families without a usable cache.

    Prompts must be of one length. The time per token grows with the length.
    """

    def __init__(self, policy: Policy) -> None:
        """Nothing is held yet."""
        self.policy = policy

    def start(self, prompts: Sequence[list[int]], counts: Sequence[int]) -> Tensor:
        """Read every prompt once."""
        ids = torch.tensor(prompts, device=self.policy.device)
        rows_B = row_prompts(counts, ids.device)
        self.ids_BT = ids[rows_B]
        return self._logits(ids)[rows_B]

    def step(self, tokens_B: Tensor) -> Tensor:
        """One token per row."""
        self.ids_BT = torch.cat([self.ids_BT, tokens_B.unsqueeze(1)], dim=1)
        return self._logits(self.ids_BT)

    def keep(self, rows_K: Tensor) -> None:
        """Select rows."""
        self.ids_BT = self.ids_BT[rows_K]

    def _logits(self, ids: Tensor) -> Tensor:
        logits: Tensor = own_outputs(self.policy.model, ids).logits[:, -1]
        return logits


class ByLength:
    """A decoder of its own for the prompts of each length, so that none sees padding."""

    def __init__(self, make: Callable[[], Decoder]) -> None:
        """``make`` gives a decoder that has read nothing."""
        self.make = make

    def start(self, prompts: Sequence[list[int]], counts: Sequence[int]) -> Tensor:
        """Begin rows; see `Decoder.start`."""
        same = defaultdict(list)
        for p, prompt in enumerate(prompts):
            same[len(prompt)].append(p)
        starts = torch.tensor([0, *counts]).cumsum(0).tolist()
        self.parts, said = [], []
        for members in same.values():
            decoder = self.make()
            said.append(decoder.start([prompts[p] for p in members], [counts[p] for p in members]))
            rows = [row for p in members for row in range(starts[p], starts[p + 1])]
            self.parts.append((decoder, torch.tensor(rows, device=said[-1].device)))
        return self._joined(said)

    def step(self, tokens_B: Tensor) -> Tensor:
        """One token per row."""
        return self._joined([decoder.step(tokens_B[rows]) for decoder, rows in self.parts])

    def keep(self, rows_K: Tensor) -> None:
        """Select rows of every part; a part that has none left is dropped."""
        kept = []
        for decoder, rows in self.parts:
            chosen = (rows_K.unsqueeze(1) == rows).nonzero()  # [new row, its place in the part]
            if len(chosen):
                decoder.keep(chosen[:, 1])
                kept.append((decoder, chosen[:, 0]))
        self.parts = kept

    def _joined(self, said: Sequence[Tensor]) -> Tensor:
        """Logits of the parts in the order of all rows."""
        order = torch.cat([rows for _, rows in self.parts])
        return torch.cat(list(said))[order.argsort()]
