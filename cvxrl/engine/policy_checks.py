"""Do sampler and trainer mean the same policy, and how far does an update move it?"""

from __future__ import annotations

from dataclasses import replace

import torch

from cvxrl.engine.experience import Experience
from cvxrl.engine.readers import Reader
from cvxrl.objectives.statistics import k3


def policy_shift(reader: Reader, experience: Experience, num_sequences: int) -> dict[str, float]:
    """KL(rollout policy || policy now), estimated with k3 on the tokens of the first ``num_sequences``."""
    if experience.logprobs is None or num_sequences == 0:
        return {}
    few = slice(num_sequences)
    new = torch.cat(reader.log_probs(experience.prompts[few], experience.responses[few])).cpu()
    return {"policy/kl": float(k3(new - torch.cat(experience.logprobs[few])).mean())}


def ratio_deviation(reader: Reader, experience: Experience, num_sequences: int = 32) -> float:
    """Largest |ratio - 1| between the sampler's and the trainer's probabilities before any update.

    The whole experience is checked at the configured micro-batch size, its first sequences also at sizes 1 and 4.
    """
    assert experience.logprobs is not None
    worst = 0.0
    few = slice(num_sequences)
    four, one = (replace(reader.limit, sequences=size) for size in (4, 1))
    for part, limit in ((slice(None), reader.limit), (few, four), (few, one)):
        read = replace(reader, limit=limit).log_probs(experience.prompts[part], experience.responses[part])
        difference = torch.cat(read).cpu() - torch.cat(experience.logprobs[part])
        worst = max(worst, float(torch.expm1(difference).abs().max()))
    return worst
