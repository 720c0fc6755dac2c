"""The batch at which a run diverged, in a form that a person can read."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from cvxrl.engine.divergence import DivergedError
from cvxrl.policy.model import Policy


def describe_batch(error: DivergedError, policy: Policy) -> Iterator[dict[str, Any]]:
    """One mapping per sequence that the bad tensor was computed from.

    Keys: `sequence` (position in the step's experience), `id` of the example, `prompt` and `response` as text,
    `response_ids`, and, where the policy sampled, `advantages` (first and last token's) and the sampler's
    `logprob_min`.
    """
    sequences = error.sequences
    assert sequences is not None
    for i, position in enumerate(sequences.positions):
        prompt, response = policy.decode([sequences.prompts[i], sequences.responses[i]])
        line: dict[str, Any] = {
            "sequence": position,
            "id": sequences.ids[i] or None,
            "prompt": prompt,
            "response": response,
            "response_ids": sequences.responses[i],
        }
        if sequences.advantages is not None:
            advantages = sequences.advantages[i]
            line["advantages"] = [float(advantages[0]), float(advantages[-1])]
        if sequences.sampled_logprobs is not None:
            line["logprob_min"] = float(sequences.sampled_logprobs[i].min())
        yield line
