"""Random numbers by purpose and position.

Every draw comes from a generator made for it from (seed, purpose, counters). No state is carried from step to step, so
evaluating, resuming or logging more cannot shift anybody else's numbers.
"""

from __future__ import annotations

import hashlib

import torch


def generator_for(seed: int, purpose: str, *counters: int) -> torch.Generator:
    """CPU generator that depends only on its arguments.

    Args:
        seed: the run's (or the evaluation's) seed.
        purpose: what is drawn, e.g. `sampling` or `minibatches`.
        counters: position in the run, e.g. step and inner epoch.
    """
    text = ":".join(map(str, (seed, purpose, *counters)))
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)
