"""What a rollout produces."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Episode:
    """One prompt with one completion.

    For the prompt "7+5?" answered with "7+5=12" and the end token, ``response_ids`` has 7 entries and ``logprobs`` as
    many; ``truncated`` is False because the end token came before the length limit.

    Attributes:
        prompt_ids: token ids of the rendered prompt.
        response_ids: sampled token ids, the end token included if it was reached.
        logprobs: log-probability of each sampled token at sampling time, on the CPU, or None for demonstrations.
        truncated: the completion reached the length limit without an end token.
    """

    prompt_ids: list[int]
    response_ids: list[int]
    logprobs: Tensor | None
    truncated: bool
