"""Sums of digits: `4+7+9+3?`, shown as `4+7=11+9=20+3=23`, with some steps wrong on purpose.

A policy that imitates such demonstrations samples the right answer only when it happens to copy no mistake,
yet its most likely continuation is right at every step: there is something for reinforcement learning to
sharpen.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np

from cvxrl.recipe.task import ArithmeticSource
from cvxrl.tasks.base import DEMONSTRATION, HELD_OUT, PREFERENCE, TRAIN, Example, Source, digest, draw_example

_LARGEST_SLIP = 9
_FINGERPRINTED = 64


class ArithmeticTask:
    """Sums of independent digits, generated; example i depends on the seed and on i alone."""

    name = "arithmetic"
    train_size: int | None = None
    held_out_size: int | None = None

    def __init__(self, spec: ArithmeticSource, seed: int) -> None:
        """Keep the recipe section and the run's seed."""
        self._spec = spec
        self._seed = seed

    def train(self, index: int) -> Example:
        """Return training example `index`."""
        return self._example([self._seed, TRAIN, index], held_out=False)

    def held_out(self, index: int) -> Example:
        """Return held-out example `index`; the run's seed has no part in it."""
        return self._example([0, HELD_OUT, index], held_out=True)

    @cached_property
    def fingerprint(self) -> str:
        """Digest of the recipe section and of the first examples that it makes."""
        first = (self.held_out(i) for i in range(_FINGERPRINTED))
        return digest(self._spec.model_dump_json(), *(f"{e.prompt}{e.demonstration}" for e in first))

    def _example(self, seed: list[int], held_out: bool) -> Example:
        bare = draw_example(self._draw, seed, self._spec.held_out, held_out)
        digits = [int(d) for d in bare.prompt[:-1].split("+")]
        # A stream of its own, so that `corrupt` cannot change which prompts are drawn.
        rng = np.random.default_rng([*seed, DEMONSTRATION])
        demonstration = demonstrate(digits, self._spec.corrupt, rng)
        pair = prefer(digits, self._spec.corrupt, np.random.default_rng([*seed, PREFERENCE]))
        return Example(bare.id, bare.prompt, bare.answer, demonstration, pair)

    def _draw(self, rng: np.random.Generator) -> Example:
        low, high = self._spec.terms
        digits = rng.integers(0, 10, size=int(rng.integers(low, high + 1))).tolist()
        prompt = "+".join(map(str, digits)) + "?"
        return Example(id=prompt, prompt=prompt, answer=str(sum(digits)))


def prefer(digits: list[int], corrupt: float, rng: np.random.Generator) -> tuple[str, str]:
    """A faultless demonstration and one in which at least one step is wrong: chosen and rejected."""
    wrong = int(rng.integers(1, len(digits)))
    return demonstrate(digits, 0.0, rng), demonstrate(digits, corrupt, rng, wrong)


def demonstrate(digits: list[int], corrupt: float, rng: np.random.Generator, wrong: int | None = None) -> str:
    """Write the sum of `digits` step by step; each step goes wrong with probability `corrupt`.

    A wrong result is one of the numbers at distance 1 to 9 from the right one, none below zero, all equally
    likely. The chain goes on from the wrong number. Step ``wrong`` (from 1) goes wrong for sure.

    Returns:
        Text such as `4+7=11+9=20+3=23`.
    """
    total = digits[0]
    text = str(total)
    for step, term in enumerate(digits[1:], start=1):
        total += term
        if rng.random() < corrupt or step == wrong:
            slips = [s for s in range(-_LARGEST_SLIP, _LARGEST_SLIP + 1) if s != 0 and total + s >= 0]
            total += int(rng.choice(slips))
        text += f"+{term}={total}"
    return text


SOURCE = Source(ArithmeticTask)
