"""Completions drawn from numbers that belong to the prompt, not to the sampler: the same whoever calls it, and when.

A trajectory recorded with these draws depends on everything but the sampler's own random streams. The n-th completion
of a prompt since `replace_draws` began takes, at token position t, the number u(prompt, n, t). What else is in the
batch, how calls are cut into batches, and what other prompts are asked has no part in it.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor

Numbers = Callable[[int], Tensor]


class Draws:
    """Uniform numbers by prompt, by how often the prompt was answered before, and by position."""

    def __init__(self) -> None:
        self._answered: Counter[tuple[int, ...]] = Counter()

    def rows(self, prompts: Sequence[Sequence[int]]) -> Numbers:
        """For one more completion of every entry (a prompt may come repeatedly): position -> [rows], float64."""
        keys = [self.next(tuple(map(int, prompt))) for prompt in prompts]
        return lambda position: torch.tensor([uniform(key, position) for key in keys], dtype=torch.float64)

    def next(self, prompt: tuple[int, ...]) -> tuple[int, ...]:
        self._answered[prompt] += 1
        return (*prompt, self._answered[prompt] - 1)


def uniform(key: Sequence[int], position: int) -> float:
    """A number in [0, 1) with 53 random bits, from the key and the position alone."""
    digest = hashlib.blake2b(repr((*key, position)).encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 11) * 2.0**-53


class DrawnKey:
    """Stands where the generator expects the stream of one completion."""

    def __init__(self, key: tuple[int, ...]) -> None:
        self._key = key

    def uniform(self, count: int) -> Tensor:
        return torch.tensor([uniform(self._key, position) for position in range(count)], dtype=torch.float64)


@contextmanager
def replace_draws() -> Iterator[Draws]:
    """Within the block, every completion of this process is drawn from `Draws`; the count starts at its beginning."""
    draws = Draws()
    with _replaced(draws):
        yield draws


def _replaced(draws: Draws) -> Any:
    """What asks for numbers: version 0.1's sampler by position, every later one by the key of each completion."""
    if importlib.util.find_spec("cvxrl.rollout.sampler") is not None:
        return _in_version_01(draws)
    from cvxrl.rollout.local_generator import LocalGenerator

    original = LocalGenerator.generate

    def generate(self: Any, prompts: Sequence[list[int]], keys: Sequence[Sequence[Any]], sampling: Any) -> list[Any]:
        drawn = [
            [DrawnKey(draws.next(tuple(prompt))) for _ in streams]
            for prompt, streams in zip(prompts, keys, strict=True)
        ]
        return original(self, prompts, drawn, sampling)  # type: ignore[arg-type]

    return mock.patch.object(LocalGenerator, "generate", generate)


def _in_version_01(draws: Draws) -> Any:
    """Both entrances, `sample_episodes` and `sample_separately`, end in `_sample_chunk`, which is given its numbers."""
    sampler = importlib.import_module("cvxrl.rollout.sampler")
    original = sampler._sample_chunk

    def sample_chunk(
        policy: Any, prompts: Sequence[list[int]], samples: int, sampling: Any, numbers: Numbers
    ) -> list[Any]:
        return original(policy, prompts, samples, sampling, draws.rows([p for p in prompts for _ in range(samples)]))

    return mock.patch.object(sampler, "_sample_chunk", sample_chunk)
