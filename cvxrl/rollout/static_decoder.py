"""Decoding in operations of fixed shape, which CUDA can record once and replay as one graph.

B rows, T places in the cache, K key/value heads, D head width
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from cvxrl.policy.model import Policy
from cvxrl.rollout.plain_decoder import Layer, PlainDecoder

# Places by which the cache grows. A token attends to all of them, used or not; every growth is another graph.
_BLOCK = 64


class StaticDecoder(PlainDecoder):
    """A plain decoder whose cache has the same places at every token; equal to it up to rounding.

    Launching a small policy's kernels takes longer than running them; a graph is launched at once. It is recorded anew
    when rows leave or the cache grows. On the CPU, where nothing is gained, the same operations run one by one.
    """

    def __init__(self, policy: Policy) -> None:
        """Nothing is recorded yet."""
        super().__init__(policy)
        self._place_1: Tensor | None = None
        self._graph: torch.cuda.CUDAGraph | None = None

    def start(self, prompts: Sequence[list[int]], counts: Sequence[int]) -> Tensor:
        """Prefill as the plain decoder does: prompts come once, in any shape."""
        self._forget()
        return super().start(prompts, counts)

    def step(self, tokens_B: Tensor) -> Tensor:
        """One token per row; the logits are overwritten by the next call."""
        if self._place_1 is None or self.filled == self.room:
            self._settle()
        assert self._place_1 is not None
        self._tokens_B.copy_(tokens_B)
        self._place_1.fill_(self.filled)
        logits = self._one() if self.policy.device.type != "cuda" else self._replay()
        self.filled += 1
        self.lengths_B += 1
        return logits

    def keep(self, rows_K: Tensor) -> None:
        """Go on with these rows, in other buffers."""
        super().keep(rows_K)
        self._forget()

    def _forget(self) -> None:
        self._place_1 = self._graph = None

    def _settle(self) -> None:
        """Buffers for the next block of tokens."""
        self._forget()
        rows, device = len(self.lengths_B), self.policy.device
        known = 0.0 if self.bias_BT is None else self.bias_BT[:, : self.filled]
        self._grow(rows, self.filled + _BLOCK)
        self.bias_BT = torch.full((rows, self.room), -torch.inf, device=device)
        self.bias_BT[:, : self.filled] = known
        for layer in self.layers:
            for cache in (layer.keys, layer.values):
                cache[:, :, self.filled :] = 0  # not seen, but not a number would be
        self._tokens_B = torch.zeros(rows, dtype=torch.long, device=device)
        self._place_1 = torch.zeros(1, dtype=torch.long, device=device)

    def _one(self) -> Tensor:
        """One token from the buffers; doing it twice changes nothing."""
        assert self._place_1 is not None and self.bias_BT is not None
        self.bias_BT.index_fill_(1, self._place_1, 0.0)
        return self._logits(self._tokens_B.unsqueeze(1), self.lengths_B.unsqueeze(1), self.bias_BT[:, None, None])

    def _replay(self) -> Tensor:
        if self._graph is None:
            # Libraries allocate their workspaces at their first call, which must not be recorded.
            aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            aside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(aside):
                self._one()
            torch.cuda.current_stream().wait_stream(aside)
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph):
                self._recorded = self._one()
        self._graph.replay()
        return self._recorded

    def _store(self, layer: Layer, keys_BKLD: Tensor, values_BKLD: Tensor) -> tuple[Tensor, Tensor]:
        if self._place_1 is None:
            return super()._store(layer, keys_BKLD, values_BKLD)
        layer.keys.index_copy_(2, self._place_1, keys_BKLD)
        layer.values.index_copy_(2, self._place_1, values_BKLD)
        return layer.keys, layer.values
