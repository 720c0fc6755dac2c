"""Random numbers by name: every draw comes from a generator made for it from (seed, purpose, position).

No state is carried from draw to draw, so evaluating, resuming, splitting a batch or logging more cannot shift anybody
else's numbers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class StreamKey:
    """Name of the stream that one completion draws from.

    Completion 3 of prompt 7 at step 12 of a run with seed 0 is ``StreamKey(0, "sampling", (12, 7, 3))``, wherever and
    beside whatever it is decoded. An evaluation asks the same at every step: ``StreamKey(0, "evaluation", (7, 3))``.

    Attributes:
        seed: the run's (or the evaluation's) seed.
        purpose: what is drawn: `sampling` or `evaluation`.
        position: step (where it matters), prompt and sample.
    """

    seed: int
    purpose: str
    position: tuple[int, ...]

    @property
    def number(self) -> int:
        """63 bits that stand for the stream, for an engine that takes a seed per request."""
        text = ":".join(map(str, (self.seed, self.purpose, *self.position)))
        digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
        return int.from_bytes(digest, "big") >> 1

    def uniform(self, count: int) -> Tensor:
        """The first ``count`` numbers of the stream, uniform on [0, 1), float64 on the CPU, [count]."""
        generator = torch.Generator().manual_seed(self.number)
        return torch.rand(count, generator=generator, dtype=torch.float64)


def generator_for(seed: int, purpose: str, *counters: int) -> torch.Generator:
    """CPU generator that depends only on its arguments, for draws that belong to no single completion.

    Args:
        seed: the run's seed.
        purpose: what is drawn, e.g. `minibatches` or `dropout`.
        counters: position in the run, e.g. step and inner epoch.
    """
    return torch.Generator().manual_seed(StreamKey(seed, purpose, counters).number)


def completion_keys(
    seed: int, purpose: str, *counters: int, prompts: Sequence[int], samples: int
) -> list[list[StreamKey]]:
    """Keys of ``samples`` completions of each prompt.

    Args:
        seed: as in `StreamKey`, and so is the purpose.
        purpose: what is drawn.
        counters: what stands before the prompt in the position, e.g. the step.
        prompts: index of each prompt within the step, or of each question within the evaluation.
        samples: completions per prompt.
    """
    return [[StreamKey(seed, purpose, (*counters, p, s)) for s in range(samples)] for p in prompts]
