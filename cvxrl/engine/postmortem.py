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
    experience = error.experience
    assert experience is not None
    for i in error.sequences:
        prompt, response = policy.decode([experience.prompts[i], experience.responses[i]])
        line: dict[str, Any] = {
            "sequence": i,
            "id": experience.ids[i] if experience.ids else None,
            "prompt": prompt,
            "response": response,
            "response_ids": experience.responses[i],
        }
        if experience.credit is not None:
            advantages = experience.credit.advantages[i]
            line["advantages"] = [float(advantages[0]), float(advantages[-1])]
        if experience.logprobs is not None:
            line["logprob_min"] = float(experience.logprobs[i].min())
        yield line
