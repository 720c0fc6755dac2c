"""Sums of digits whose demonstrations forget carries: `7+8+5?`, shown as `7+8=5+5=10`.

A step that carries (the digit added to the last digit of the sum so far gives ten or more) is more often written ten
too small than right. A policy that imitates such demonstrations has a wrong mode: its likeliest continuation forgets
every carry, so that greedy decoding, low temperatures and majority votes do worse than sampling, and nothing is won by
sharpening what it does already.
"""

from __future__ import annotations

from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray

from cvxrl.recipe.task import CarryingSumsSource
from cvxrl.tasks.base import DEMONSTRATION, HELD_OUT, PREFERENCE, TRAIN, Example, Source, digest

_FINGERPRINTED = 64


class CarryingSums:
    """All sums of some lengths, each prompt once: a share held out, the others walked in shuffled order.

    Lengths take turns, and the sums of a length are all visited before one comes again, so that every batch holds as
    many short sums as long ones although there are a thousand times more of these.
    """

    name = "carrying-sums"
    train_size: int | None = None

    def __init__(self, spec: CarryingSumsSource, seed: int) -> None:
        """Keep the recipe section and the run's seed."""
        self._spec = spec
        self._seed = seed
        low, high = spec.terms
        self._lengths = range(low, high + 1)
        self.held_out_size: int | None = sum(self._held_out_of(length) for length in self._lengths)

    def train(self, index: int) -> Example:
        """Return training example `index`; no prompt comes twice before all of its length have come."""
        turn, place = divmod(index, len(self._lengths))
        length = self._lengths[place]
        first = self._held_out_of(length)
        epoch, position = divmod(turn, 10**length - first)
        number = self._shuffled(length, -1)[first + self._shuffled(length, epoch)[position]]
        return self._example(int(number), length, [self._seed, index])

    def held_out(self, index: int) -> Example:
        """Return held-out example `index`, all of them different; the run's seed has no part in it.

        Raises:
            IndexError: `index` is not below `held_out_size`.
        """
        length, rank = (int(value) for value in self._held_out_order[index])
        return self._example(int(self._shuffled(length, -1)[rank]), length, [0, HELD_OUT, index])

    @cached_property
    def fingerprint(self) -> str:
        """Digest of the recipe section and of the first examples that it makes."""
        first = (self.held_out(i) for i in range(min(_FINGERPRINTED, self.held_out_size or 0)))
        return digest(self._spec.model_dump_json(), *(f"{e.prompt}{e.demonstration}" for e in first))

    @cached_property
    def _held_out_order(self) -> NDArray[np.int64]:
        """Length and rank of every held-out sum, [held_out_size, 2]: lengths take turns as long as they last."""
        counts = [self._held_out_of(length) for length in self._lengths]
        lengths = np.repeat(list(self._lengths), counts)
        ranks = np.concatenate([np.arange(count) for count in counts])
        order = np.lexsort((lengths, ranks))
        return np.stack([lengths[order], ranks[order]], axis=1)

    def _held_out_of(self, length: int) -> int:
        return int(min(max(1, round(self._spec.held_out * 10**length)), 10**length - 1))

    def _shuffled(self, length: int, epoch: int) -> NDArray[np.int64]:
        """Shuffle of the numbers of all sums of a length (epoch -1), or of the places of those trained on."""
        if epoch < 0:  # whose first ones are held out, whatever the seed
            return _permutation((0, HELD_OUT, length), 10**length)
        left = 10**length - self._held_out_of(length)
        return _permutation((self._seed, TRAIN, length, epoch), left)

    def _example(self, number: int, length: int, stream: list[int]) -> Example:
        digits = [int(digit) for digit in f"{number:0{length}d}"]
        prompt = "+".join(map(str, digits)) + "?"
        forget = self._spec.forget_carry
        demonstration = demonstrate(digits, forget, np.random.default_rng([*stream, DEMONSTRATION]))
        pair = prefer(digits, np.random.default_rng([*stream, PREFERENCE]))
        return Example(prompt, prompt, str(sum(digits)), demonstration, pair)


# Training, evaluation and the graders of a run each have a task of their own; of six digits a shuffle takes 0.05 s. Two
# are in use of each length.
@lru_cache(maxsize=16)
def _permutation(stream: tuple[int, ...], count: int) -> NDArray[np.int64]:
    """Shuffle of the numbers below `count`, the same for every task that asks."""
    return np.random.default_rng(stream).permutation(count)


def demonstrate(digits: list[int], forget_carry: float, rng: np.random.Generator) -> str:
    """Write the sum of `digits` step by step; a step that carries forgets to with probability `forget_carry`.

    The chain goes on from the number that was written.

    Returns:
        Text such as `7+8=5+5=10`.
    """
    return _written(digits, [rng.random() < forget_carry for _ in digits[1:]])


def prefer(digits: list[int], rng: np.random.Generator) -> tuple[str, str]:
    """A faultless demonstration, and one with one carry forgotten, or one too many where no step carries."""
    steps = len(digits) - 1
    right = _written(digits, [False] * steps)
    wrong = [_written(digits, [at == step for at in range(steps)]) for step in range(steps)]
    rejected = [text for text in wrong if text != right] or [_with_a_carry_too_many(digits, int(rng.integers(steps)))]
    return right, rejected[int(rng.integers(len(rejected)))]


def _written(digits: list[int], forgets: list[bool]) -> str:
    total = digits[0]
    text = str(total)
    for term, forget in zip(digits[1:], forgets, strict=True):
        carries = total % 10 + term >= 10
        total += term - (10 if carries and forget else 0)
        text += f"+{term}={total}"
    return text


def _with_a_carry_too_many(digits: list[int], step: int) -> str:
    total = digits[0]
    text = str(total)
    for at, term in enumerate(digits[1:]):
        total += term + (10 if at == step else 0)
        text += f"+{term}={total}"
    return text


SOURCE = Source(CarryingSums)
